"""Waiting for an engine's answer while the client may hang up."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ...embeddings import Embeddings

__all__ = ["answer_or_hang_up"]


async def answer_or_hang_up(future: Future[Embeddings], receive: Receive) -> Embeddings:
    """The result of a submitted call whose request body has been read.

    Raises the call's error, and `ClientDisconnect` when the client is gone. Whatever ends the
    wait, a call that is not done is cancelled: its texts are taken out before the next forward.
    """
    answer = asyncio.wrap_future(future)
    watching = asyncio.ensure_future(_end_when_hung_up(receive, answer))
    try:
        return await answer
    except asyncio.CancelledError:
        if watching.done() and not watching.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
        future.cancel()


async def _end_when_hung_up(receive: Receive, answer: asyncio.Future[Embeddings]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()
