"""What the routes that embed ask an engine: of texts, or of the token ids of some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request

from ..errors import ApiError
from ..models import ServedModel
from ..schemas.embeddings import input_kind
from .engine_call import LONGEST_QUERY, MANY_TEXTS, Answer, ask

__all__ = ["ask_for_texts", "options_of"]


def options_of(body: Any, *names: str) -> dict[str, Any]:
    """The options of a call, as the fields of a request say: those of all routes, and these."""
    return {
        "task": body.input_type,
        "prompt_name": body.prompt_name,
        "truncate": body.truncate_option,
        **{name: getattr(body, name) for name in names},
    }


async def ask_for_texts(
    request: Request,
    model: ServedModel,
    submit: Callable[..., Any],
    body: Any,
    options: dict[str, Any],
    *,
    field: str | None = None,
) -> Answer[Any]:
    """The answer of a call of the model's engine, `submit`, with these options, for a body's texts.

    Raises `ApiError`, which names the field of the texts, or this one.
    """
    (own_field,) = body.LARGE_FIELDS
    texts, field = getattr(body, own_field), field or own_field
    priority = body.priority or _priority(texts, options.get("task"))

    def call() -> Any:
        more = _prompt_options(request, model, texts, field, options)
        return submit(texts, wait=False, priority=priority, **options, **more)

    has_much = isinstance(texts, list) and len(texts) > MANY_TEXTS
    return await ask(request, model, call, priority=priority, field=field, has_much=has_much)


def _priority(texts: Any, task: str | None) -> str:
    """Of a request that does not say: a query is interactive, or a single text of some length."""
    if task == "query":
        return "interactive"
    if input_kind(texts) in ("texts", "token_lists"):
        if len(texts) > 1:
            return "bulk"
        (texts,) = texts
    return "interactive" if len(texts) <= LONGEST_QUERY else "bulk"


def _prompt_options(
    request: Request, model: ServedModel, texts: Any, field: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Token ids are whole texts, with the default prompt: they are checked, and get none.

    Raises `ApiError` 400 for ids without special tokens, and for a prompt that is not there or
    that cannot be put in front.
    """
    kind = input_kind(texts)
    task, prompt_name = options.get("task"), options.get("prompt_name")
    if kind not in ("tokens", "token_lists"):
        if prompt_name is not None:
            model.prompt(task, prompt_name)
        return {}
    if not request.app.state.settings.allow_raw_token_ids:
        model.require_special_tokens([texts] if kind == "tokens" else texts, field)
    if task is None and prompt_name is None:
        return {"prompt": ""}
    if model.prompt(task, prompt_name):
        asked = "input_type" if prompt_name is None else "prompt_name"
        raise ApiError.about(
            asked,
            "its prompt cannot be put in front of token ids, which are whole texts; leave it out, "
            "or send texts",
        )
    return {}
