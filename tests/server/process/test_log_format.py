"""The access log's lines are written together, in order, soon, and none is lost."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import pytest

from millpond.server.process.log_format import BATCH_S, MOST_LINES, BatchedHandler


class Stream(io.StringIO):
    """Counts how often it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        self.writes += 1
        self.written.set()
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def access(stream: Stream) -> Iterator[logging.Logger]:
    """The access log, and its parent, with one handler of ours."""
    parent, handler = logging.getLogger("millpond"), BatchedHandler(stream)
    before = parent.level
    parent.addHandler(handler)
    parent.setLevel(logging.INFO)
    yield logging.getLogger("millpond.access")
    parent.removeHandler(handler)
    parent.setLevel(before)


def test_lines_on_an_event_loop_are_written_together_and_soon(
    access: logging.Logger, stream: Stream
) -> None:
    async def run() -> None:
        for number in range(3):
            access.info("request %d", number)
        assert stream.writes == 0
        await asyncio.wait_for(stream.written.wait(), 10)
        stream.written.clear()
        access.info("request 3")
        await asyncio.wait_for(stream.written.wait(), 10)

    asyncio.run(run())
    assert stream.getvalue() == "".join(f"request {number}\n" for number in range(4))
    assert stream.writes == 2


def test_any_other_line_is_written_at_once_after_those_before_it(
    access: logging.Logger, stream: Stream
) -> None:
    async def run() -> None:
        access.info("request")
        logging.getLogger("millpond.server").warning("draining")
        assert stream.getvalue() == "request\ndraining\n"

    asyncio.run(run())
    assert stream.writes == 1


def test_many_lines_do_not_wait(access: logging.Logger, stream: Stream) -> None:
    async def run() -> None:
        for _ in range(MOST_LINES):
            access.info("request")
        assert stream.getvalue().count("\n") == MOST_LINES

    asyncio.run(run())
    assert stream.writes == 1


def test_without_an_event_loop_a_line_is_written_at_once(
    access: logging.Logger, stream: Stream
) -> None:
    access.info("request")
    assert stream.getvalue() == "request\n"


def test_lines_that_a_loop_left_behind_are_written_at_the_end(
    access: logging.Logger, stream: Stream
) -> None:
    async def run() -> None:
        access.info("request")

    asyncio.run(run())
    assert stream.writes == 0
    assert access.parent is not None
    batched = (one for one in access.parent.handlers if isinstance(one, BatchedHandler))
    (handler,) = (one for one in batched if one.stream is stream)
    assert repr(handler) == "BatchedHandler(lines=1, scheduled=True)"
    handler.flush()  # as `logging.shutdown` does
    assert stream.getvalue() == "request\n"


def test_a_stream_that_is_gone_raises_nothing(access: logging.Logger, stream: Stream) -> None:
    errors: list[object] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        access.info("request")
        stream.close()
        passed = asyncio.Event()
        loop.call_later(2 * BATCH_S, passed.set)
        await passed.wait()

    asyncio.run(run())
    assert errors == []
