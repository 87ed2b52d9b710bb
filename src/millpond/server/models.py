"""`ServedModels`: the engines of a server by the names that requests give as `model`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..engine.engine import Engine
from ..errors import InvalidOption, UnknownPrompt
from .errors import FOREIGN_IDS_HINT, ApiError, shown

__all__ = [
    "CLASSIFIES",
    "EMBEDS",
    "GIVES_SPARSE",
    "GIVES_TOKENS",
    "SCORES",
    "ServedModel",
    "ServedModels",
]

EMBEDS: tuple[str, ...] = ("embed",)
SCORES: tuple[str, ...] = ("score", "multi_vector")  # by token vectors too
GIVES_SPARSE: tuple[str, ...] = ("sparse",)
GIVES_TOKENS: tuple[str, ...] = ("multi_vector",)
CLASSIFIES: tuple[str, ...] = ("score", "classify")  # a score is the only class of a reranker
_ROUTES: dict[str, tuple[str, str]] = {
    "embed": ("embeddings", "/v1/embeddings"),
    "score": ("scores", "/rerank or /score, or to /classify or /predict"),
    "classify": ("classes", "/classify or /predict"),
    "sparse": ("sparse vectors", "/embed_sparse"),
    "multi_vector": ("a vector for each token", "/embed_all, /pooling, /rerank or /score"),
}
_PROBES = ("hello", "a", "1")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """An engine and its names; the first is its name in metrics and logs."""

    names: tuple[str, ...]
    engine: Engine
    special_tokens: tuple[list[int], list[int]]
    """The ids that the tokenizer adds before and after every text."""
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: Engine, names: Sequence[str] = ()) -> ServedModel:
        """Serve an engine under these names, or under its checkpoint's own."""
        names = tuple(names) or (engine.info().model.name,)
        return cls(names, engine, _special_tokens(engine))

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def kind(self) -> str:
        """What it is for: `embed`, `score`, `classify`, `sparse`, `multi_vector`."""
        return self.engine.info().kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """The same, and what it gives besides."""
        return self.engine.info().kinds

    def require_kind(self, kinds: Collection[str]) -> None:
        """Raises `ApiError` 400 where no route that needs one of these can answer with it."""
        if not set(kinds).intersection(self.kinds):
            gives, routes = _ROUTES[self.kind]
            raise self._unsupported(f"{gives}; send it to {routes}")

    def prompt(self, input_type: str | None, prompt_name: str | None) -> str:
        """What goes in front of a text. Raises `ApiError` 400 for a name the model did not save."""
        spec = self.engine.info().model
        try:
            return spec.prompt_text(task=input_type, prompt_name=prompt_name)
        except UnknownPrompt as error:
            known = ", ".join(map(repr, sorted({*spec.prompts, "query", "document"})))
            raise ApiError(
                400,
                f"there is no prompt called {shown(prompt_name or '')!r}; choose among {known}, or "
                "put your own in front of the texts",
                param="prompt_name",
                code="unknown_prompt",
            ) from error

    def require_text_classes(self) -> None:
        """Raises `ApiError` 400 where there are classes of tokens alone."""
        scoring = self.engine.info().model.scoring
        if scoring is not None and scoring.per_token:
            raise self._unsupported(
                "a class for each token, which no route answers; call classify of millpond.Engine "
                "in Python"
            )

    def _unsupported(self, gives: str) -> ApiError:
        message = f"{self.name} gives {gives}"
        return ApiError(400, message, param="model", code="unsupported_call")

    def require_special_tokens(self, texts: Sequence[Sequence[int]], field: str) -> None:
        """Raises `ApiError` 400 for token ids without the special tokens around them.

        They tell ids of another model's tokenizer apart, whose vectors would mean nothing.
        """
        first, last = self.special_tokens
        for index, ids in enumerate(texts):
            has_room = len(ids) >= len(first) + len(last)
            start, end = list(ids[: len(first)]), list(ids[len(ids) - len(last) :])
            if not has_room or (start, end) != (first, last):
                message = (
                    f"{field}[{index}]: these token ids are not from this model's tokenizer, which "
                    f"{self._special_tokens_described()}. {FOREIGN_IDS_HINT}. A server started "
                    "with --allow-raw-token-ids takes any ids"
                )
                raise ApiError(400, message, param=field, code="invalid_token_ids")

    def _special_tokens_described(self) -> str:
        parts = [
            f"{verb} every text with {', '.join(map(str, ids))}"
            for verb, ids in zip(("begins", "ends"), self.special_tokens, strict=True)
            if ids
        ]
        return " and ".join(parts)


def _special_tokens(engine: Engine) -> tuple[list[int], list[int]]:
    """As a few texts show them; none where the tokenizer adds none."""
    whole = engine.tokenize(_PROBES, prompt="")
    bare = engine.tokenize(_PROBES, prompt="", special_tokens=False)
    for ids, own in zip(whole, bare, strict=True):
        for start in range(len(ids) - len(own) + 1):
            if own and ids[start : start + len(own)] == own:
                return ids[:start], ids[start + len(own) :]
    return [], []


class ServedModels:
    """All models of a server. Raises `InvalidOption` where a name is given twice."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = tuple(models)
        self._by_name: dict[str, ServedModel] = {}
        self._found: dict[tuple[str | None, tuple[str, ...] | None], ServedModel] = {}
        for model in self._models:
            for name in model.names:
                if name in self._by_name:
                    raise InvalidOption(f"two models would be served as {name!r}")
                self._by_name[name] = model

    def find(self, name: str | None, kinds: tuple[str, ...] | None = None) -> ServedModel:
        """The model of that name, or the only one, or the only one of these kinds.

        Raises `ApiError`: 404 for an unknown name, 400 where one is missing, or where its model
        is of another kind.
        """
        if (known := self._found.get((name, kinds))) is not None:
            return known
        found = self._only(kinds) if name is None else self._named(name)
        if kinds is not None:
            found.require_kind(kinds)
        self._found[name, kinds] = found  # of names that there are, so it stays small
        return found

    def _only(self, kinds: Collection[str] | None) -> ServedModel:
        wanted = set(kinds or ())
        fitting = [model for model in self._models if kinds is None or model.kind in wanted]
        besides = [model for model in self._models if wanted.intersection(model.kinds)]
        models = fitting or besides or self._models
        if len(models) > 1:
            names = [name for model in models for name in model.names]
            raise ApiError(
                400, f"model is missing; choose {_listed(names)}", param="model", code="no_model"
            )
        return models[0]

    def _named(self, name: str) -> ServedModel:
        if name not in self._by_name:
            raise ApiError(
                404,
                f"the model {shown(name)!r} is not served here; choose {_listed(self._by_name)}",
                param="model",
                code="model_not_found",
            )
        return self._by_name[name]

    def by_name(self) -> Iterator[tuple[str, ServedModel]]:
        """Every name with its model."""
        return iter(self._by_name.items())

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __repr__(self) -> str:
        return f"ServedModels(models={len(self._models)}, names={sorted(self._by_name)})"


def _listed(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))
