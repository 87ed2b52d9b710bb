"""`run`: the server as a process, from loading the models to the last answer.

The application knows nothing of sockets and signals; they are here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from ..config import EngineConfig, EngineOptions
from ..engine.engine import Engine
from ..errors import InvalidOption
from .app import create_app
from .connection import HttpConnection
from .drain import DrainState
from .log_format import configure_logging
from .models import ServedModel
from .settings import AppSettings, ListenSettings
from .sockets import Listener

__all__ = ["DrainingServer", "ModelPlan", "run"]

logger = logging.getLogger("millpond.server")

LAST_ANSWERS_S = 5.0  # for answers to be read, those to who is cut off among them


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A model to load, and the names to serve it under; none for its own."""

    model: str
    options: EngineOptions
    names: tuple[str, ...] = ()


def run(plans: Sequence[ModelPlan], app_settings: AppSettings, listen: ListenSettings) -> int:
    """Load the models, serve them until a signal comes, and give the exit status.

    0 when everything accepted was answered, 1 when the drain time did not suffice. Raises
    `MillpondError` for a model or an option, and `OSError` for an address or a certificate.
    """
    for plan in plans:  # mistakes in options are found before minutes of loading
        EngineConfig.of(plan.model, plan.options)
    configure_logging(listen.log_level, listen.log_format)
    signal.signal(signal.SIGTERM, _stop_loading)  # the first process of a container ignores it
    if hears_hangups := _hears_hangups():
        signal.signal(signal.SIGHUP, _stop_loading)
    with ExitStack() as stack:
        listener = stack.enter_context(Listener.bind(listen))
        _require_certificate(listen)
        models = [_load(plan, stack) for plan in plans]
        lifecycle = DrainState()
        app = create_app(models, app_settings, lifecycle=lifecycle)
        server = DrainingServer(_uvicorn_config(app, listen), models, lifecycle, listen)
        if hears_hangups:
            signal.signal(signal.SIGHUP, server.handle_hangup)
        listener.require_ours()
        server.run(sockets=[listener.socket])
    return 1 if server.abandoned else 0


def _hears_hangups() -> bool:
    """Whether its terminal's end is its own: not on Windows, and not under nohup."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def _stop_loading(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _load(plan: ModelPlan, stack: ExitStack) -> ServedModel:
    logger.info("loading %s", plan.model)
    engine = Engine(plan.model, **plan.options)
    stack.callback(engine.close, drain=False)  # what was accepted has been answered by then
    return ServedModel.of(engine, plan.names)


def _require_certificate(listen: ListenSettings) -> None:
    if listen.ssl_certfile is None:
        return
    passphrase = listen.ssl_keyfile_password

    def password() -> str:  # asked for where the key is encrypted, and else on the terminal
        if not passphrase:
            raise InvalidOption(
                f"the key in {listen.ssl_keyfile or listen.ssl_certfile} has a passphrase: give "
                "it in MILLPOND_SSL_KEYFILE_PASSWORD, or with --ssl-keyfile-password"
            )
        return passphrase

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(listen.ssl_certfile, listen.ssl_keyfile, password)
    except OSError as error:
        hint = "" if passphrase is None else ". The passphrase may be wrong"
        raise InvalidOption(
            f"no certificate can be read from {listen.ssl_certfile}: "
            f"{error.strerror or error}{hint}"
        ) from error


def _uvicorn_config(app: object, listen: ListenSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        ssl_certfile=listen.ssl_certfile,
        ssl_keyfile=listen.ssl_keyfile,
        ssl_keyfile_password=listen.ssl_keyfile_password,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=partial(HttpConnection, header_timeout_s=listen.header_timeout_s),  # type: ignore[arg-type]
        timeout_keep_alive=listen.idle_timeout_s,  # type: ignore[arg-type]
        # uvicorn's own end, far behind ours.
        timeout_graceful_shutdown=int(listen.drain_timeout_s + 2 * LAST_ANSWERS_S),
    )


class DrainingServer(uvicorn.Server):
    """Told to stop, it answers what it accepted; told a second time, it is gone at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        models: Sequence[ServedModel],
        lifecycle: DrainState,
        listen: ListenSettings,
    ) -> None:
        super().__init__(config)
        self.abandoned = False  # whether the drain time passed with answers owing
        self._models = tuple(models)
        self._lifecycle = lifecycle
        self._listen = listen

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for model in self._models:
            logger.info("serving %s on %s", " and ".join(model.names), _engine_line(model.engine))
        logger.info("ready at %s", self._address(sockets))

    def _address(self, sockets: list[socket.socket] | None) -> str:
        assert sockets is not None
        if self._listen.uds is not None:
            return f"unix:{self._listen.uds}"
        scheme = "https" if self._listen.ssl_certfile else "http"
        host, port = sockets[0].getsockname()[:2]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook for SIGTERM and SIGINT. Not noted with uvicorn, which would raise the
        signal again at the end and so hide the exit status."""
        if self.should_exit:
            os._exit(128 + sig)
        self._lifecycle.draining = True
        self.should_exit = True

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Its terminal is gone. A shell sends the signal a second time, which means no more."""
        self._lifecycle.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of the sockets and wait for the answers, for so long."""
        logger.info("draining: no more requests are taken")
        loop = asyncio.get_running_loop()
        drain_s = self._listen.drain_timeout_s
        limits = (
            loop.call_later(drain_s, self._abandon),
            loop.call_later(drain_s + LAST_ANSWERS_S, self._hang_up),
        )
        await super().shutdown(sockets)
        for limit in limits:
            limit.cancel()
        logger.info("stopped")

    def _abandon(self) -> None:
        """Answer every request that is left with a 503, those that are still arriving too."""
        connections = [one for one in self.server_state.connections if not _is_closing(one)]
        if connections:
            self.abandoned = True
            logger.warning("the drain time is over with %d requests unanswered", len(connections))
        self._lifecycle.end()

    def _hang_up(self) -> None:
        """On clients that do not read what they were answered."""
        connections = list(self.server_state.connections)
        if not connections:
            return
        self.abandoned = True
        logger.warning("%d clients did not read their answers", len(connections))
        for connection in connections:
            connection.transport.abort()

    def __repr__(self) -> str:
        return f"DrainingServer(models={len(self._models)}, draining={self.should_exit})"


def _is_closing(connection: Any) -> bool:
    """Whether its last answer has been written."""
    return bool(connection.transport.is_closing())


def _engine_line(engine: Engine) -> str:
    info = engine.info()
    return f"{info.device} in {info.dtype}, {info.execution}, {info.dimension} dimensions"
