"""Waiting for an engine's result while the client may disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from ...engine.calls.loop_results import awaitable
from ...outputs import CallResult

__all__ = ["ON_DISCONNECT", "result_or_disconnect"]

ON_DISCONNECT = "millpond.on_disconnect"
"""In the scope of a request that came over our own connection: a function that takes what to call
once its client is gone, or None to call nothing any more."""

Result = TypeVar("Result", bound=CallResult)


async def result_or_disconnect(future: Future[Result], scope: Scope, receive: Receive) -> Result:
    """The result of a submitted call whose request body has been read.

    Raises the call's error, and `ClientDisconnect` when the client is gone. However the
    wait ends, a call that is not done is cancelled: its texts leave the queue.
    """
    answer = awaitable(future)
    is_gone = False

    def give_up() -> None:
        nonlocal is_gone
        is_gone = True
        answer.cancel()

    stop_watching = _watch(give_up, scope, receive)
    try:
        result: Result = await answer
        return result
    except asyncio.CancelledError:
        if is_gone:
            raise ClientDisconnect from None
        raise
    finally:
        stop_watching()
        future.cancel()


def _watch(give_up: Callable[[], object], scope: Scope, receive: Receive) -> Callable[[], object]:
    """Have `give_up` called if the client disconnects, until what is returned is called.

    Our own connection does it. Others say so to a task that asks.
    """
    if (on_disconnect := scope.get(ON_DISCONNECT)) is not None:
        on_disconnect(give_up)
        return partial(on_disconnect, None)
    return asyncio.ensure_future(_call_when_disconnected(give_up, receive)).cancel


async def _call_when_disconnected(give_up: Callable[[], object], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    give_up()
