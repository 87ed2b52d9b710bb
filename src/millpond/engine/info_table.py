"""What `EngineInfo` says, as JSON types, as lines of a table, and as HTML for notebooks."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..checkpoint.modules import Module
    from ..checkpoint.spec import ModelSpec
    from .info import EngineInfo

__all__ = ["facts_of", "html_table", "text_table"]

Facts = dict[str, Any]


def text_table(info: EngineInfo) -> str:
    """A fact a line."""
    lines = list(_lines(facts_of(info)))
    width = max(22, *(len(name) for name, _ in lines))
    return "\n".join(f"{name:<{width}} {value}" for name, value in lines)


def html_table(info: EngineInfo) -> str:
    """The same as a table."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in _lines(facts_of(info))
    )
    return f"<table>{rows}</table>"


def facts_of(engine_info: EngineInfo) -> Facts:
    """The facts as JSON types, in the order shown."""
    model = engine_info.model
    routes = zip(engine_info.routes, model.routes, strict=True)
    return {
        "model": model.name,
        "source": model.source,
        "path": str(model.path),
        "revision": model.revision,
        "kind": model.kind,
        "labels": list(engine_info.labels),
        "activation": None if model.scoring is None else model.scoring.activation,
        "similarity": _similarity(model),
        "truncate_dim": model.truncate_dim,
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "routes": [
            {"modules": [_module(module) for module in chain.modules], **_fields(route)}
            for route, chain in routes
        ],
        **_fields(engine_info, but=("model", "routes", "processes", "prefix_cache")),
        "processes": list(engine_info.processes),
        "prefix_cache": None
        if engine_info.prefix_cache is None
        else _fields(engine_info.prefix_cache),
    }


def _similarity(model: ModelSpec) -> str | None:
    """How its vectors are compared; None for a model that gives none."""
    if model.kind == "multi_vector" and model.multi_vector is not None:
        return model.multi_vector.similarity
    return None if model.scoring is not None else model.similarity_fn_name or "cosine"


def _fields(value: Any, *, but: Sequence[str] = ()) -> Facts:
    """The fields of a dataclass."""
    return {
        field.name: getattr(value, field.name) for field in fields(value) if field.name not in but
    }


def _module(module: Module) -> str:
    modes = module.options.get("modes")
    return f"{module.kind}({', '.join(modes)})" if modes else module.kind


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    """As a table: None is left out, and a route has a line for each fact."""
    for name, value in facts.items():
        if name == "routes":
            for route in value:
                yield from _route_lines(route, named=len(value) > 1, scores=bool(facts["labels"]))
        elif isinstance(value, list):  # of labels, or ids of processes
            if value:
                yield name, ", ".join(map(str, value))
        elif name == "prompts":
            yield from ((f"prompt {key}", json.dumps(text)) for key, text in value.items())
        elif name == "prefix_cache":
            reason = facts["routes"][0]["prefixes"]
            yield "prefix cache", _size(value) if value else f"none: {reason}"
        elif value is not None:
            yield name.replace("_", " "), str(value)


def _size(cache: Facts) -> str:
    tokens = cache["blocks"] * cache["block_tokens"]
    return f"{tokens} tokens, {tokens * cache['bytes_per_token'] / 2**20:.0f} MiB"


def _route_lines(route: Facts, *, named: bool, scores: bool) -> Iterator[tuple[str, str]]:
    prefix = f"{route['name']}: " if named else ""
    length = "no limit" if route["max_length"] is None else f"{route['max_length']} tokens"
    yield f"{prefix}modules", " → ".join(route["modules"])
    if not scores:
        yield f"{prefix}dimensions", str(route["dimension"])
    yield f"{prefix}longest text", length
    yield f"{prefix}execution", f"{route['execution']}: {route['reason']}"
    yield f"{prefix}batch invariant", "yes" if route["batch_invariant"] else "no"
