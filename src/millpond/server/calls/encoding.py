"""JSON written from arrays and lists, a slice at a time.

Writing holds the interpreter, and every query waits as long. A slice takes about a millisecond.
"""

from __future__ import annotations

import asyncio
from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

__all__ = [
    "SLICE_LENGTH",
    "SlicedResponse",
    "array_slices",
    "base64_of",
    "embedding_slices",
    "item_slices",
    "json_bytes",
    "matrix_parts",
    "string_parts",
]

SLICE_LENGTH = 2**15  # numbers, or strings
SLICE_BYTES = 2**19  # of texts
LITTLE_ENDIAN = np.dtype("<f4")


def embedding_slices(
    vectors: npt.NDArray[np.float32], *, model: str, tokens: int, as_base64: bool
) -> Iterator[bytes]:
    """The answer for vectors `[n, dim]`, `n` above 0: floats as short as float32 allows, or base64
    of the bytes."""
    rows = np.ascontiguousarray(vectors, dtype=LITTLE_ENDIAN)
    length = max(1, SLICE_LENGTH // rows.shape[1])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    opening, closing = b'{"object":"list","data":[', orjson.dumps({"model": model, "usage": usage})
    for start in range(0, len(rows), length):
        items = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64_of(row) if as_base64 else row,
            }
            for index, row in enumerate(rows[start : start + length], start)
        ]
        written = json_bytes(items)
        is_last = start + length >= len(rows)
        before, after = b"," if start else opening, b"]," + closing[1:] if is_last else b""
        yield b"".join((before, memoryview(written)[1:-1], after))


def json_bytes(value: Any) -> bytes:
    """JSON of a value that may hold arrays, which are contiguous."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def matrix_parts(rows: npt.NDArray[Any]) -> Iterator[bytes]:
    """A JSON array of arrays, in parts that do not hold the interpreter for long."""
    step = max(1, SLICE_LENGTH // max(1, rows.shape[1]))
    yield b"["
    for start in range(0, len(rows), step):
        written = json_bytes(np.ascontiguousarray(rows[start : start + step]))
        yield (b"," if start else b"") + written[1:-1]
    yield b"]"


def array_slices(items: Sequence[Any]) -> Iterator[bytes]:
    """A JSON array."""
    yield b"["
    for start in range(0, len(items), SLICE_LENGTH):
        yield (b"," if start else b"") + orjson.dumps(items[start : start + SLICE_LENGTH])[1:-1]
    yield b"]"


def item_slices(
    opening: bytes, items: Iterable[Iterable[bytes]], closing: bytes
) -> Iterator[bytes]:
    """Items in their parts, with commas in between, joined to slices."""
    parts, size = [opening], len(opening)
    for index, item in enumerate(items):
        for part in (b",", *item) if index else item:
            parts.append(part)
            size += len(part)
            if size >= SLICE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    yield b"".join((*parts, closing))


def string_parts(text: str) -> Iterator[bytes]:
    """A JSON string."""
    yield b'"'
    for start in range(0, len(text), SLICE_BYTES):
        yield orjson.dumps(text[start : start + SLICE_BYTES])[1:-1]
    yield b'"'


class SlicedResponse(Response):
    """A body that was written in slices and is sent in them."""

    media_type = "application/json"

    def __init__(self, slices: Sequence[bytes], headers: Mapping[str, str]) -> None:
        # Starlette's own would write a body first, and look for what is here.
        self.status_code, self.background, self.body = 200, None, b""
        length, kind = str(sum(map(len, slices))), self.media_type
        all_headers = {"content-length": length, **headers, "content-type": kind}
        self.raw_headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in all_headers.items()
        ]
        self._slices = slices

    @classmethod
    async def of(cls, slices: Iterable[bytes], headers: Mapping[str, str]) -> Self:
        """Written with the event loop free between slices."""
        written: list[bytes] = []
        for one in slices:
            if written:
                await asyncio.sleep(0)
            written.append(one)
        return cls(written, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        for left, body in zip(range(len(self._slices))[::-1], self._slices, strict=True):
            await send({"type": "http.response.body", "body": body, "more_body": left > 0})


def base64_of(row: npt.NDArray[np.float32]) -> str:
    """The bytes of a row, as JSON can hold them."""
    return b2a_base64(row.data, newline=False).decode("ascii")
