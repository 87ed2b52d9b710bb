"""`embed_parts`: a folder of Parquet files to a folder of Parquet files, one for one.

A file is one piece of work for Ray: it is read and written by the actor, a few rows at a time, and
appears in the output under its name when it is complete. Work whose actor died is done again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, from_items

from ..arrow import row_groups
from ..config import EngineOptions
from ..errors import EngineFailed, InvalidInput, MillpondError, TextFailed, summary
from .actors import ActorPool, engine_options
from .batches import Columns, EmbedBatch
from .filesystems import Folder

__all__ = [
    "UNFINISHED",
    "PartDone",
    "PartsSpec",
    "cluster",
    "embed_parts",
    "remove_unfinished",
]

UNFINISHED = ".millpond"
"""The folder in the output for what is not complete."""


@dataclass(frozen=True, kw_only=True)
class PartsSpec:
    """What is to be made of every file."""

    source: Folder
    target: Folder
    columns: Columns
    vectors_only: bool
    """Whether the input's columns are not copied."""
    chunk_rows: int
    """Rows to read and embed at a time."""


@dataclass(frozen=True, kw_only=True)
class PartDone:
    """What became of a file."""

    name: str
    rows: int = 0
    """Rows read."""
    failed: int = 0
    """Rows without a vector."""
    truncated: int = 0
    error: str | None = None
    """Why the file was not written."""
    ends_all: bool = False
    """Whether the error is that of every file: the model's, or an option's."""


def embed_parts(
    names: Sequence[str],
    spec: PartsSpec,
    *,
    model: str,
    options: EngineOptions,
    call: Mapping[str, Any],
    pool: ActorPool,
) -> Iterator[PartDone]:
    """Embed these files of `spec.source`; gives what became of each, as it is known."""
    DataContext.get_current().enable_progress_bars = False  # ours counts files
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = pool.gpus_each()
    parts = from_items([{"name": name} for name in names], override_num_blocks=len(names))
    done = parts.map_batches(
        PartBatch,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(spec, model, engine_options(model, options, gpus), call),
        **pool.map_options(gpus),
    )
    for row in done.iter_rows():
        yield PartDone(**row)


class PartBatch:
    """Embeds the files that it is handed the names of."""

    def __init__(
        self, spec: PartsSpec, model: str, options: EngineOptions, call: Mapping[str, Any]
    ) -> None:
        self._spec = spec
        self._batch = EmbedBatch(model, options, spec.columns, call)

    def __call__(self, table: Any) -> Any:
        done = [self._part(name) for name in table.column("name").to_pylist()]
        return pa.Table.from_pylist([vars(each) for each in done], _DONE)

    def _part(self, name: str) -> PartDone:
        try:
            self._batch.require_model()
        except MillpondError as error:
            return PartDone(name=name, error=str(error), ends_all=True)
        try:
            return self._written(name)
        except EngineFailed as error:
            return PartDone(name=name, error=str(error), ends_all=True)
        except (MillpondError, pa.ArrowException, OSError) as error:
            about = str(error) if isinstance(error, MillpondError) else summary(error)
            return PartDone(name=name, error=about)

    def _written(self, name: str) -> PartDone:
        """Write a file aside, and move it to its place when it is complete."""
        system, target = self._spec.target.system, self._spec.target.path(name)
        aside = self._spec.target.path(f"{UNFINISHED}/{uuid.uuid4().hex}.parquet")
        system.create_dir(aside.rpartition("/")[0], recursive=True)
        part = _Part(self._batch, self._spec, name)
        try:
            part.write(aside)
            system.create_dir(target.rpartition("/")[0], recursive=True)
            system.move(aside, target)
        except BaseException:
            with suppress(OSError):
                system.delete_file(aside)
            raise
        return part.done()

    def __repr__(self) -> str:
        return f"PartBatch(source={self._spec.source.uri!r}, target={self._spec.target.uri!r})"


class _Part:
    """One file and the counts of its rows."""

    def __init__(self, batch: EmbedBatch, spec: PartsSpec, name: str) -> None:
        self._batch = batch
        self._spec = spec
        self._name = name
        self._rows = self._failed = self._truncated = 0

    def write(self, path: str) -> None:
        """All of it. Raises `MillpondError` for the content, and `OSError`."""
        tables = self._tables()
        first = next(tables)
        with (
            self._spec.target.system.open_output_stream(path) as file,
            pq.ParquetWriter(file, first.schema) as writer,
        ):
            for group in row_groups(chain([first], tables)):
                writer.write_table(group, row_group_size=max(1, len(group)))

    def done(self) -> PartDone:
        return PartDone(
            name=self._name, rows=self._rows, failed=self._failed, truncated=self._truncated
        )

    def _tables(self) -> Iterator[Any]:
        """With their vectors; at least one, which may be empty."""
        spec = self._spec
        with (
            spec.source.system.open_input_file(spec.source.path(self._name)) as opened,
            pq.ParquetFile(opened, pre_buffer=True) as file,
        ):
            names = file.schema_arrow.names
            columns = list(spec.columns.read) if spec.vectors_only else None
            if spec.columns.read[0] not in names:
                raise MillpondError(
                    f"there is no column {spec.columns.read[0]!r}, only "
                    f"{', '.join(map(repr, names))}: name the text with --column"
                )
            if not file.metadata.num_rows:
                empty = file.schema_arrow.empty_table()
                yield self._embedded(empty.select(columns) if columns else empty)
            for batch in file.iter_batches(
                batch_size=spec.chunk_rows, columns=columns, use_threads=False
            ):
                yield self._embedded(pa.Table.from_batches([batch]))

    def _embedded(self, table: Any) -> Any:
        try:
            computed = self._batch.compute(table)
        except (InvalidInput, TextFailed) as error:
            row = self._rows + error.index
            raise MillpondError(f"row {row}: {error.args[0]}") from error
        self._rows += table.num_rows
        self._failed += len(computed.errors)
        self._truncated += computed.truncated
        embedded = self._batch.with_columns(table, computed)
        return (
            embedded.drop_columns(self._spec.columns.read) if self._spec.vectors_only else embedded
        )


_DONE = pa.schema(
    [
        ("name", pa.string()),
        ("rows", pa.int64()),
        ("failed", pa.int64()),
        ("truncated", pa.int64()),
        ("error", pa.string()),
        ("ends_all", pa.bool_()),
    ]
)


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Be the driver of a cluster: the one at hand ("auto"), an own one ("local"), or another.

    A process that is one already stays it. Raises `MillpondError` where there is no cluster.
    """
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 256 << 20}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise MillpondError(
            f"no Ray cluster can be reached at {address!r} ({summary(error)}): start one with "
            "`ray start --head`, or give --ray local for one on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def remove_unfinished(target: Folder) -> None:
    """Remove what actors that died have left in a folder."""
    with suppress(OSError):
        target.system.delete_dir(target.path(UNFINISHED))
