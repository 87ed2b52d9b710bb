"""The facts of `EngineInfo` as lines of a table, and as HTML for notebooks."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

__all__ = ["Facts", "html_table", "text_table"]

Facts = dict[str, Any]
"""As JSON types, in the order shown."""


def text_table(facts: Facts) -> str:
    """A fact a line."""
    lines = list(_lines(facts))
    width = max(22, *(len(name) for name, _ in lines))
    return "\n".join(f"{name:<{width}} {value}" for name, value in lines)


def html_table(facts: Facts) -> str:
    """The same as a table."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in _lines(facts)
    )
    return f"<table>{rows}</table>"


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
