"""`FileRun` holds a few chunks at a time, however long its input is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from millpond import Engine
from millpond.cli.files.npy import NpyEncoding
from millpond.cli.files.rows import Rows
from millpond.cli.files.run import FileRun

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, CHUNK = 400, 4


class CountedSource:
    """Texts that are made when they are asked for."""

    def __init__(self) -> None:
        self.read = 0

    def chunks(self, size: int, *, skip: int = 0) -> Iterator[Rows]:
        for first in range(skip, ROWS, size):
            self.read += size
            yield Rows(texts=[f"stone {row}" for row in range(first, first + size)])

    def empty(self) -> Rows:
        return Rows(texts=[])


def test_it_reads_no_more_than_a_few_chunks_ahead(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source, ahead, done = CountedSource(), [], 0

    def on_rows(count: int) -> None:
        nonlocal done
        done += count
        ahead.append(source.read - done)

    run = FileRun(
        source=source,
        encoding=NpyEncoding(),
        output=tmp_path / "out.npy",
        chunk_rows=CHUNK,
        options={},
        kind="dense",
        input_info=None,
        formats={},
    )
    with Engine(checkpoint("bert"), device="cpu", dtype="float32") as engine:
        partial = run.open(engine, resume=False)
        assert partial is not None
        run.embed(engine, partial, on_rows=on_rows)
    assert len(ahead) == ROWS / CHUNK
    assert max(ahead) <= 3 * CHUNK
    assert len(np.load(tmp_path / "out.npy")) == done == ROWS
