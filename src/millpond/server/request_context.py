"""`RequestContext`: one request and its response, as the access log and the metrics see them."""

from __future__ import annotations

import os
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from .errors import shown

__all__ = ["CLIENT_CLOSED_REQUEST", "RequestContext"]

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected; in log and metrics
_LONGEST_PATH = 500  # characters of a path in a log line
_SCOPE_KEY = "millpond.context"
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_ids = random.Random()  # os.urandom for every request is slow
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.seed)


@dataclass
class RequestContext:
    """Written by the task of its request alone."""

    scope: Scope
    request_id: str
    path: str
    """As sent by the client."""
    accepted: bool = True
    """Whether it began before the server was told to stop."""
    started_s: float = field(default_factory=time.perf_counter)
    status: int | None = None
    """None until the response starts."""
    log_fields: dict[str, Any] = field(default_factory=dict)
    """What the route adds to the log line."""

    @classmethod
    def begin(cls, scope: Scope, *, accepted: bool) -> RequestContext:
        """With the client's x-request-id where it is valid in a header and a log line."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        usable = _USABLE_ID.fullmatch(given)
        request_id = given.decode("ascii") if usable else f"{_ids.getrandbits(128):032x}"
        context = cls(scope, request_id, scope["path"], accepted)
        scope[_SCOPE_KEY] = context
        return context

    def end(self) -> None:
        """Leave the scope, as the two would keep each other until a garbage collection."""
        del self.scope[_SCOPE_KEY]

    @staticmethod
    def of(scope: Scope) -> RequestContext:
        """That of the request with this scope."""
        context: RequestContext = scope[_SCOPE_KEY]
        return context

    @property
    def seconds(self) -> float:
        """Since the request began."""
        return time.perf_counter() - self.started_s

    @property
    def route(self) -> str:
        """The path template of the OpenAPI document, `unmatched` for other paths."""
        path: str = getattr(self.scope.get("route"), "path", "unmatched")
        return path

    def fields(self) -> dict[str, Any]:
        """The log line's fields."""
        client = self.scope.get("client")
        return {
            "request_id": self.request_id,
            "client": client[0] if client else "local",
            "method": self.scope["method"],
            "path": shown(self.path, _LONGEST_PATH),
            "status": self.status,
            "ms": round(self.seconds * 1000, 2),
            **self.log_fields,
        }
