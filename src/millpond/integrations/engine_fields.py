"""`EngineFields`: an engine by its options, as fields of a pydantic model.

What the adapters for LangChain and LlamaIndex have in common. It knows neither of them.
"""

from __future__ import annotations

import abc
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from ..engine.engine import Engine
from ..errors import InvalidOption

__all__ = ["EngineFieldOptions", "EngineFields", "PathText"]

OF_ENGINE = ("device", "dtype", "max_length", "revision", "trust_remote_code")
"""The engine's everyday options."""
PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)
"""A field of text that takes a path, too."""


class EngineFieldOptions(TypedDict, total=False):
    """The fields of `EngineFields`, for type checkers."""

    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]


class EngineFields(BaseModel):
    """Fields that name an engine, and the engine. Objects with equal ones share it.

    A subclass has a field for the model. It pickles to its fields, and finds or makes the shared
    engine where it is loaded.
    """

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # it may be a token
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    device: str | list[str] | None = Field("auto", frozen=True)
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    dtype: str = Field("auto", frozen=True)
    """Precision of the transformer: `auto`, `float32`, `bfloat16`, `float16` or, on a CPU,
    `int8`. What it gives is float32."""
    revision: str | None = Field(None, frozen=True)
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = Field(False, frozen=True)
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = Field(None, frozen=True)
    """Longest text, or query and text together, in tokens, special tokens included; None for the
    checkpoint's own."""
    cache_folder: Annotated[str | None, PathText] = Field(None, frozen=True)
    """Where downloaded models are kept; None for Hugging Face's own cache."""
    engine_options: dict[str, Any] = Field({}, frozen=True)
    """Any other option of `millpond.EngineConfig`, by name."""

    _engine: Engine | None = PrivateAttr(None)  # None where a pickle has not found it yet

    _names_of_model: ClassVar[tuple[str, ...]] = ("model",)
    """The field for the model, and other names that are taken for it."""
    _renamed: ClassVar[Mapping[str, str]] = {}
    """What parameters of other libraries' classes are called here."""
    _ignored: ClassVar[tuple[str, ...]] = ()
    """What a library's own serialised form has beside the fields."""

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        /,
        *,
        engine: Engine | None = None,
        **fields: Any,
    ) -> None:
        """Of a model or an engine that is built, and the other fields.

        Raises `InvalidOption`, what `Engine` raises, and pydantic's `ValidationError`.
        """
        fields = {name: value for name, value in fields.items() if name not in self._ignored}
        if model is not None:
            fields[self._names_of_model[0]] = model
        known = {field.alias or name for name, field in type(self).model_fields.items()}
        known.update(self._names_of_model, ["engine"])
        InvalidOption.require_known(type(self).__name__, fields, known, self._renamed)
        if engine is not None:
            fields |= self._fields_for(engine, fields)
        # Not in a validator: pydantic would turn Millpond's ValueErrors into its own.
        super().__init__(**fields)
        self._engine = engine
        self._require_valid()

    @abc.abstractmethod
    def _require_valid(self) -> None:
        """Raise for an option of a call that the engine would refuse."""

    @property
    def engine(self) -> Engine:
        """The engine behind this object, for its `info()`, `stats()` and hooks."""
        if self._engine is None:
            self._engine = Engine.shared(**self._options_of_engine())
        return self._engine

    @classmethod
    def _fields_by_option(cls) -> dict[str, str]:
        """The fields for options of an engine; all others are in `engine_options`."""
        renamed = {"model": cls._names_of_model[0], "cache_dir": "cache_folder"}
        return {name: name for name in OF_ENGINE} | renamed

    @classmethod
    def _fields_of_engine(cls) -> set[str]:
        return {*cls._fields_by_option().values(), *cls._names_of_model, "engine_options"}

    def _options_of_engine(self) -> dict[str, Any]:
        fields = self._fields_by_option()
        if twice := fields.keys() & self.engine_options.keys():
            renamed = (f"{option} is {name}" for option, name in fields.items() if option != name)
            raise InvalidOption(
                f"engine_options holds {', '.join(sorted(twice))}, which is a field of its own "
                f"({', '.join(renamed)})"
            )
        return {
            option: getattr(self, name) for option, name in fields.items()
        } | self.engine_options

    @classmethod
    def _fields_for(cls, engine: Engine, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that bring an equal engine back."""
        if not isinstance(engine, Engine):
            raise InvalidOption(f"engine={engine!r}: it must be a millpond.Engine")
        if taken := cls._fields_of_engine() & given.keys():
            raise InvalidOption(
                f"{', '.join(sorted(taken))}: the engine is built and has its own; leave out "
                "`engine` or the options"
            )
        fields, options = cls._fields_by_option(), engine.config.options()
        others = {name: value for name, value in options.items() if name not in fields}
        of_fields = {name: getattr(engine.config, option) for option, name in fields.items()}
        return of_fields | {"engine_options": others}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        of_engine, of_model = self._fields_of_engine(), {*self._names_of_model}
        engine = update.get("engine", None if of_engine & update.keys() else copied.engine)
        replaced = of_model if of_model & update.keys() else set()
        if engine is not None:  # it has its own
            replaced = of_engine
        kept = {name: value for name, value in copied if name not in replaced}
        return type(self)(**kept | dict(update) | {"engine": engine})

    def __getstate__(self) -> dict[Any, Any]:
        """The fields, which describe an engine that was given, too; the rest as in a new object."""
        pickle.dumps(self._engine)  # refuses one that its options do not bring back
        fresh = {name: _default(one) for name, one in self.__private_attributes__.items()}
        return super().__getstate__() | {"__pydantic_private__": fresh}


def _default(attribute: Any) -> Any:
    factory = attribute.default_factory
    return attribute.default if factory is None else factory()
