"""What the classes of this package share: an engine, its options as fields, copies and pickles."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypedDict

from llama_index.core.bridge.pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
)

from millpond import Engine, InvalidOption, InvalidText

MAX_EMBED_BATCH_SIZE = 2048  # the most that BaseEmbedding allows

OF_ENGINE = ("device", "dtype", "max_length", "revision", "trust_remote_code")
"""The engine's everyday options, which are fields; the others are in `engine_options`."""
FIELDS_OF_ENGINE = {"model_name", "cache_folder", "engine_options", *OF_ENGINE}

PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)


class SharedOptions(TypedDict, total=False):
    """What all of these classes take beside a model or an engine, for type checkers."""

    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]
    query_instruction: str | None
    text_instruction: str | None
    truncate: Literal["end", "start", "error"] | None
    embed_batch_size: int
    num_workers: int | None


class SharedEngine(BaseModel):
    """Fields that name an engine, and the engine. Objects with equal ones share it."""

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # it may be a token
        use_attribute_docstrings=True,
    )

    model_name: Annotated[str, PathText] = Field(frozen=True)
    """A folder, the name of a model on the Hugging Face hub, or a name that an installed package
    carries. Without it, `engine`: an engine that is already built, whose options are read."""
    embed_batch_size: int = Field(default=MAX_EMBED_BATCH_SIZE, gt=0, le=MAX_EMBED_BATCH_SIZE)
    """Texts handed to the engine at a time, which forms its own batches of them; by default the
    most there can be. `num_workers` such calls are in flight at a time in async methods, by default
    all of them."""

    # The engine's: fixed once it is built.
    device: str | list[str] | None = Field("auto", frozen=True)
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    dtype: str = Field("auto", frozen=True)
    """`auto`, `float32`, `bfloat16`, `float16` or, on a CPU, `int8`."""
    revision: str | None = Field(None, frozen=True)
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = Field(False, frozen=True)
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = Field(None, frozen=True)
    """Longest text in tokens; None for the model's own."""
    cache_folder: Annotated[str | None, PathText] = Field(None, frozen=True)
    """Where downloaded models are kept; None for Hugging Face's own cache."""
    engine_options: dict[str, Any] = Field({}, frozen=True)
    """Any other option of `millpond.EngineConfig`, by name."""

    # The call's.
    query_instruction: str | None = None
    """Text in front of every query; None for the prompt the checkpoint saves, "" for none."""
    text_instruction: str | None = None
    """Text in front of every text; None for the prompt the checkpoint saves, "" for none."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or raise `TextTooLong`; None as the checkpoint says."""

    _engine: Engine | None = PrivateAttr(None)  # None only in a pickle

    @staticmethod
    def fields_of(
        model_name: str | os.PathLike[str] | None, engine: Engine | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The fields of an object that is given a model or an engine, and these options."""
        fields = {**options}
        fields.pop("class_name", None)  # part of what `model_dump` gives
        if model_name is not None:
            fields["model_name"] = model_name
        return fields if engine is None else fields | _fields_for(engine, fields)

    @property
    def engine(self) -> Engine:
        """The engine behind this object, for its `info()`, `stats()` and hooks."""
        if self._engine is None:
            self._engine = Engine.shared(**self._engine_options())
        return self._engine

    def _engine_options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in OF_ENGINE}
        options |= {"model": self.model_name, "cache_dir": self.cache_folder}
        if twice := options.keys() & self.engine_options.keys():
            raise InvalidOption(
                f"engine_options holds {', '.join(sorted(twice))}, which is a field of its own "
                "(model is model_name, and cache_dir is cache_folder)"
            )
        return options | self.engine_options

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        kept = dict(copied)
        changed = FIELDS_OF_ENGINE & update.keys()
        engine = update.get("engine", None if changed else copied.engine)
        if engine is not None:  # it has its own
            kept = {name: kept[name] for name in kept.keys() - FIELDS_OF_ENGINE}
        return type(self)(**kept | dict(update) | {"engine": engine})

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's `__setstate__` calls `__init__` and passes over its errors. So a model that
        # cannot be loaded is reported by the first call. An error while a worker process reads
        # its task would have multiprocessing's Pool wait for ever.
        pickle.dumps(self._engine)  # refuses one that its options do not bring back
        state: dict[str, Any] = super().__getstate__()
        return state | {"__pydantic_private__": {"_engine": None, **self._fresh_state()}}

    def _fresh_state(self) -> dict[str, Any]:
        """The private attributes of a copy that comes from a pickle, beside the engine."""
        return {}


def require_string(text: str) -> str:
    if not isinstance(text, str):  # an engine takes token ids, too
        raise InvalidText(f"expected a string, not {type(text).__name__}")
    return text


def require_strings(texts: list[str]) -> list[str]:
    """By the first the engine tells what they are; it checks the others."""
    for text in texts[:1]:
        require_string(text)
    return texts


def _fields_for(engine: Engine, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that bring an equal engine back."""
    if not isinstance(engine, Engine):
        raise InvalidOption(f"engine={engine!r}: it must be a millpond.Engine")
    if taken := FIELDS_OF_ENGINE & given.keys():
        raise InvalidOption(
            f"{', '.join(sorted(taken))}: the engine is built and has its own; leave out `engine` "
            "or the options"
        )
    config = engine.config
    others = config.options()
    fields = {name: getattr(config, name) for name in OF_ENGINE}
    fields |= {"model_name": config.model, "cache_folder": others.pop("cache_dir", None)}
    options = {name: value for name, value in others.items() if name not in OF_ENGINE}
    return fields | {"engine_options": options}
