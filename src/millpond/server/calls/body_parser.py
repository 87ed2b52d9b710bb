"""`BodyParser`: request bodies to the fields of a request, large ones in a child process.

Parsing JSON holds the interpreter: 16 MiB of it for 12 ms, or 250 ms where they are token ids, and
every query waits as long. So a large body is parsed by a child of low priority, and comes back in
parts that take about a millisecond each to read.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import numpy as np

from ..errors import ApiError
from ..schemas.embeddings import RequestBody
from .json_route import Kinds, parsed_body

__all__ = ["BodyParser", "serve"]

LARGE_BYTES = 2**18  # parsed on the event loop in up to 5 ms
PART_LENGTH = 2**18  # characters, or token ids
NICENESS = 10  # of the child: it takes the processor time that queries leave


class BodyParser:
    """One application's. Its child is started by the first large body."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="millpond-body-parser")
        self._child: _Child | None = None  # of that thread

    async def parse(self, kinds: Kinds, chunks: Sequence[bytes], **options: Any) -> RequestBody:
        """The request that a body holds; the options are those of `parsed_body`.

        That of a large one is not validated again, and its token ids are arrays. Raises `ApiError`.
        """
        if sum(map(len, chunks)) <= LARGE_BYTES:
            return parsed_body(kinds, b"".join(chunks), **options)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._in_child, kinds, chunks, options)

    def close(self) -> None:
        """End the child. To be called when no body is being parsed."""
        self._thread.shutdown()
        if self._child is not None:
            self._child.end()

    def _in_child(
        self, kinds: Kinds, chunks: Sequence[bytes], options: dict[str, Any]
    ) -> RequestBody:
        if self._child is None:
            self._child = _Child()
        try:
            return self._child.parse(kinds, chunks, options)
        except ApiError:
            raise
        except Exception:
            self._child.end()
            self._child = None  # the next body has another
            raise

    def __repr__(self) -> str:
        return f"BodyParser(has_child={self._child is not None})"


class _Child:
    """The parent's side of the process. A request and its answer are pickles, one after the other.

    In a process group of its own, so that Ctrl-C leaves it to parse what the parent answers yet.
    """

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self.end = weakref.finalize(self, _end, self._process)

    def parse(self, kinds: Kinds, chunks: Sequence[bytes], options: dict[str, Any]) -> RequestBody:
        """Raises `ApiError`, and `EOFError` or `OSError` where the process is gone."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        _write((kinds, chunks, options), requests)
        found = pickle.load(answers)
        if isinstance(found, ApiError):
            raise found
        kind, fields, shapes = found
        items = _joined(iter(lambda: pickle.load(answers), None))
        large = {name: _restored(shape, items) for name, shape in shapes.items()}
        assert next(items, None) is None
        request: RequestBody = kind.model_construct(**fields, **large)
        return request


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(OSError), process:  # closes its pipes and waits
        pass


def serve() -> None:
    """The child: parse what arrives at standard input, until its end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # service managers send it to both
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            _serve_one(sys.stdin.buffer, sys.stdout.buffer)


def _serve_one(requests: IO[bytes], answers: IO[bytes]) -> None:
    kinds, chunks, options = pickle.load(requests)
    try:
        request = parsed_body(kinds, b"".join(chunks), **options)
    except ApiError as error:
        _write(error, answers)
        return
    kind = type(request)
    fields = {name: getattr(request, name) for name in kind.model_fields}
    items: list[str | list[int]] = []
    shapes = {name: _taken_apart(fields.pop(name), items) for name in kind.LARGE_FIELDS}
    _write((kind, fields, shapes), answers)
    for batch in _batches(_parts(items)):
        _write(batch, answers)
    _write(None, answers)


def _write(value: object, file: IO[bytes]) -> None:
    pickle.dump(value, file, protocol=5)
    file.flush()


_Shape = list["_Shape"] | dict[str, "_Shape"] | None
"""A list or an object of shapes; None for a text, or for the token ids of one."""


def _taken_apart(value: Any, items: list[str | list[int]]) -> _Shape:
    """The shape of a field, whose texts and token ids are appended to `items`."""
    if isinstance(value, dict):
        return {name: _taken_apart(one, items) for name, one in value.items()}
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        items.append(value)
        return None
    return [_taken_apart(one, items) for one in value]


def _restored(shape: _Shape, items: Iterator[Any]) -> Any:
    if isinstance(shape, dict):
        return {name: _restored(one, items) for name, one in shape.items()}
    return next(items) if shape is None else [_restored(one, items) for one in shape]


_Part = tuple[Any, bool]
"""Characters of a text or token ids, and whether they are its last."""


def _parts(items: Iterable[str | list[int]]) -> Iterator[_Part]:
    for item in items:
        whole = item if isinstance(item, str) else np.array(item, dtype=np.int32)
        for start in range(0, max(1, len(whole)), PART_LENGTH):
            stop = start + PART_LENGTH
            yield whole[start:stop], stop >= len(whole)


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Of about `PART_LENGTH` in all, so that short texts are not read one by one."""
    batch: list[_Part] = []
    length = 0
    for part in parts:
        batch.append(part)
        length += len(part[0])
        if length >= PART_LENGTH:
            yield batch
            batch, length = [], 0
    yield batch


def _joined(batches: Iterable[list[_Part]]) -> Iterator[Any]:
    """The items that the parts are of."""
    parts: list[Any] = []
    for batch in batches:
        for part, is_last in batch:
            parts.append(part)
            if is_last:
                yield "".join(parts) if isinstance(part, str) else np.concatenate(parts)
                parts = []
