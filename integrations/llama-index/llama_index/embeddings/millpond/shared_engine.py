"""What the classes of this package share: an engine, its options as fields, copies and pickles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from llama_index.core.bridge.pydantic import Field

from millpond import InvalidText
from millpond.integrations.engine_fields import EngineFieldOptions, EngineFields, PathText

MAX_EMBED_BATCH_SIZE = 2048  # the most that BaseEmbedding allows


class SharedOptions(EngineFieldOptions, total=False):
    """What all of these classes take beside a model or an engine, for type checkers."""

    query_instruction: str | None
    text_instruction: str | None
    truncate: Literal["end", "start", "error"] | None
    embed_batch_size: int
    num_workers: int | None


class SharedEngine(EngineFields):
    """Fields that name an engine, and the engine. Objects with equal ones share it.

    LlamaIndex's `__setstate__` calls `__init__` and passes over its errors. So a model that cannot
    be loaded is reported by the first call. An error while a worker process reads its task would
    have multiprocessing's Pool wait for ever.
    """

    model_name: Annotated[str, PathText] = Field(frozen=True)
    """A folder, the name of a model on the Hugging Face hub, or a name that an installed package
    carries. Without it, `engine`: an engine that is already built, whose options are read."""
    embed_batch_size: int = Field(default=MAX_EMBED_BATCH_SIZE, gt=0, le=MAX_EMBED_BATCH_SIZE)
    """Texts handed to the engine at a time, which forms its own batches of them; by default the
    most there can be. `num_workers` such calls are in flight at a time in async methods, by default
    all of them."""
    query_instruction: str | None = None
    """Text in front of every query; None for the prompt the checkpoint saves, "" for none."""
    text_instruction: str | None = None
    """Text in front of every text; None for the prompt the checkpoint saves, "" for none."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or raise `TextTooLong`; None as the checkpoint says."""

    _names_of_model = ("model_name",)
    _ignored = ("class_name",)

    def __init__(self, *model: Any, **options: Any) -> None:  # or type checkers make another
        super().__init__(*model, **options)


def require_string(text: str) -> str:
    if not isinstance(text, str):  # an engine takes token ids, too
        raise InvalidText(f"expected a string, not {type(text).__name__}")
    return text


def require_strings(texts: list[str]) -> list[str]:
    """By the first the engine tells what they are; it checks the others."""
    for text in texts[:1]:
        require_string(text)
    return texts
