"""Waiting for an engine's result while the client may disconnect."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ...outputs import CallResult

__all__ = ["result_or_disconnect"]

Result = TypeVar("Result", bound=CallResult)


async def result_or_disconnect(future: Future[Result], receive: Receive) -> Result:
    """The result of a submitted call whose request body has been read.

    Raises the call's error, and `ClientDisconnect` when the client is gone. However the
    wait ends, a call that is not done is cancelled: its texts leave the queue.
    """
    answer = asyncio.wrap_future(future)
    watching = asyncio.ensure_future(_cancel_when_disconnected(receive, answer))
    try:
        return await answer
    except asyncio.CancelledError:
        if watching.done() and not watching.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
        future.cancel()


async def _cancel_when_disconnected(receive: Receive, answer: asyncio.Future[Result]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()
