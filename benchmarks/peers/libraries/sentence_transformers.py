"""`SentenceTransformer.encode`: the reference at its defaults, and the settings its
documentation names for speed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.forward_count import ForwardCount
from benchmarks.peers.peer import Embedder, Peer


class SentenceTransformersPeer(Embedder):
    """One `encode` per call, padded batches of texts sorted by length."""

    def __init__(self, folder: Path, *, batch_size: int = 32, **options: Any) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cpu", **options)
        self._batch_size = batch_size
        self._count = ForwardCount(self.model)

    def embed(self, texts: list[str]) -> Any:
        return self.model.encode(texts, batch_size=self._batch_size, show_progress_bar=False)

    def query(self, text: str) -> Any:
        return self.model.encode(text, show_progress_bar=False)

    def tokens(self) -> tuple[int, int] | None:
        return self._count.tokens


BFLOAT16 = {"model_kwargs": {"dtype": "bfloat16"}}

PEERS = (
    Peer("sentence-transformers", SentenceTransformersPeer, "`encode` at its defaults"),
    Peer(
        "sentence-transformers bfloat16",
        partial(SentenceTransformersPeer, **BFLOAT16),
        "`encode`, `dtype=bfloat16`",
        precision="bfloat16",
    ),
    Peer(
        "sentence-transformers bfloat16, batches of 8",
        partial(SentenceTransformersPeer, batch_size=8, **BFLOAT16),
        "`encode`, `dtype=bfloat16`, `batch_size=8`",
        precision="bfloat16",
    ),
    Peer(
        "sentence-transformers ONNX",
        partial(SentenceTransformersPeer, backend="onnx"),
        '`encode`, `backend="onnx"` (optimum-onnx)',
        environment="optimum-onnx",
    ),
    Peer(
        "sentence-transformers OpenVINO",
        partial(SentenceTransformersPeer, backend="openvino"),
        '`encode`, `backend="openvino"` (optimum-intel); OpenVINO chooses bfloat16 where the'
        " processor has it",
        precision="bfloat16",
        environment="optimum-openvino",
    ),
)
