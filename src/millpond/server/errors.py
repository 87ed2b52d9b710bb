"""Every error response, in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`.

Routes of Text Embeddings Inference and of Cohere have the formats of those. The server raises
`ApiError`; the errors of the engine and of FastAPI are converted to one, so that official clients
raise their own typed exceptions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Receive, Scope, Send

from ..errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineFailed,
    InvalidDimensions,
    InvalidInput,
    InvalidOption,
    InvalidTokenIds,
    MillpondError,
    QueueFull,
    TextFailed,
    TextsFailed,
    TextTooLong,
    UnknownPrompt,
    UnknownTask,
    UnsupportedCall,
)
from .path_hints import meant_path

__all__ = [
    "COHERE_PATHS",
    "FOREIGN_IDS_HINT",
    "REFUSALS",
    "TEI_PATHS",
    "ApiError",
    "error_response",
    "refusal_response",
    "register_handlers",
    "shown",
]

logger = logging.getLogger("millpond.server")

FOREIGN_IDS_HINT = (
    "LangChain's OpenAIEmbeddings sends token ids of another tokenizer: give it "
    "check_embedding_ctx_length=False, and it sends texts"
)
_LONGEST_ECHO = 80  # characters of what a client sent that a response repeats
_LONGEST_MESSAGE = 2000  # characters
_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_TEI_TYPES = {
    422: "Backend",
    429: "Overloaded",
    500: "Backend",
    503: "Unhealthy",
    504: "Overloaded",
}
TEI_PATHS = ("/", "/embed", "/similarity", "/predict", "/decode", "/info")
COHERE_PATHS = ("/v1/embed", "/v2/embed")
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unknown_encoding",
}
# The first that matches: the engine's error -> status, param, code.
_FROM_ENGINE: tuple[tuple[type[MillpondError], int, str | None, str], ...] = (
    (TextTooLong, 400, "input", "context_length_exceeded"),
    (InvalidTokenIds, 400, "input", "invalid_token_ids"),
    (InvalidInput, 400, "input", "invalid_input"),
    (InvalidDimensions, 400, "dimensions", "invalid_dimensions"),
    (UnknownPrompt, 400, "prompt_name", "unknown_prompt"),
    (UnknownTask, 400, "input_type", "unknown_input_type"),
    (InvalidOption, 400, None, "invalid_option"),
    (UnsupportedCall, 400, "model", "unsupported_call"),
    (TextFailed, 422, "input", "text_failed"),
    (QueueFull, 429, None, "queue_full"),
    (DeadlineExceeded, 504, None, "timeout"),
    (EngineClosed, 503, None, "unavailable"),
    (EngineFailed, 503, None, "unavailable"),
)


class ApiError(HTTPException):
    """An error response. Its message says what to change."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail=message, headers=dict(headers or {}))
        self.code = code or _CODES.get(status)
        self.param = param

    @classmethod
    def of(cls, error: MillpondError, input_field: str = "input") -> ApiError:
        """The response for an error of the engine; about a text, it names the field."""
        for kind, status, param, code in _FROM_ENGINE:
            if isinstance(error, kind):
                message = _several(error) if isinstance(error, TextsFailed) else str(error)
                if kind is InvalidTokenIds:
                    message = f"{message}. {FOREIGN_IDS_HINT}"
                param = input_field if param == "input" else param
                return cls(status, message, code=code, param=param)
        return cls.unexpected()

    @classmethod
    def about(cls, param: str, why: str, *, code: str = "invalid_value") -> ApiError:
        """The response for a value of a field that cannot be taken."""
        return cls(400, f"{param}: {why}", param=param, code=code)

    @classmethod
    def unexpected(cls) -> ApiError:
        """For a bug of ours; the details are in the log, not in the response."""
        return cls(500, "the server failed; its log has the details", code="internal_error")


def _several(failed: TextsFailed) -> str:
    first = failed.errors[failed.index]
    return f"{len(failed.errors)} of the texts failed; the first is {first}"


def shown(sent: str, longest: int = _LONGEST_ECHO) -> str:
    """Truncated to `longest` characters."""
    return sent if len(sent) <= longest else f"{sent[:longest]}…"


class _ErrorResponse(Response):
    """In the format of the route it is sent from."""

    media_type = "application/json"

    def __init__(self, error: ApiError, body: Mapping[str, Any]) -> None:
        # It escapes lone surrogates, which a client may send.
        super().__init__(json.dumps(body), error.status_code, dict(error.headers or {}))
        # Its traceback would lead back here, and keep the request until a garbage collection.
        self._error = error.with_traceback(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path in _FORMATS:
            self = _ErrorResponse(self._error, _FORMATS[path](self._error))
        await super().__call__(scope, receive, send)


def error_response(error: ApiError) -> Response:
    """The response, `application/json`."""
    return _ErrorResponse(error, _as_openai(error))


def _as_openai(error: ApiError) -> dict[str, Any]:
    body = {
        "message": shown(error.detail, _LONGEST_MESSAGE),
        "type": _TYPES.get(error.status_code, "invalid_request_error"),
        "param": error.param,
        "code": error.code,
    }
    return {"error": body}


def _as_tei(error: ApiError) -> dict[str, Any]:
    kind = _TEI_TYPES.get(error.status_code, "Validation")
    return {"error": shown(error.detail, _LONGEST_MESSAGE), "error_type": kind}


def _as_cohere(error: ApiError) -> dict[str, Any]:
    return {"message": shown(error.detail, _LONGEST_MESSAGE)}


# Path -> the format of its errors, where it is not OpenAI's.
_FORMATS: Mapping[str, Callable[[ApiError], dict[str, Any]]] = {
    **dict.fromkeys(TEI_PATHS, _as_tei),
    **dict.fromkeys(COHERE_PATHS, _as_cohere),
}


REFUSALS = (StarletteHTTPException, MillpondError)
"""What a request may be refused with: `refusal_response` has the answer."""


def register_handlers(app: Any) -> None:
    """Convert every error of the application."""
    for kind in REFUSALS:
        app.add_exception_handler(kind, refusal_response)


async def refusal_response(request: Request, error: Exception) -> Response:
    """The response for one of `REFUSALS`."""
    if isinstance(error, ApiError):
        return error_response(error)
    if isinstance(error, MillpondError):
        return _for_engine_error(error)
    assert isinstance(error, StarletteHTTPException)
    path = shown(request.url.path)
    meant = meant_path(request.url.path)
    hint = f"did you mean {meant}?" if meant else "/docs lists the routes"
    message = {
        404: f"there is nothing at {path}; {hint}",
        405: f"{request.method} is not a method of {path}",
    }.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


def _for_engine_error(error: MillpondError) -> Response:
    answer = ApiError.of(error)
    if answer.status_code >= 500:
        logger.error("a request failed: %s: %s", type(error).__name__, error)
    return error_response(answer)
