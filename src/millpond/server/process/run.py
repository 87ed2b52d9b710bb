"""`run`: the server process, from loading the models to the last response.

Sockets, signals and the garbage collector are set up here, not by the application.
"""

from __future__ import annotations

import asyncio
import gc
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

from ...config import EngineConfig, EngineOptions
from ...engine.engine import Engine
from ...errors import InvalidOption
from ..app import create_app
from ..drain import DrainState
from ..models import ServedModel
from ..settings import AppSettings, ListenSettings
from ..tracing import Tracing
from .connection import HttpConnection
from .log_format import configure_logging
from .sockets import Listener

__all__ = ["DrainingServer", "ModelPlan", "run"]

logger = logging.getLogger("millpond.server")

OBJECTS_PER_COLLECTION = 10_000  # of seventy requests in progress, and a few MB
LAST_RESPONSES_S = 5.0  # for clients to read their responses, after the drain time


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A model to load and the names to serve it under, without any its own."""

    model: str
    options: EngineOptions
    names: tuple[str, ...] = ()


def run(plans: Sequence[ModelPlan], app_settings: AppSettings, listen: ListenSettings) -> int:
    """Load the models, serve them until a signal, and return the exit status.

    0 when every accepted request was answered, 1 when the drain time was too short. Raises
    `MillpondError` for a model or an option, and `OSError` for an address or a certificate.
    """
    for plan in plans:  # invalid options are reported before minutes of loading
        EngineConfig.of(plan.model, plan.options)
    configure_logging(listen.log_level, listen.log_format)
    signal.signal(
        signal.SIGTERM, _stop_loading
    )  # a container's first process has no default handler
    if handles_sighup := _handles_sighup():
        signal.signal(signal.SIGHUP, _stop_loading)
    tracing = Tracing.of_environment(os.environ)
    with ExitStack() as stack:
        if tracing is not None:
            stack.callback(tracing.close)
        listener = stack.enter_context(Listener.bind(listen))
        _require_certificate(listen)
        models = [_load(plan, stack) for plan in plans]
        drain = DrainState()
        app = create_app(models, app_settings, drain=drain, tracing=tracing)
        server = DrainingServer(_uvicorn_config(app, listen), models, drain, listen)
        _spare_collections()
        if handles_sighup:
            signal.signal(signal.SIGHUP, server.handle_hangup)
        listener.require_ours()
        server.run(sockets=[listener.socket])
    return 1 if server.abandoned else 0


def _handles_sighup() -> bool:
    """Whether SIGHUP stops the server: not on Windows, and not under nohup."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def _stop_loading(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _spare_collections() -> None:
    """Leave what exists now out of garbage collections, and have few of them.

    A full collection of the objects of torch and transformers holds every thread for 0.2 s. What
    requests leave behind is freed without one; collections at Python's own threshold, which five
    requests in progress exceed, took a tenth of the event loop's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION)


def _load(plan: ModelPlan, stack: ExitStack) -> ServedModel:
    logger.info("loading %s", plan.model)
    engine = Engine(plan.model, **plan.options)
    stack.callback(engine.close, drain=False)  # every request has been answered by then
    return ServedModel.of(engine, plan.names)


def _require_certificate(listen: ListenSettings) -> None:
    if listen.ssl_certfile is None:
        return
    passphrase = listen.ssl_keyfile_password

    def password() -> str:  # called for an encrypted key, instead of a prompt on the terminal
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
        # uvicorn's own limit, well after ours.
        timeout_graceful_shutdown=int(listen.drain_timeout_s + 2 * LAST_RESPONSES_S),
    )


class DrainingServer(uvicorn.Server):
    """A signal makes it finish the accepted requests; a second one ends it at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        models: Sequence[ServedModel],
        drain: DrainState,
        listen: ListenSettings,
    ) -> None:
        super().__init__(config)
        self.abandoned = False  # whether the drain time ended with requests unanswered
        self._models = tuple(models)
        self._drain = drain
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
        """Called by uvicorn for SIGTERM and SIGINT. Not passed on to uvicorn, which would raise the
        signal again at the end and so replace the exit status."""
        if self.should_exit:
            os._exit(128 + sig)
        self._drain.draining = True
        self.should_exit = True

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """The terminal is gone. Shells send the signal twice, so a second one changes nothing."""
        self._drain.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listening sockets and wait for the responses, up to the drain time."""
        logger.info("draining: no new requests are accepted")
        loop = asyncio.get_running_loop()
        drain_s = self._listen.drain_timeout_s
        limits = (
            loop.call_later(drain_s, self._abandon),
            loop.call_later(drain_s + LAST_RESPONSES_S, self._disconnect),
        )
        await super().shutdown(sockets)
        for limit in limits:
            limit.cancel()
        logger.info("stopped")

    def _abandon(self) -> None:
        """Answer the remaining requests with a 503, also those that are still arriving."""
        connections = [one for one in self.server_state.connections if not _is_closing(one)]
        if connections:
            self.abandoned = True
            logger.warning("the drain time is over with %d requests unanswered", len(connections))
        self._drain.end()

    def _disconnect(self) -> None:
        """Abort the connections of clients that do not read their responses."""
        connections = list(self.server_state.connections)
        if not connections:
            return
        self.abandoned = True
        logger.warning("%d clients did not read their responses", len(connections))
        for connection in connections:
            connection.transport.abort()

    def __repr__(self) -> str:
        return f"DrainingServer(models={len(self._models)}, draining={self.should_exit})"


def _is_closing(connection: Any) -> bool:
    """Whether its last response has been written."""
    return bool(connection.transport.is_closing())


def _engine_line(engine: Engine) -> str:
    info = engine.info()
    gives = f"{info.dimension} dimensions" if info.kind == "embed" else ", ".join(info.labels[:5])
    return f"{info.device} in {info.dtype}, {info.execution}, {info.kind}: {gives}"
