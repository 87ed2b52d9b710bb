"""`JsonRoute`: a route whose body is one JSON object, read and checked here.

FastAPI has the document of it. What it would do for every call is more than these routes need:
they have no dependencies, and only the first mistake of a body is told.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from ..errors import ApiError, shown
from ..schemas import MAX_INPUTS, UNKNOWN_FIELD, EmbeddingRequest
from .foreign_fields import Translated, translate

__all__ = ["JsonRoute"]

_LONGEST_TYPO = 40  # looking for what was meant takes time that grows with the name


_ADVICE = "Send one JSON object in UTF-8, as Content-Type: application/json"


_UNITS = {"too_long": "items", "string_too_long": "characters"}


_INPUT_KINDS = "it is a text, a list of texts, the token ids of one text, or a list of those"


class JsonRoute(APIRoute):
    """Its endpoint takes `body`, a model of pydantic's, and `request`, and gives the `Response`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        kind: type[BaseModel] = typing.get_type_hints(endpoint)["body"]

        async def handle(request: Request) -> Response:
            value = _parsed(await request.body(), request.headers)
            ignore_unknown = request.app.state.ignore_unknown_fields
            body = _checked(kind, value, ignore_unknown=ignore_unknown)
            answer: Response = await endpoint(body=body, request=request)
            return answer

        return handle


def _parsed(content: bytes, headers: Mapping[str, str]) -> Any:
    """Raises `ApiError` 400 for what is not JSON."""
    # Who names no type sends JSON.
    sent_as = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if not (sent_as == "application/json" or sent_as.endswith("+json")):
        raise _unreadable(f"it was sent as {shown(sent_as)}")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise _unreadable(str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable("it is not UTF-8") from error
    except RecursionError as error:
        raise _unreadable("it is nested too deeply") from error
    except ValueError as error:  # Python makes no integer of thousands of digits
        raise _unreadable("a number in it is too long") from error


def _unreadable(why: str) -> ApiError:
    return ApiError(400, f"the body is not JSON: {why}. {_ADVICE}", code="bad_json")


def _checked(kind: type[BaseModel], value: Any, *, ignore_unknown: bool) -> BaseModel:
    """Raises `ApiError` 400, or 413 for too many inputs."""
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is not a JSON object. {_ADVICE}", code="bad_json")
    said = translate(value) if kind is EmbeddingRequest else Translated(value, {})
    body = said.body
    if ignore_unknown:
        body = {name: body[name] for name in body if name in kind.model_fields}
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise _refusal(kind, problem, said.spelled) from error


def _refusal(
    kind: type[BaseModel], problem: Mapping[str, Any], spelled: Mapping[str, str]
) -> ApiError:
    """Of what the client sent, only names are repeated, and not all of a long one."""
    found = problem["type"]
    if found == UNKNOWN_FIELD:
        name = problem["ctx"]["name"]
        message = f"{shown(name)} is not known here{_did_you_mean(name, kind)}"
        return ApiError(400, message, param=shown(name), code="unknown_parameter")
    param = _named(problem["loc"])
    param = spelled.get(param, param)
    if found == "too_long" and param == "input":
        return ApiError(
            413, f"at most {MAX_INPUTS} inputs a request; send several requests", param=param
        )
    if found in _UNITS:
        most = problem["ctx"]["max_length"]
        message = f"{param}: at most {most} {_UNITS[found]}; send a part of it"
        return ApiError(413, message, param=param)
    said = _INPUT_KINDS if found == "list_type" and param == "input" else problem["msg"]
    return ApiError(400, f"{param}: {said}", param=param, code="invalid_value")


def _named(place: Sequence[str | int]) -> str:
    """`("input", "texts", 3)` is `input[3]`: what stands between is a branch of ours."""
    return str(place[0]) + "".join(f"[{step}]" for step in place[1:] if isinstance(step, int))


def _did_you_mean(name: str, kind: type[BaseModel]) -> str:
    if len(name) > _LONGEST_TYPO:
        return ""
    close = difflib.get_close_matches(name, kind.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""
