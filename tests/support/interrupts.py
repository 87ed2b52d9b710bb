"""Interrupts at exact points: wherever the interpreter would let a signal's handler run.

It looks for signals when a function begins, when a loop goes round and after a call, and nowhere
else. A trace function may raise before any operation, so it is told those points; one that stands
outside of the handler that its call is in would be none in earnest.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any


@cache
def points(code: CodeType) -> frozenset[int]:
    """Offsets of the operations before which an interrupt may come."""
    operations = list(dis.get_instructions(code))
    found = set()
    for before, after in pairwise(operations):
        if before.opname == "RESUME":
            found.add(after.offset)
            continue
        goes_back = before.opname == "JUMP_BACKWARD"
        following = before.argval if goes_back else after.offset
        looks = goes_back or before.opname.startswith("CALL")
        if looks and _handler(code, before.offset) == _handler(code, following):
            found.add(following)
    return frozenset(found)


def _handler(code: CodeType, offset: int) -> int | None:
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    return next((e.target for e in entries if e.start <= offset < e.end), None)


@contextmanager
def interrupt(
    number: int, *, within: Callable[[str], bool] = lambda file: True
) -> Iterator[Callable[[], bool]]:
    """Raise `KeyboardInterrupt` at the point of that number, on this thread, in files `within`.

    What it gives tells whether that point was reached.
    """
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "call" and not within(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in points(frame.f_code):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: left <= 0
    finally:
        sys.settrace(before)
