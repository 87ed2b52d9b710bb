"""`JsonRoute`: a route whose body is one JSON object, parsed and validated here.

FastAPI only documents it: it would resolve dependencies for every call, which these routes do not
have. Of an invalid body only the first error is reported.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import REFUSALS, ApiError, refusal_response, shown
from ..schemas.embeddings import MAX_INPUTS, UNKNOWN_FIELD, EmbeddingRequest, RequestBody
from ..schemas.foreign_fields import translate

__all__ = ["DirectRoutes", "JsonRoute", "Kinds", "parsed_body"]

Kinds = tuple[type[RequestBody], ...]
"""The bodies that a route takes: the first that says it is meant, or else the first."""

_LONGEST_TYPO = 40  # finding a similar name takes time that grows with its length
_ADVICE = "Send one JSON object in UTF-8, as Content-Type: application/json"
_UNITS = {"too_long": "items", "string_too_long": "characters"}
_INPUT_KINDS = "it is a text, a list of texts, the token ids of one text, or a list of those"


class JsonRoute(APIRoute):
    """Its endpoint takes `body`, a `RequestBody` or a union of them, and `request`, and returns
    the `Response`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        hint = typing.get_type_hints(endpoint)["body"]
        self._kinds: Kinds = typing.get_args(hint) or (hint,)
        self.app = self.answer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a POST to its path, also what is refused."""
        request = Request(scope, receive, send)
        try:
            response = await self._response(request)
        except REFUSALS as error:
            response = await refusal_response(request, error)
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        state = request.app.state
        body = await state.body_parser.parse(
            self._kinds,
            await _chunks(request.receive),
            content_type=request.headers.get("content-type", "application/json"),
            ignore_unknown=state.settings.ignore_unknown_fields,
        )
        response: Response = await self.endpoint(body=body, request=request)
        return response


async def _chunks(receive: Receive) -> Sequence[bytes]:
    """The body as it comes. Raises `ClientDisconnect`."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks


class DirectRoutes:
    """The innermost middleware: what is sent to the path of a `JsonRoute` goes there at once.

    FastAPI compares its path with each route's, and gets ready for dependencies and files, which
    these routes do not have.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if isinstance(route, JsonRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["method"] == "POST" and not scope.get("root_path")
        route = self._routes.get(scope["path"]) if is_post else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        await route.answer(scope, receive, send)

    def __repr__(self) -> str:
        return f"DirectRoutes({sorted(self._routes)})"


def parsed_body(
    kinds: Kinds, content: bytes, *, content_type: str, ignore_unknown: bool
) -> RequestBody:
    """Raises `ApiError` 400 for an invalid body, or 413 for too many inputs."""
    media_type = content_type.partition(";")[0].strip().lower()
    if not (media_type == "application/json" or media_type.endswith("+json")):
        raise _unreadable(f"it was sent as {shown(media_type)}")
    return _validated(kinds, _parsed(content), ignore_unknown=ignore_unknown)


def _parsed(content: bytes) -> Any:
    """Raises `ApiError` 400 for what is not JSON."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise _unreadable(str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable("it is not UTF-8") from error
    except RecursionError as error:
        raise _unreadable("it is nested too deeply") from error
    except ValueError as error:  # int() refuses thousands of digits
        raise _unreadable("a number in it is too long") from error


def _unreadable(why: str) -> ApiError:
    return ApiError(400, f"the body is not JSON: {why}. {_ADVICE}", code="bad_json")


def _validated(kinds: Kinds, value: Any, *, ignore_unknown: bool) -> RequestBody:
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is not a JSON object. {_ADVICE}", code="bad_json")
    kind = next((kind for kind in kinds if kind.is_meant_by(value)), kinds[0])
    translated = translate(value, kind.FOREIGN)
    body = translated.body
    if ignore_unknown:
        body = {name: body[name] for name in body if name in kind.model_fields}
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise _refusal(kind, problem, translated.client_names) from error


def _refusal(
    kind: type[RequestBody], problem: Mapping[str, Any], client_names: Mapping[str, str]
) -> ApiError:
    """Only names of what the client sent are repeated, truncated."""
    found = problem["type"]
    if found == UNKNOWN_FIELD:
        name = problem["ctx"]["name"]
        message = f"{shown(name)} is unknown{_did_you_mean(name, kind)}"
        return ApiError(400, message, param=shown(name), code="unknown_parameter")
    param = _named(problem["loc"])
    if found in ("missing", "extra_forbidden") and len(problem["loc"]) > 1:  # in an object
        param = f"{param}.{problem['loc'][-1]}"
    param = client_names.get(param, param)
    if found == "too_long" and problem["ctx"]["max_length"] == MAX_INPUTS:
        items = f"{param.removesuffix('s')}s"
        return ApiError(
            413, f"at most {MAX_INPUTS} {items} a request; send several requests", param=param
        )
    if found in _UNITS:
        most = problem["ctx"]["max_length"]
        message = f"{param}: at most {most} {_UNITS[found]}; send a part of it"
        return ApiError(413, message, param=param)
    text = _INPUT_KINDS if found == "list_type" and kind is EmbeddingRequest else problem["msg"]
    return ApiError.about(param, text)


def _named(place: Sequence[str | int]) -> str:
    """`("input", "texts", 3)` is `input[3]`: the rest are branches of our union."""
    return str(place[0]) + "".join(f"[{step}]" for step in place[1:] if isinstance(step, int))


def _did_you_mean(name: str, kind: type[RequestBody]) -> str:
    if len(name) > _LONGEST_TYPO:
        return ""
    close = difflib.get_close_matches(name, kind.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""
