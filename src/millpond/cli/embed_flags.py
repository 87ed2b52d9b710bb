"""The flags of `millpond embed`: which vectors, how they are written, and on which machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import typer

from .errors import CommandError
from .files.formats import OutputFormat
from .files.kinds import OUTPUT_KINDS, OutputKind, OutputKindName

__all__ = ["OutputFlags", "RayFlags", "VectorFlags"]

_OF_EVERY_KIND = ("task", "prompt", "prompt_name", "truncate")


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """How the vectors are written, and a run that was interrupted is continued."""

    output_format: Annotated[
        OutputFormat | None, typer.Option(help="Format of OUT, if not by its suffix.")
    ] = None
    output_column: Annotated[
        str, typer.Option(help="The column for the vectors in JSON lines and Parquet.")
    ] = "embedding"
    vectors_only: Annotated[
        bool, typer.Option("--vectors-only", help="Do not copy the columns of IN to OUT.")
    ] = False
    chunk_size: Annotated[
        int, typer.Option(min=1, help="Rows to write and sync to disk at a time.")
    ] = 1024
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the rows of an interrupted run.")
    ] = False
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress", help="Show a progress bar; by default on a terminal."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class VectorFlags:
    """Which vectors of a text: the options of the engine's call."""

    task: Annotated[
        str | None, typer.Option(help="query or document: adds the model's prompt for it.")
    ] = None
    prompt: Annotated[str | None, typer.Option(help="Text to put in front of every text.")] = None
    prompt_name: Annotated[
        str | None, typer.Option(help="Name of a prompt saved with the model.")
    ] = None
    truncate: Annotated[
        Literal["end", "start", "error"] | None,
        typer.Option(help="Where to truncate a text that is too long; error stops instead."),
    ] = None
    output_kind: Annotated[
        OutputKindName,
        typer.Option(
            help="dense; sparse: indices and values of a sparse model, such as a SPLADE; or "
            "tokens: a vector for each token, of a multi-vector model such as ColBERT.",
        ),
    ] = "dense"
    dimensions: Annotated[
        int | None, typer.Option(help="Keep the first N dimensions, at unit length.")
    ] = None
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Whether to scale vectors to unit length; by default as the model.",
        ),
    ] = None
    output_dtype: Annotated[
        Literal["float32", "float16", "binary", "ubinary", "int8", "uint8"],
        typer.Option(help="Type of the vectors; int8 and uint8 cannot be streamed."),
    ] = "float32"
    max_active_dims: Annotated[
        int | None,
        typer.Option(min=1, help="Of sparse vectors keep the N heaviest dimensions."),
    ] = None
    min_weight: Annotated[
        float, typer.Option(min=0, help="Of sparse vectors keep weights above it.")
    ] = 0.0
    pool_factor: Annotated[
        float, typer.Option(min=1, help="Of a document's token vectors keep the means of 1 for N.")
    ] = 1.0

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

    ray: Annotated[
        str | None,
        typer.Option(
            help="Embed on a Ray cluster: auto for the one at hand, local for one of this machine, "
            "or an address. IN is then a folder or a pattern of Parquet files, here or s3://, "
            "gs://, and OUT a folder, which gets a file for each.",
        ),
    ] = None
    actors: Annotated[
        str,
        typer.Option(
            help="With --ray: copies of the model, or the least and the most, as 1:8.",
        ),
    ] = "1:"
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(help="With --ray: GPUs of each; by default 1 where the cluster has any."),
    ] = None
    cpus_per_actor: Annotated[
        float | None, typer.Option(help="With --ray: CPUs of each; by default 1.")
    ] = None
    on_error: Annotated[
        Literal["report", "drop", "raise"],
        typer.Option(
            help="With --ray, of a row without a vector: report it in a column, drop it, or raise "
            "its error for its file.",
        ),
    ] = "report"

    def require_none(self) -> None:
        """Raise `CommandError` for a flag that does nothing without --ray."""
        for name in _given(self):
            raise CommandError(f"{_flag_of(name)} needs --ray beside it")


def _given(flags: Any) -> list[str]:
    """The names of the options that are not at their defaults."""
    return [one.name for one in fields(flags) if getattr(flags, one.name) != one.default]


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"
