"""`PendingRequests`: the table of accepted requests that have not ended.

It knows the scheduler, which plans their texts, and neither threads nor devices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ...errors import EngineClosed, MillpondError, QueueFull
from ...scheduler.request import Priority, Request
from ...scheduler.scheduler import Scheduler
from ...scheduler.token_chunk import TokenChunk

__all__ = ["Ended", "PendingRequests"]

Ended = Sequence[tuple[Request, MillpondError | None]]
"""Requests that were taken out before their time; without an error, they were cancelled."""


class PendingRequests:
    """Accepted requests. The thread that takes one out ends its future.

    Every method is called under the engine's lock, but `cancel`. A caller may be interrupted
    anywhere, so all it changes here it changes by one append to a deque: the engine's threads,
    which are never interrupted, do the rest in `update`.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.arrivals: deque[tuple[Request, TokenChunk | None]] = deque()  # appended by callers
        self._cancelled: deque[int] = deque()  # ids of requests; appended by any thread
        self.by_id: dict[int, Request] = {}  # that the scheduler has
        self._queries = 0  # among those
        self._dropped_texts = 0
        self.abandons = False  # all that is here is to be ended, not run

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self.by_id) + len(self.arrivals)

    @property
    def queries(self) -> int:
        """Interactive requests that have not ended, and what has just arrived."""
        return self._queries + len(self.arrivals)

    @property
    def has_waiting_queries(self) -> bool:
        """Whether one has arrived that is in no batch. Without the lock, it is a hint."""
        if self._scheduler.queues[Priority.INTERACTIVE].waiting_tokens > 0:
            return True
        # In a list of its own: others append meanwhile.
        return any(one.priority is Priority.INTERACTIVE for one, _ in list(self.arrivals))

    def add(self, request: Request, chunk: TokenChunk | None) -> None:
        """A request arrives; `chunk` has its texts if they are tokenised."""
        self.arrivals.append((request, chunk))

    def cancel(self, request_id: int) -> None:
        """Have a request dropped. Any thread may call it at any time, a finalizer too."""
        self._cancelled.append(request_id)

    # Room.

    def require_room_for(self, request: Request) -> None:
        """Raise `QueueFull` where the request would have to wait to be admitted."""
        if not self.has_room_for(request):
            raise QueueFull(
                f"{self.waiting_tokens(request.priority)} tokens are waiting in the "
                f"{request.priority.value} queue and this call brings about "
                f"{request.waiting_tokens} more; try again later, or raise max_queue_tokens"
            )

    def has_room_for(self, request: Request) -> bool:
        """Whether the request would be admitted at once."""
        queue = self._scheduler.queues[request.priority]
        return queue.has_room_for(request, beside=self._beside(request.priority))

    def waiting_tokens(self, priority: Priority) -> int:
        """Tokens of a priority that are accepted and in no batch yet."""
        return self._scheduler.queues[priority].waiting_tokens + self._beside(priority)

    def _beside(self, priority: Priority) -> int:
        """Tokens of a priority that the scheduler is still to take in, less those it is to drop."""
        if not self.arrivals and not self._cancelled:
            return 0
        leaving = [request for request in self._leaving() if request.priority is priority]
        arriving = [request for request, _ in self.arrivals if request.priority is priority]
        more = sum(request.waiting_tokens for request in arriving if request not in leaving)
        return more - sum(request.waiting_tokens for request in leaving if request.admitted)

    def _leaving(self) -> Sequence[Request]:
        """Requests that are cancelled and have not been dropped."""
        ids = set(self._cancelled)
        arriving = [request for request, _ in self.arrivals if request.id in ids]
        return [*arriving, *(self.by_id[known] for known in ids & self.by_id.keys())]

    @property
    def cancelled_texts(self) -> int:
        """Texts that have not run, and will not, since their request was dropped or is to be."""
        return self._dropped_texts + sum(request.remaining for request in self._leaving())

    # Out of the table.

    def update(self, now_s: float) -> Ended:
        """Take in what arrived; drop what was cancelled or is late, or all of it (`abandons`).

        Returned are the dropped requests, to be ended without the lock.
        """
        while self.arrivals:
            request, chunk = self.arrivals[0]
            self.by_id[request.id] = request
            self._queries += request.priority is Priority.INTERACTIVE
            self._scheduler.submit(request, now_s, chunk)
            self.arrivals.popleft()
        ended: list[tuple[Request, MillpondError | None]] = []
        while self._cancelled:
            found = self.by_id.get(self._cancelled.popleft())
            if found is not None and self.drop(found):
                ended.append((found, None))
        for request in self._scheduler.expired(now_s):
            if self.drop(request):
                ended.append((request, request.deadline_error()))
        for request in list(self.by_id.values()) if self.abandons else ():
            if self.drop(request):
                closed = EngineClosed("the engine was closed before the call was finished")
                ended.append((request, closed))
        return ended

    def drop(self, request: Request) -> bool:
        """Have nothing more of a request planned; whether it was there, and is the caller's now."""
        if not self._take(request):
            return False
        self._dropped_texts += request.remaining
        self._scheduler.forget(request)
        return True

    def take_completed(self, requests: Iterable[Request]) -> Sequence[Request]:
        """Those of the requests with nothing left to wait for."""
        return [request for request in requests if not request.remaining and self._take(request)]

    def _take(self, request: Request) -> bool:
        if self.by_id.pop(request.id, None) is None:
            return False
        self._queries -= request.priority is Priority.INTERACTIVE
        return True

    def take_all(self) -> Sequence[Request]:
        """Everything, without asking the scheduler, which may be why all of it fails."""
        requests = self.by_id | {request.id: request for request, _ in self.arrivals}
        self.by_id, self._queries = {}, 0
        self.arrivals.clear()
        for request in requests.values():
            request.dead = True
        return list(requests.values())

    def __repr__(self) -> str:
        return f"PendingRequests({len(self)}, arrivals={len(self.arrivals)})"
