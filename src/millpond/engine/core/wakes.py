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

__all__ = ["TokenizerWait", "Wakes"]

PAUSE_S = 0.0002
MOST_ARRIVALS = 32  # looked through at every call; then the background thread takes them in


class TokenizerWait:
    """Where a thread that tokenises waits for texts, and what others know of it."""

    def __init__(self, *, rests_beside_queries: bool = False) -> None:
        self.rests_beside_queries = rests_beside_queries
        self._gate = Gate()
        self._is_idle = False  # it waits
        self._is_woken = False  # of an idle one: a thread has woken it

    def look(self) -> None:
        """Under the lock: it looks for texts."""
        self._is_idle = self._is_woken = False

    def found_none(self) -> None:
        """Under the lock: it is going to wait."""
        self._is_idle = True

    def wait(self) -> None:
        """Without the lock: wait to be woken."""
        self._gate.wait()

    @property
    def is_asleep(self) -> bool:
        """Whether it waits and no thread has woken it."""
        return self._is_idle and not self._is_woken

    def wake(self) -> None:
        """Let it look, now or when it would wait."""
        self._gate.open()  # first: a caller may be interrupted here, and it must not sleep on
        self._is_woken = True

    def __repr__(self) -> str:
        return f"TokenizerWait(asleep={self.is_asleep})"


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
        self._tokenizers: dict[Priority, list[TokenizerWait]] = {each: [] for each in Priority}
        self._has_queries_near = False  # when a thread looked for texts last
        self._query_ended = Gate()

    def tokenizer_wait(
        self, priority: Priority, *, rests_beside_queries: bool = False
    ) -> TokenizerWait:
        """Before the threads start: where one that tokenises texts of a priority waits for them.

        One that rests beside queries leaves the interpreter to others while those come in.
        """
        found = TokenizerWait(rests_beside_queries=rests_beside_queries)
        self._tokenizers[priority].append(found)
        return found

    def may_tokenize(self, each: TokenizerWait, now_s: float) -> bool:
        """A thread looks for texts: whether it may have any."""
        each.look()
        self._has_queries_near = self._scheduler.has_queries_near(now_s)
        return not self._rests(each)

    def _rests(self, each: TokenizerWait) -> bool:
        return each.rests_beside_queries and self._has_queries_near

    def arrived(self, request: Request, *, is_tokenized: bool) -> None:
        """Wake those that are to take a request further."""
        if is_tokenized:
            is_query = request.priority is Priority.INTERACTIVE
            self._pool.wake_one(queries=is_query, bulk=not is_query)
        else:
            self._wake_tokenizer(request.priority)
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
            self._wake_tokenizer(priority)

    def _wake_tokenizer(self, priority: Priority) -> None:
        """Wake one; having claimed its texts, it has the next one woken."""
        for each in self._tokenizers[priority]:
            if each.is_asleep and not self._rests(each):
                each.wake()
                return

    def all(self) -> None:
        """Wake all threads, to look again or to end."""
        self._pool.wake_all()
        for waits in self._tokenizers.values():
            for each in waits:
                each.wake()
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
