"""What is compared: each peer embeds a list in one call, and one query at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from sentence_transformers import SentenceTransformer

from millpond import Engine
from millpond.config import DTypeName


class Peer(Protocol):
    """A loaded model. Both calls may come from several threads."""

    name: str

    def embed(self, texts: list[str]) -> np.ndarray:
        """Vectors `[n, dim]`, at the peer's defaults for ingestion."""

    def query(self, text: str) -> np.ndarray:
        """One vector `[dim]`."""

    def close(self) -> None:
        """Give the model back."""


class SentenceTransformersPeer:
    """`SentenceTransformer.encode` at its defaults: float32, batches of 32, padded."""

    name = "sentence-transformers"

    def __init__(self, model: str) -> None:
        self._model = SentenceTransformer(model, device="cpu")

    def embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, show_progress_bar=False)

    def query(self, text: str) -> np.ndarray:
        return self._model.encode(text, show_progress_bar=False)

    def close(self) -> None:
        del self._model


class MillpondPeer:
    """`Engine.embed` with nothing set but the precision."""

    def __init__(self, model: str, dtype: DTypeName) -> None:
        self._engine = Engine(model, device="cpu", dtype=dtype)
        self.name = f"millpond {self._engine.info().dtype}"

    def embed(self, texts: list[str]) -> np.ndarray:
        return self._engine.embed(texts)

    def query(self, text: str) -> np.ndarray:
        return self._engine.embed(text)

    def close(self) -> None:
        self._engine.close()


PEERS: tuple[Callable[[str], Peer], ...] = (
    SentenceTransformersPeer,
    lambda model: MillpondPeer(model, "float32"),
    lambda model: MillpondPeer(model, "auto"),
)
