"""The real model behind a server that has a key, for its clients."""

from __future__ import annotations

import numpy as np

__all__ = ["KEY", "MODEL", "NAME", "TEXTS", "assert_same"]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
NAME = "embedding-model"
KEY = "key-of-the-tests"
TEXTS = ["Hello, world!", "A mill pond drives the wheel.", "", "東京 🦊", "word " * 400]


def assert_same(found: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found, dtype=np.float32), expected, atol=1e-6)
