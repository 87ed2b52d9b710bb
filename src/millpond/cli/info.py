"""`millpond info MODEL`: what a checkpoint says, and how it would run here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .engine_flags import with_engine_flags
from .options import JsonOption, open_engine

if TYPE_CHECKING:
    from ..checkpoint.modules import Module
    from ..engine.info import EngineInfo

__all__ = ["info"]

Facts = dict[str, Any]


@with_engine_flags()
def info(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub.")],
    *,
    as_json: JsonOption = False,
    **engine_options: Any,
) -> None:
    """Load a model and show what its checkpoint says and how it would run.

    \b
    Example:
      millpond info sentence-transformers/all-MiniLM-L6-v2
    """
    with open_engine(model, engine_options) as engine:
        facts = _facts(engine.info())
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2, default=str))
        return
    for name, value in _lines(facts):
        print(f"{name:<22} {value}")


def _facts(about: EngineInfo) -> Facts:
    """`engine.info()` in plain types, in the order it is read."""
    model = about.model
    routes = zip(about.routes, model.routes, strict=True)
    return {
        "model": model.name,
        "source": model.source,
        "path": str(model.path),
        "revision": model.revision,
        "similarity": model.similarity_fn_name or "cosine",
        "truncate_dim": model.truncate_dim,
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "routes": [
            {"modules": [_module(module) for module in chain.modules], **_fields(route)}
            for route, chain in routes
        ],
        **_fields(about, but=("model", "routes", "prefix_cache")),
        "prefix_cache": None if about.prefix_cache is None else _fields(about.prefix_cache),
    }


def _fields(about: Any, *, but: Sequence[str] = ()) -> Facts:
    """Every field of a dataclass by its name."""
    return {
        field.name: getattr(about, field.name) for field in fields(about) if field.name not in but
    }


def _module(module: Module) -> str:
    modes = module.options.get("modes")
    return f"{module.kind}({', '.join(modes)})" if modes else module.kind


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    """The same for a person to read: absent facts left out, a route's facts one by one."""
    for name, value in facts.items():
        if name == "routes":
            for route in value:
                yield from _route_lines(route, named=len(value) > 1)
        elif name == "prompts":
            yield from ((f"prompt {key}", json.dumps(text)) for key, text in value.items())
        elif name == "prefix_cache":
            reason = facts["routes"][0]["prefixes"]
            yield "prefix cache", _room(value) if value else f"none: {reason}"
        elif value is not None:
            yield name.replace("_", " "), str(value)


def _room(budget: Facts) -> str:
    tokens = budget["blocks"] * budget["block_tokens"]
    return f"{tokens} tokens, {tokens * budget['bytes_per_token'] / 2**20:.0f} MiB"


def _route_lines(route: Facts, *, named: bool) -> Iterator[tuple[str, str]]:
    prefix = f"{route['name']}: " if named else ""
    length = "no limit" if route["max_length"] is None else f"{route['max_length']} tokens"
    yield f"{prefix}modules", " → ".join(route["modules"])
    yield f"{prefix}dimensions", str(route["dimension"])
    yield f"{prefix}longest text", length
    yield f"{prefix}execution", f"{route['execution']}: {route['reason']}"
    yield f"{prefix}batch invariant", "yes" if route["batch_invariant"] else "no"
