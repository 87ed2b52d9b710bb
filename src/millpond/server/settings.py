"""Options of the server: `AppSettings` of the application, `ListenSettings` of its process.

The options of an engine are an `EngineConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..config import option, require

__all__ = ["AppSettings", "ListenSettings", "LogFormat"]

LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """Options of the application. Raises `InvalidOption` for an invalid value."""

    api_keys: tuple[str, ...] = option(
        (),
        "Key that clients must send; without any, no key is needed. Better given in the "
        "environment, MILLPOND_API_KEY, where process lists do not show it.",
        flag="--api-key",
        secret=True,
    )
    protect_metrics: bool = option(False, "Require the API key at /metrics too.")
    cors_origins: tuple[str, ...] = option(
        (), "Origin whose pages may call; * for any.", flag="--cors-origin"
    )
    root_path: str = option("", "Prefix under which a proxy publishes the server.")
    max_body_bytes: int = option(16 * 2**20, "Largest request body.")
    request_timeout_s: float = option(300.0, "Longest time for a request.")
    ignore_unknown_fields: bool = option(
        False, "Ignore unknown fields of a body instead of refusing them."
    )
    allow_raw_token_ids: bool = option(
        False, "Accept token ids without the model's special tokens around them."
    )

    def __post_init__(self) -> None:
        require(all(self.api_keys), "an API key is empty")
        require(
            all(key.isascii() and key.isprintable() and " " not in key for key in self.api_keys),
            "an API key has a character that not every client can send in a header: use letters, "
            "digits and signs of ASCII, and no spaces",
        )
        require(self.max_body_bytes >= 1, "max_body_bytes must be at least 1")
        require(
            0 < self.request_timeout_s < math.inf,
            f"request_timeout_s={self.request_timeout_s}: it is a number of seconds above 0",
        )
        require(
            not self.root_path or (self.root_path[0] == "/" and self.root_path[-1] != "/"),
            f"root_path={self.root_path!r}: it starts with a slash and does not end with one",
        )


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """Where the server listens, what it logs and how it stops."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for every one.")
    port: int = option(8000, "Port to listen on; 0 for any that is free, which the log names.")
    uds: str | None = option(None, "Unix domain socket instead of host and port.")
    ssl_certfile: str | None = option(None, "Certificate chain, to speak HTTPS.")
    ssl_keyfile: str | None = option(None, "Its private key.")
    ssl_keyfile_password: str | None = option(
        None,
        "The key's passphrase. Better given in the environment, MILLPOND_SSL_KEYFILE_PASSWORD.",
        secret=True,
    )
    idle_timeout_s: float = option(
        75.0,
        "Longest time a connection may be idle. Longer than the 60 s of most load balancers, "
        "which should be the ones to close it.",
    )
    header_timeout_s: float = option(
        30.0, "Longest time for the headers of a request, from their first byte."
    )
    drain_timeout_s: float = option(
        30.0, "Longest time to finish the accepted requests after a signal to stop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Lowest level to log.")
    log_format: Literal["text", "json"] = option("text", "Format of log lines.")

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port={self.port}: choose 0 to 65535")
        for name in ("idle_timeout_s", "header_timeout_s"):
            require(
                0 < getattr(self, name) < math.inf,
                f"{name}={getattr(self, name)}: it is a number of seconds above 0",
            )
        require(
            0 <= self.drain_timeout_s < math.inf,
            f"drain_timeout_s={self.drain_timeout_s}: it is a number of seconds, 0 or more",
        )
        require(
            bool(self.ssl_certfile) or not self.ssl_keyfile,
            "ssl_keyfile needs ssl_certfile beside it",
        )
