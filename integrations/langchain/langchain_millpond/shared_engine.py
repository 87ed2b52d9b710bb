"""`SharedEngine`: what every class here has in common, the fields that say which engine it uses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Annotated, Any

from langchain_core.utils import from_env as variable
from pydantic import AliasChoices, ConfigDict, Field

from millpond.integrations.engine_fields import EngineFieldOptions, EngineFields, PathText


def from_env(name: str, default: str | None) -> Callable[[], Any]:
    """LangChain's `from_env`, where a variable that is set to nothing counts as unset."""
    return lambda: variable(name, default="")() or default


class EngineOptions(EngineFieldOptions, total=False):
    """What every class takes beside an engine, for type checkers."""

    model: str | os.PathLike[str]
    model_name: str | os.PathLike[str]


class SharedEngine(EngineFields):
    """Options of an engine, which is shared with all objects of the process that have the same.

    An object cannot be changed; it pickles to its options and finds or makes the shared engine on
    the other side.
    """

    model: Annotated[str, PathText] = Field(validation_alias=AliasChoices("model", "model_name"))
    """A folder, or the name of a model as the Hugging Face hub spells it."""
    device: str | list[str] | None = Field(default_factory=from_env("MILLPOND_DEVICE", "auto"))
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    cache_folder: Annotated[str | None, PathText] = Field(
        default_factory=from_env("MILLPOND_CACHE_FOLDER", None)
    )
    """Where downloaded models are kept; None for Hugging Face's own cache."""

    model_config = ConfigDict(frozen=True)

    _names_of_model = ("model", "model_name")

    def __init__(self, **options: Any) -> None:  # or type checkers make another
        super().__init__(**options)

    @property
    def model_name(self) -> str:
        """The model, by the name that LangChain's other classes have for it."""
        return self.model

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        # The first call reports what is wrong. An error while a worker process reads its task
        # would have multiprocessing's Pool wait for ever.
        with contextlib.suppress(Exception):
            self._engine = self.engine

    def __hash__(self) -> int:  # pydantic's own does not take `engine_options`
        return hash((self.model, self.dtype))
