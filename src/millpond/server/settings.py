"""Options of the server: `AppSettings` of the application, `ListenSettings` of its process.

The options of an engine are an `EngineConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import InvalidOption

__all__ = ["AppSettings", "ListenSettings", "LogFormat"]

LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """Options of the application. Raises `InvalidOption` for an invalid value."""

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Requests must send one of them; without any, no key is needed."""
    protect_metrics: bool = False
    """Whether `/metrics` needs a key too."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; `*` for any."""
    root_path: str = ""
    """The prefix under which a proxy publishes the server."""
    max_body_bytes: int = 16 * 2**20
    request_timeout_s: float = 300.0
    ignore_unknown_fields: bool = False
    """Ignore unknown fields of a body instead of refusing them."""
    allow_raw_token_ids: bool = False
    """Accept token ids without the model's special tokens around them."""

    def __post_init__(self) -> None:
        _require(all(self.api_keys), "an API key is empty")
        _require(
            all(key.isascii() and key.isprintable() and " " not in key for key in self.api_keys),
            "an API key has a character that not every client can send in a header: use letters, "
            "digits and signs of ASCII, and no spaces",
        )
        _require(self.max_body_bytes >= 1, "max_body_bytes must be at least 1")
        _require(
            0 < self.request_timeout_s < math.inf,
            f"request_timeout_s={self.request_timeout_s}: it is a number of seconds above 0",
        )
        _require(
            not self.root_path or (self.root_path[0] == "/" and self.root_path[-1] != "/"),
            f"root_path={self.root_path!r}: it starts with a slash and does not end with one",
        )


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """Where the server listens, what it logs and how it stops."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any free port, which the log names."""
    uds: str | None = None
    """Path of a Unix domain socket, instead of host and port."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    idle_timeout_s: float = 75.0
    """Longest time a connection may be idle. Longer than the 60 s of most load balancers, which
    should be the ones to close it."""
    header_timeout_s: float = 30.0
    """Longest time the headers of a request may take, from their first byte."""
    drain_timeout_s: float = 30.0
    """Longest time to finish the accepted requests after a signal to stop."""
    log_level: str = "info"
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, f"port={self.port}: choose 0 to 65535")
        for name in ("idle_timeout_s", "header_timeout_s"):
            _require(
                0 < getattr(self, name) < math.inf,
                f"{name}={getattr(self, name)}: it is a number of seconds above 0",
            )
        _require(
            0 <= self.drain_timeout_s < math.inf,
            f"drain_timeout_s={self.drain_timeout_s}: it is a number of seconds, 0 or more",
        )
        _require(
            bool(self.ssl_certfile) or not self.ssl_keyfile,
            "ssl_keyfile needs ssl_certfile beside it",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidOption(message)
