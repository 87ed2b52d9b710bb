"""`Recent`: what was found out for the keys asked for last, found once for each of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ..locks import fork_safe

__all__ = ["Recent"]

Key = TypeVar("Key", bound=Hashable)


Answer = TypeVar("Answer")


class Recent(Generic[Key, Answer]):
    """Answers by key, for at most `capacity` keys. Any thread may ask.

    Two threads that ask for a new key at once may both find it out; the answer is the same.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._lock = fork_safe(threading.Lock())
        self._answers: OrderedDict[Key, Answer] = OrderedDict()  # of this object, under the lock

    def __repr__(self) -> str:
        return f"Recent(answers={len(self._answers)}, capacity={self._capacity})"

    def get(self, key: Key, find: Callable[[], Answer]) -> Answer:
        """The answer for `key`, found out without the lock if it is not known."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        found = find()
        with self._lock:
            self._answers[key] = found
            while len(self._answers) > self._capacity:
                self._answers.popitem(last=False)
        return found
