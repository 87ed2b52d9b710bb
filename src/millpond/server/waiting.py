"""Waiting for an engine's answer while the client may hang up."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..embeddings import Embeddings

__all__ = ["answer_or_hang_up"]


async def answer_or_hang_up(future: Future[Embeddings], receive: Receive) -> Embeddings:
    """The result of a submitted call whose request body has been read.

    Raises the call's error, and `ClientDisconnect` when the client is gone. Whatever ends the
    wait, a call that is not done is cancelled: its texts are taken out before the next forward.
    """
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_hung_up(receive))
    either: tuple[asyncio.Future[Any], ...] = (answer, gone)
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        future.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
