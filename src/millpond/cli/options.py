"""The flags of calls that several commands share, and the engine they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .engine_flags import engine_options

if TYPE_CHECKING:
    from ..engine.engine import Engine

__all__ = [
    "DEFAULT_MODEL",
    "DimensionsOption",
    "JsonOption",
    "ModelOption",
    "PromptNameOption",
    "PromptOption",
    "TaskOption",
    "open_engine",
]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A folder, or a name on the Hugging Face hub.")
]
TaskOption = Annotated[
    str | None, typer.Option(help="query or document: adds the model's prompt for it.")
]
PromptOption = Annotated[str | None, typer.Option(help="Text to put in front of every text.")]
PromptNameOption = Annotated[
    str | None, typer.Option(help="Name of a prompt saved with the model.")
]
DimensionsOption = Annotated[
    int | None, typer.Option(help="Keep the first N dimensions, at unit length.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_engine(model: str, flags: Mapping[str, Any]) -> Engine:
    """An engine with the options of a command's flags. Raises what `Engine` raises."""
    from ..engine.engine import Engine

    return Engine(model, **engine_options(flags))
