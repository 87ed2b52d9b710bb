"""`CallSettings`: what calls with the same options have in common, found once for all of them.

A query is a call of its own, and thousands a second have the same options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

from ..checkpoint.spec import ModelSpec
from ..errors import UnsupportedCall
from ..model.info import RouteInfo
from .params.embed import EmbedParams
from .tokenizer import Tokenizer

__all__ = [
    "CallSettings",
    "find_settings",
    "most_queue_tokens",
    "options_of",
    "remembered",
    "route_of",
]

KEPT = 256  # settings: those that were asked for last
LONG_TEXT_TOKENS = 2**16  # that a longer text counts in the queue, if the model will not read it

# All that settings depend on, but for whether the texts are token ids.
OPTIONS = (
    *("task", "prompt", "prompt_name", "dimensions", "normalize", "truncate"),
    *("output_dtype", "priority"),
)
options_of: Callable[[EmbedParams], tuple[Any, ...]] = attrgetter(*OPTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Fields of a `Request` that the options of its call say, whatever its texts."""

    output: Any
    route: int
    prompt: str
    prompt_tokens: int
    shared_tokens: int
    is_pinned: bool
    max_length: int | None
    most_tokens: int | None
    reads_tokens: int | None


def find_settings(
    spec: ModelSpec,
    routes: Sequence[RouteInfo],
    tokenizers: Sequence[Tokenizer],
    params: EmbedParams,
    *,
    are_ids: bool,
    caches_prefixes: bool,
) -> CallSettings:
    """The settings of a call whose texts are strings or, with `are_ids`, token ids.

    Raises `InvalidOption` or a subclass, `UnknownTask` and `UnsupportedCall`.
    """
    params.validate(spec)
    route = route_of(spec, routes, params)
    info, tokenizer = routes[route], tokenizers[route]
    prompt = params.prompt_text(spec, are_ids)
    excluded = tokenizer.prompt_length(prompt) if prompt and info.excludes_prompt else 0
    shared = 0
    if prompt and caches_prefixes:
        shared = tokenizer.shared_prefix_length(prompt, params.task)
    return CallSettings(
        output=params.output(spec, info.dimension),
        route=route,
        prompt=prompt,
        prompt_tokens=excluded,
        shared_tokens=shared,
        is_pinned=prompt in spec.prompts.values(),
        max_length=spec.max_length_for(params.task),
        most_tokens=most_queue_tokens(info.max_length),
        reads_tokens=info.max_length,
    )


def remembered(find: Callable[..., CallSettings]) -> Callable[..., CallSettings]:
    """`find`, by `are_ids` and `options_of` an `EmbedParams`. Any thread may ask.

    They are told apart by type too: True is no number, though it is 1. Raises `TypeError` for what
    has no hash, such as a list in place of a string.
    """

    @lru_cache(KEPT, typed=True)
    def found(are_ids: bool, *options: Any) -> CallSettings:
        params = EmbedParams(**dict(zip(OPTIONS, options, strict=True)))
        return find(params, are_ids=are_ids)

    return found


def route_of(spec: ModelSpec, routes: Sequence[RouteInfo], params: EmbedParams) -> int:
    """The place of the route that the texts take."""
    name = params.route(spec).name
    for index, info in enumerate(routes):
        if info.name == name:
            return index
    raise UnsupportedCall(
        f"the weights of {spec.name} have not what its route {name!r} needs, though its "
        "config.json names a model that has; call embed"
    )


def most_queue_tokens(longest: int | None) -> int | None:
    """What a text counts in the queue at most, of a model that reads N tokens."""
    return None if longest is None else max(longest, LONG_TEXT_TOKENS)
