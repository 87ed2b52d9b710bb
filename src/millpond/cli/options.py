"""The flags that several commands share, and the engine they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..config import DTypeName, EngineOptions

if TYPE_CHECKING:
    from ..engine.engine import Engine

__all__ = [
    "DEFAULT_MODEL",
    "DTypeOption",
    "DeviceOption",
    "DimensionsOption",
    "JsonOption",
    "MaxLengthOption",
    "ModelOption",
    "PromptNameOption",
    "PromptOption",
    "RevisionOption",
    "TaskOption",
    "TrustOption",
    "open_engine",
]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A folder, or a name on the Hugging Face hub.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DTypeOption = Annotated[DTypeName, typer.Option("--dtype", help="Precision of the transformer.")]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint."),
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(help="Longest text in tokens, special tokens included.", show_default=False),
]
TaskOption = Annotated[
    str | None, typer.Option(help="query or document: adds the prompt the model saved for it.")
]
PromptOption = Annotated[str | None, typer.Option(help="Text to put in front of every text.")]
PromptNameOption = Annotated[str | None, typer.Option(help="A prompt the model saved, by name.")]
DimensionsOption = Annotated[
    int | None, typer.Option(help="Keep only the first so many dimensions, at unit length.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_engine(model: str, **options: object) -> Engine:
    """An engine for a command. Raises what `Engine` raises."""
    from ..engine.engine import Engine

    return Engine(model, **EngineOptions(**options))  # type: ignore[typeddict-item]
