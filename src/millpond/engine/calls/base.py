"""`Calls`: what every call of an engine does, whatever it asks of the model: send and wait."""

from __future__ import annotations

import asyncio
import weakref
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Protocol

from ...errors import DeadlineExceeded, EngineClosed
from ...scheduler.request import Request
from ..inputs import InputProcessor
from ..instance import ModelInstance
from ..params.embed import EmbedParams, TextsInput
from .loop_results import awaitable
from .submission import Submission

__all__ = ["Calls", "MakeRequest"]


class MakeRequest(Protocol):
    """Makes the request of a call, and says whether it is for a single text."""

    def __call__(self, *, now_s: float) -> tuple[Request, bool]:
        """On the engine's clock."""


class Waitable(Protocol):
    """A request, or what stands for several."""

    @property
    def future(self) -> Any: ...

    def deadline_error(self) -> DeadlineExceeded:
        """Its time is over."""


class Calls:
    """Sends requests to a model instance that is held, and waits for their results."""

    _instance: ModelInstance
    _release: weakref.finalize[Any, Any]  # alive as long as the instance is held

    @property
    def _inputs(self) -> InputProcessor:
        return self._instance.inputs

    def _send(
        self, make: MakeRequest, *, wait: bool = True, block: bool = False, inline: bool = False
    ) -> tuple[Request, bool]:
        if not self._release.alive:
            raise EngineClosed("the engine is closed; make a new one")
        core = self._instance.core
        request, single = make(now_s=core.clock())
        Submission(core, request, wait=wait, block=block, inline=inline).run()
        return request, single

    def _send_texts(
        self,
        texts: TextsInput,
        params: EmbedParams,
        *,
        call: str = "embed",
        strict: bool = False,
        several: bool = False,
        **how: bool,
    ) -> tuple[Request, bool]:
        """Send what a call of that name makes of texts. With `several` a string is no text."""
        make = partial(
            self._instance.inputs.request,
            *(texts, params),
            strict=strict,
            several=several,
            call=call,
        )
        return self._send(make, **how)

    def _wait(self, request: Waitable, timeout: float | None) -> Any:
        try:
            if not request.future.done():
                self._instance.core.own_threads.require_another()
            return request.future.result(timeout)
        except FutureTimeout:  # an error of the request may be one too
            if request.future.cancel():
                raise request.deadline_error() from None
            return request.future.result()
        except BaseException:
            request.future.cancel()
            raise

    async def _await(self, request: Waitable, timeout: float | None) -> Any:
        try:
            if not request.future.done():
                self._instance.core.own_threads.require_another()
            waiting = awaitable(request.future)
            if timeout is not None:
                done, _ = await asyncio.wait({waiting}, timeout=float(timeout))
                if not done and request.future.cancel():
                    raise request.deadline_error()
            return await waiting
        except BaseException:
            request.future.cancel()
            raise
