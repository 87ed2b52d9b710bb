"""The flags of `millpond embed`: which vectors, how they are written, and on which machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..config import option
from .errors import CommandError
from .files.formats import OutputFormat
from .files.kinds import OUTPUT_KINDS, OutputKind, OutputKindName

__all__ = ["OutputFlags", "RayFlags", "VectorFlags"]

_OF_EVERY_KIND = ("task", "prompt", "prompt_name", "truncate")


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """How the vectors are written, and a run that was interrupted is continued."""

    output_format: OutputFormat | None = option(None, "Format of OUT, if not by its suffix.")
    output_column: str = option(
        "embedding", "The column for the vectors in JSON lines and Parquet."
    )
    vectors_only: bool = option(False, "Do not copy the columns of IN to OUT.")
    chunk_size: int = option(1024, "Rows to write and sync to disk at a time.", least=1)
    resume: bool = option(False, "Continue an interrupted run.")
    restart: bool = option(False, "Discard the rows of an interrupted run.")
    progress: bool | None = option(None, "Show a progress bar; by default on a terminal.")


@dataclass(frozen=True, kw_only=True)
class VectorFlags:
    """Which vectors of a text: the options of the engine's call."""

    task: str | None = option(None, "query or document: adds the model's prompt for it.")
    prompt: str | None = option(None, "Text to put in front of every text.")
    prompt_name: str | None = option(None, "Name of a prompt saved with the model.")
    truncate: Literal["end", "start", "error"] | None = option(
        None, "Where to truncate a text that is too long; error stops instead."
    )
    output_kind: OutputKindName = option(
        "dense",
        "dense; sparse: indices and values of a sparse model, such as a SPLADE; or "
        "tokens: a vector for each token, of a multi-vector model such as ColBERT.",
    )
    dimensions: int | None = option(None, "Keep the first N dimensions, at unit length.")
    normalize: bool | None = option(
        None, "Whether to scale vectors to unit length; by default as the model."
    )
    output_dtype: Literal["float32", "float16", "binary", "ubinary", "int8", "uint8"] = option(
        "float32", "Type of the vectors; int8 and uint8 cannot be streamed."
    )
    max_active_dims: int | None = option(
        None, "Of sparse vectors keep the N heaviest dimensions.", least=1
    )
    min_weight: float = option(0.0, "Of sparse vectors keep weights above it.", least=0)
    pool_factor: float = option(
        1.0, "Of a document's token vectors keep the means of 1 for N.", least=1
    )

    @property
    def kind(self) -> OutputKind:
        """What is written of a text."""
        return OUTPUT_KINDS[self.output_kind]

    def call_options(self) -> Mapping[str, Any]:
        """Those of the engine's call. Raises `CommandError` for vectors that cannot be streamed."""
        if "output_dtype" in self.kind.options and self.output_dtype in ("int8", "uint8"):
            raise CommandError(
                f"{self.output_dtype} takes each dimension's range from all vectors at once: write "
                "float32 and call millpond.quantize on it"
            )
        return {name: getattr(self, name) for name in (*_OF_EVERY_KIND, *self.kind.options)}

    def require_own(self, output_format: OutputFormat) -> None:
        """Raise `CommandError` for an option of another kind, or a format that has no room."""
        own = {*_OF_EVERY_KIND, "output_kind", *self.kind.options}
        for name in _given(self):
            if name not in own:
                flag = _flag_of(name)
                raise CommandError(f"{flag} is not for --output-kind {self.output_kind}")
        if not self.kind.is_matrix and output_format == "npy":
            raise CommandError(
                f"--output-kind {self.output_kind} makes no matrix, which .npy holds: write "
                ".parquet or .jsonl"
            )


@dataclass(frozen=True, kw_only=True)
class RayFlags:
    """Embedding on a cluster."""

    ray: str | None = option(
        None,
        "Embed on a Ray cluster: auto for the one at hand, local for one of this machine, "
        "or an address. IN is then a folder or a pattern of Parquet files, here or s3://, "
        "gs://, and OUT a folder, which gets a file for each.",
    )
    actors: str = option(
        "1:", "With --ray: copies of the model, or the least and the most, as 1:8."
    )
    gpus_per_actor: float | None = option(
        None, "With --ray: GPUs of each; by default 1 where the cluster has any."
    )
    cpus_per_actor: float | None = option(None, "With --ray: CPUs of each; by default 1.")
    on_error: Literal["report", "drop", "raise"] = option(
        "report",
        "With --ray, of a row without a vector: report it in a column, drop it, or raise "
        "its error for its file.",
    )

    def require_none(self) -> None:
        """Raise `CommandError` for a flag that does nothing without --ray."""
        for name in _given(self):
            raise CommandError(f"{_flag_of(name)} needs --ray beside it")


def _given(flags: Any) -> list[str]:
    """The names of the options that are not at their defaults."""
    return [one.name for one in fields(flags) if getattr(flags, one.name) != one.default]


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"
