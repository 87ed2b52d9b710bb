"""The body of an embedding answer, written from the array and not float by float."""

from __future__ import annotations

from binascii import b2a_base64
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

__all__ = ["embedding_body"]


def embedding_body(
    vectors: npt.NDArray[np.float32], *, model: str, tokens: int, as_base64: bool
) -> bytes:
    """JSON for vectors `[n, dim]`: floats as short as float32 allows, or base64 of the bytes."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    encoded: list[Any] = [_base64(row) for row in rows] if as_base64 else list(rows)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(encoded)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64(row: npt.NDArray[np.float32]) -> str:
    return b2a_base64(row.data, newline=False).decode("ascii")
