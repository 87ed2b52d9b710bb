"""`APIKeyMiddleware`: requests without a valid API key are refused, but on open paths."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError, error_response

__all__ = ["APIKeyMiddleware", "declare_key"]

_SCHEME = "bearer"


class APIKeyMiddleware:
    """Passes a request with `Authorization: Bearer KEY`, or to an open path, or one for a page.

    A page holds nothing of the server, and asks for the key itself. Digests of the keys are
    compared in constant time.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        open_paths: Sequence[str],
        open_pages: Sequence[str] = (),
    ) -> None:
        self._app = app
        self._open_pages = frozenset(open_pages)
        self._digests = [_digest(key) for key in keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        refusal = ApiError(
            401,
            "the API key is missing or wrong; send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await error_response(refusal)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        is_page = scope["method"] == "GET" and path in self._open_pages
        return is_page or path in self._open_paths

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # All are compared, also after a match.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == _SCHEME and any(matches)

    def __repr__(self) -> str:
        return f"APIKeyMiddleware(keys={len(self._digests)}, open_paths={sorted(self._open_paths)})"


def declare_key(document: dict[str, Any], *, open_paths: Sequence[str]) -> None:
    """Say in an OpenAPI document that every path but these needs a key."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"HTTPBearer": {"type": "http", "scheme": _SCHEME}}
    document["security"] = [{"HTTPBearer": []}]
    for path in open_paths:
        for operation in document["paths"][path].values():
            operation["security"] = []


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
