"""`CallSettings`: what calls with the same options have in common, found once for all of them.

A query is a call of its own, and thousands a second have the same options.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.spec import ModelSpec
from ..errors import UnsupportedCall
from ..model.info import RouteInfo
from .params.embed import EmbedParams
from .tokenizer import Tokenizer

__all__ = ["CallSettings", "SettingsOfCalls", "most_queue_tokens"]

KEPT = 256  # settings, before all of them are found anew
LONG_TEXT_TOKENS = 2**16  # that a longer text counts in the queue, if the model will not read it


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


class SettingsOfCalls:
    """Settings by options, for one model. Any thread may ask."""

    def __init__(
        self,
        spec: ModelSpec,
        routes: Sequence[RouteInfo],
        tokenizers: Sequence[Tokenizer],
        *,
        caches_prefixes: bool,
    ) -> None:
        self._spec = spec
        self._routes = routes
        self._tokenizers = tokenizers
        self._caches_prefixes = caches_prefixes
        self._known: dict[Hashable, CallSettings] = {}  # changed by single operations

    def of(self, params: EmbedParams, *, are_ids: bool) -> CallSettings:
        """The settings of a call whose texts are strings or, with `are_ids`, token ids.

        Raises `InvalidOption` or a subclass, `UnknownTask` and `UnsupportedCall`.
        """
        if type(params) is not EmbedParams:  # it may have options of its own
            params.validate(self._spec)
            return self._find(params, are_ids)
        key = (are_ids, *_options(params))
        try:
            found = self._known.get(key)
        except TypeError:  # a list, say, in place of a string: it is refused below
            found = None
        if found is None or params.timeout is not None:
            params.validate(self._spec)
        if found is None:
            found = self._find(params, are_ids)
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = found
        return found

    def _find(self, params: EmbedParams, are_ids: bool) -> CallSettings:
        spec, route = self._spec, self.route(params)
        info, tokenizer = self._routes[route], self._tokenizers[route]
        prompt = params.prompt_text(spec, are_ids)
        excluded = tokenizer.prompt_length(prompt) if prompt and info.excludes_prompt else 0
        shared = 0
        if prompt and self._caches_prefixes:
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

    def route(self, params: EmbedParams) -> int:
        """The place of the route that the texts take."""
        name = params.route(self._spec).name
        for index, info in enumerate(self._routes):
            if info.name == name:
                return index
        raise UnsupportedCall(
            f"the weights of {self._spec.name} have not what its route {name!r} needs, though its "
            "config.json names a model that has; call embed"
        )

    def __repr__(self) -> str:
        return f"SettingsOfCalls(known={len(self._known)})"


def _options(params: EmbedParams) -> tuple[Any, ...]:
    """All that settings depend on, told apart by type too: True is no number, though it is 1."""
    return (
        params.task,
        params.prompt,
        params.prompt_name,
        params.dimensions,
        type(params.dimensions),
        params.normalize,
        type(params.normalize),
        params.truncate,
        params.output_dtype,
        params.priority,
    )


def most_queue_tokens(longest: int | None) -> int | None:
    """What a text counts in the queue at most, of a model that reads N tokens."""
    return None if longest is None else max(longest, LONG_TEXT_TOKENS)
