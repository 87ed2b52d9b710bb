"""`SharedEngine`: what every class here has in common, the fields that say which engine it uses."""

from __future__ import annotations

import abc
import contextlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypedDict

from langchain_core.utils import from_env as variable
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic.json_schema import SkipJsonSchema

from millpond import Engine, EngineConfig, InvalidOption

OF_ENGINE = ("device", "dtype", "max_length", "revision", "trust_remote_code")
"""The engine's everyday options, which are fields; the others are in `engine_options`."""
FIELDS_OF_ENGINE = {"model", "model_name", "cache_folder", "engine_options", *OF_ENGINE}

PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)


def from_env(name: str, default: str | None) -> Callable[[], Any]:
    """LangChain's `from_env`, where a variable that is set to nothing counts as unset."""
    return lambda: variable(name, default="")() or default


class EngineOptions(TypedDict, total=False):
    """What every class takes, for type checkers."""

    model: str | os.PathLike[str]
    model_name: str | os.PathLike[str]
    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]
    engine: Engine | None


class SharedEngine(BaseModel, abc.ABC):
    """Options of an engine, which is shared with all objects of the process that have the same.

    An object cannot be changed; it pickles to its options and finds or makes the shared engine on
    the other side.
    """

    model: Annotated[str, PathText] = Field(validation_alias=AliasChoices("model", "model_name"))
    """A folder, or the name of a model as the Hugging Face hub spells it."""
    device: str | list[str] | None = Field(default_factory=from_env("MILLPOND_DEVICE", "auto"))
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    dtype: str = "auto"
    """Precision of the transformer; vectors and scores are float32."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = None
    """Longest text in tokens, special tokens included; None for the checkpoint's own."""
    cache_folder: Annotated[str | None, PathText] = Field(
        default_factory=from_env("MILLPOND_CACHE_FOLDER", None)
    )
    """Where downloaded models are kept; None for Hugging Face's own cache."""
    engine_options: dict[str, Any] = {}
    """Any other option of `millpond.EngineConfig`, by name."""
    engine: Annotated[Engine | None, SkipJsonSchema()] = Field(
        default=None, exclude=True, repr=False
    )
    """An engine that is already built."""

    _engine: Engine | None = PrivateAttr(None)  # None where a pickle found no model

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # it may be a token
    )

    _renamed: ClassVar[Mapping[str, str]] = {}
    """What parameters of LangChain's other classes are called here."""

    def __init__(self, **options: Any) -> None:
        known = {*type(self).model_fields, "model_name"}
        error = InvalidOption.of_unknown(type(self).__name__, options, known, self._renamed)
        if error is not None:
            raise error
        # Not in a validator: pydantic would turn Millpond's ValueErrors into its own.
        super().__init__(**_with_options_of_engine(options))
        self._engine = self.engine
        self._require_valid()

    @abc.abstractmethod
    def _require_valid(self) -> None:
        """Raise for an option of a call that the engine would refuse."""

    @property
    def model_name(self) -> str:
        """The model, by the name that LangChain's other classes have for it."""
        return self.model

    @property
    def _serving(self) -> Engine:
        if self._engine is None:
            self._engine = self._shared_engine()
        return self._engine

    def _shared_engine(self) -> Engine:
        options = {name: getattr(self, name) for name in OF_ENGINE}
        options |= {"model": self.model, "cache_dir": self.cache_folder}
        if twice := options.keys() & self.engine_options.keys():
            raise InvalidOption(
                f"engine_options holds {', '.join(sorted(twice))}, which is a field of its own "
                "(cache_dir is cache_folder)"
            )
        return Engine.shared(**options, **self.engine_options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        changed = FIELDS_OF_ENGINE & update.keys()
        engine = update.get("engine", None if changed else copied.engine)
        kept = dict(copied)
        if engine is not None:  # it has its own
            kept = {name: kept[name] for name in kept.keys() - FIELDS_OF_ENGINE}
        elif "model_name" in update:
            del kept["model"]
        return type(self)(**kept | dict(update) | {"engine": engine})

    def __getstate__(self) -> dict[Any, Any]:
        """The options, which describe an engine that was given, too."""
        pickle.dumps(self.engine)  # refuses one that its options do not bring back
        state = super().__getstate__()
        options = state["__dict__"] | {"engine": None}
        return state | {"__dict__": options, "__pydantic_private__": {"_engine": None}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        # The first call reports what is wrong. An error while a worker process reads its task
        # would have multiprocessing's Pool wait for ever.
        with contextlib.suppress(Exception):
            self._engine = self._shared_engine()

    def __hash__(self) -> int:  # pydantic's own does not take `engine_options`
        return hash((self.model, self.dtype))


def _with_options_of_engine(options: dict[str, Any]) -> dict[str, Any]:
    engine = options.get("engine")
    if not isinstance(engine, Engine):
        return options
    if taken := FIELDS_OF_ENGINE & options.keys():
        raise InvalidOption(f"{', '.join(sorted(taken))}: `engine` is built and has its own")
    return options | _fields_for(engine.config)


def _fields_for(config: EngineConfig) -> dict[str, Any]:
    """The fields that bring an equal engine back."""
    others = config.options()
    fields = {name: getattr(config, name) for name in OF_ENGINE}
    fields |= {"model": config.model, "cache_folder": others.pop("cache_dir", None)}
    options = {name: value for name, value in others.items() if name not in OF_ENGINE}
    return fields | {"engine_options": options}
