"""`EmbeddingStream`: the vectors of a corpus, a slice at a time, as `Engine.embed_iter` gives them.

Of a multi-vector model they are `TokenVectors`.

It keeps a few slices in flight, and knows neither the engine nor how a text becomes a vector.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from ...errors import InvalidInput, InvalidOption, TextFailed, TextsFailed
from ...scheduler.request import Request
from ..params.embed import NO_TEXTS, TextInput

__all__ = ["EmbeddingStream", "require_stream_options"]

SLICES_AHEAD = 3  # slices that wait or run at a time


class EmbeddingStream(Iterator[Any]):
    """Iterates over matrices `[≤ chunk_size, dim]`, or token vectors, in the order of the texts.

    Where texts of a slice have no vector their errors are raised first, each time `next` is called,
    and then the matrix of the slice's other texts follows. Any other error ends it.
    """

    def __init__(
        self,
        texts: Iterator[TextInput],
        *,
        chunk_size: int,
        submit: Callable[[list[TextInput]], Request],
        wait: Callable[[Request], Any],
    ) -> None:
        self._ahead: deque[tuple[int, Request]] = (
            deque()
        )  # with the place of the slice's first text
        self._parts: deque[Any] = deque()  # of the slice whose turn
        self._texts = texts
        self._chunk_size = chunk_size
        self._submit = submit
        self._wait = wait
        self._read = 0  # texts
        self._turn = threading.Lock()  # held by the thread that asks for the next

    def __iter__(self) -> EmbeddingStream:
        return self

    def __next__(self) -> Any:
        if self._turn.locked():
            raise ValueError("another thread is waiting for the next vectors of this embed_iter")
        with self._turn:
            if not self._parts:
                self._take_slice()
            part = self._parts.popleft()
        if isinstance(part, Exception):
            raise part
        return part

    def _take_slice(self) -> None:
        try:
            while len(self._ahead) < SLICES_AHEAD:
                chunk = list(islice(self._texts, self._chunk_size))
                if not chunk:
                    break
                self._ahead.append((self._read, self._submit(chunk)))
                self._read += len(chunk)
            if not self._ahead:
                raise StopIteration
            start, request = self._ahead.popleft()
            self._parts.extend(_parts(self._wait(request), start))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up: what has not run is taken out. It needs no lock, so a collection may do it."""
        self._texts = iter(())
        while self._ahead:
            _, request = self._ahead.popleft()
            request.future.abandon()

    def __del__(self) -> None:
        if hasattr(self, "_ahead"):
            self.close()

    def __repr__(self) -> str:
        return f"EmbeddingStream(texts_read={self._read}, slices_ahead={len(self._ahead)})"


def _parts(result: Any, start: int) -> Iterator[Any]:
    """The errors of a slice by the places of their texts in the corpus, and its matrix."""
    failed: dict[int, TextFailed] = {}
    for row, error in sorted(result.errors.items()):
        if isinstance(error, InvalidInput):
            yield error.at(start + row)
        else:
            failed[start + row] = error.at(start + row)
    if failed:
        yield next(iter(failed.values())) if len(failed) == 1 else TextsFailed(failed)
    if len(result.errors) < len(result):
        yield result.of_good_texts(result.vectors)


def require_stream_options(
    texts: object, chunk_size: object, progress: object, output_dtype: object
) -> None:
    """Raise `InvalidOption` for what `embed_iter` cannot take."""
    if isinstance(texts, (str, *NO_TEXTS)) or not isinstance(texts, Iterable):
        raise InvalidOption("embed_iter takes an iterable of texts; one text goes to embed")
    if output_dtype in ("int8", "uint8"):
        raise InvalidOption(
            "each slice would be quantised by ranges of its own: let embed_iter give float32 "
            "and call millpond.quantize with ranges of your own"
        )
    if (
        isinstance(chunk_size, bool)
        or not isinstance(chunk_size, int)
        or not 0 < chunk_size <= sys.maxsize
    ):
        raise InvalidOption(f"chunk_size={chunk_size!r}: it must be a whole number above 0")
    if progress is not None and not callable(progress):
        raise InvalidOption(
            f"progress={progress!r}: embed_iter takes a function, since it does not know how "
            "many texts will come"
        )
