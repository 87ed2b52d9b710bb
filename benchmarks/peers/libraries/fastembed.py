"""fastembed's engine on the same model, which it reads as ONNX."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Embedder, Peer

NAME = "benchmark/all-MiniLM-L6-v2"


class FastembedPeer(Embedder):
    """`TextEmbedding.embed`, with the model registered as fastembed documents it."""

    def __init__(self, folder: Path, *, batch_size: int) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        TextEmbedding.add_custom_model(
            model=NAME,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf=NAME),
            dim=384,
            model_file="onnx/model.onnx",
        )
        self._model = TextEmbedding(NAME, specific_model_path=str(folder))
        self._batch_size = batch_size
        self._counts = (0, 0)
        self._tokenize = self._model.model.tokenize
        self._model.model.tokenize = self._count

    def embed(self, texts: list[str]) -> Any:
        return list(self._model.embed(texts, batch_size=self._batch_size))

    def query(self, text: str) -> Any:
        return next(iter(self._model.query_embed(text)))

    def tokens(self) -> tuple[int, int] | None:
        return self._counts

    def _count(self, documents: list[str], **options: Any) -> Any:
        encodings = self._tokenize(documents, **options)
        real = sum(sum(encoding.attention_mask) for encoding in encodings)
        computed = sum(len(encoding) for encoding in encodings)
        self._counts = (self._counts[0] + real, self._counts[1] + computed)
        return encodings


PEERS = (
    Peer(
        "fastembed",
        partial(FastembedPeer, batch_size=256),
        "`TextEmbedding.embed` at its defaults (batches of 256)",
        environment="fastembed",
    ),
    Peer(
        "fastembed, batches of 8",
        partial(FastembedPeer, batch_size=8),
        "`TextEmbedding.embed`, `batch_size=8`",
        environment="fastembed",
    ),
)
