"""`Wakes`: which thread of an engine has something to do, and is woken for it.

All of it is under the engine's lock, but waiting.
"""

from __future__ import annotations

from ...locks import Gate
from ...scheduler.request import Priority, Request
from ...scheduler.scheduler import Scheduler
from .background import BackgroundTasks
from .pending import PendingRequests
from .worker import WorkerPool

__all__ = ["Wakes"]

PAUSE_S = 0.0002
MOST_ARRIVALS = 32  # looked through at every call; then the background thread takes them in


class Wakes:
    """Wakes the workers, the threads that tokenise, and the one in the background."""

    def __init__(
        self,
        scheduler: Scheduler,
        pending: PendingRequests,
        pool: WorkerPool,
        background: BackgroundTasks,
    ) -> None:
        self._scheduler = scheduler
        self._pending = pending
        self._pool = pool
        self._background = background
        self._tokenizers: dict[Priority, list[Gate]] = {priority: [] for priority in Priority}
        self._query_ended = Gate()

    def tokenizer_gate(self, priority: Priority) -> Gate:
        """Before the threads start: where one that tokenises texts of a priority waits for them."""
        gate = Gate()
        self._tokenizers[priority].append(gate)
        return gate

    def arrived(self, request: Request, *, is_tokenized: bool) -> None:
        """Wake those that are to take a request further."""
        if is_tokenized:
            is_query = request.priority is Priority.INTERACTIVE
            self._pool.wake_one(queries=is_query, bulk=not is_query)
        else:
            self._wake_tokenizers(request.priority)
        is_late = self._background.is_late_for(request.deadline_s)
        if is_late or len(self._pending.arrivals) > MOST_ARRIVALS:
            self._background.wake()

    def ready(self, *, workers: bool = True) -> None:
        """Wake who has something to do now, and who wakes the next."""
        queues = self._scheduler.queues
        queries = bool(queues[Priority.INTERACTIVE].ready_requests)
        bulk = bool(queues[Priority.BULK].ready_requests)
        if workers and self._scheduler.holds_parts:
            self._pool.wake_all()  # one replica alone goes on with a text
        elif workers and (queries or bulk):
            self._pool.wake_one(queries=queries, bulk=bulk)
        for priority in self._scheduler.to_tokenize():
            self._wake_tokenizers(priority)

    def _wake_tokenizers(self, priority: Priority) -> None:
        for gate in self._tokenizers[priority]:
            gate.open()

    def all(self) -> None:
        """Wake all threads, to look again or to end."""
        self._pool.wake_all()
        for priority in Priority:
            self._wake_tokenizers(priority)
        self._background.wake()

    def ended(self, request: Request) -> None:
        """A request has ended: ingestion may go on, where it made way for queries."""
        if request.priority is Priority.INTERACTIVE:
            self._query_ended.open()

    # Without the lock.

    def pause_for_queries(self) -> None:
        """While there are queries, leave the interpreter to their threads for a moment."""
        if self._pending.queries:
            self._query_ended.wait(PAUSE_S)

    def __repr__(self) -> str:
        return f"Wakes({self._pending!r}, {self._pool!r}, {self._background!r})"
