"""`JsonRoute`: a route whose body is one JSON object, parsed and validated here.

FastAPI only documents it: it would resolve dependencies for every call, which these routes do not
have. Of an invalid body only the first error is reported.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from ..errors import ApiError, shown
from ..schemas.embeddings import MAX_INPUTS, UNKNOWN_FIELD, EmbeddingRequest, RequestBody
from ..schemas.foreign_fields import translate

__all__ = ["JsonRoute", "Kinds", "parsed_body"]

Kinds = tuple[type[RequestBody], ...]
"""The bodies that a route takes: the first that says it is meant, or else the first."""

_LONGEST_TYPO = 40  # finding a similar name takes time that grows with its length
_ADVICE = "Send one JSON object in UTF-8, as Content-Type: application/json"
_UNITS = {"too_long": "items", "string_too_long": "characters"}
_INPUT_KINDS = "it is a text, a list of texts, the token ids of one text, or a list of those"


class JsonRoute(APIRoute):
    """Its endpoint takes `body`, a `RequestBody` or a union of them, and `request`, and returns
    the `Response`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        hint = typing.get_type_hints(endpoint)["body"]
        kinds: Kinds = typing.get_args(hint) or (hint,)

        async def handle(request: Request) -> Response:
            body = await request.app.state.body_parser.parse(
                kinds,
                [chunk async for chunk in request.stream()],
                content_type=request.headers.get("content-type", "application/json"),
                ignore_unknown=request.app.state.settings.ignore_unknown_fields,
            )
            answer: Response = await endpoint(body=body, request=request)
            return answer

        return handle


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
