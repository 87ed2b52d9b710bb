"""LlamaIndex embedding models: what people use today, and Millpond's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.forward_count import ForwardCount
from benchmarks.peers.peer import Embedder, Peer


class LlamaIndexPeer(Embedder):
    """The calls that an index and a retriever make."""

    def __init__(self, folder: Path, *, dtype: str | None) -> None:
        if dtype is None:
            from llama_index.embeddings.huggingface import HuggingFaceEmbedding

            self._model: Any = HuggingFaceEmbedding(model_name=str(folder), device="cpu")
            self._count: ForwardCount | None = ForwardCount(self._model._model)
        else:
            from llama_index.embeddings.millpond import MillpondEmbedding

            self._model = MillpondEmbedding(model_name=str(folder), device="cpu", dtype=dtype)
            self._count = None  # as for Millpond by itself

    def embed(self, texts: list[str]) -> Any:
        return self._model.get_text_embedding_batch(texts)

    def query(self, text: str) -> Any:
        return self._model.get_query_embedding(text)

    async def aembed(self, texts: list[str]) -> Any:
        return await self._model.aget_text_embedding_batch(texts)

    async def aquery(self, text: str) -> Any:
        return await self._model.aget_query_embedding(text)

    def index(self, texts: list[str]) -> Any:
        from llama_index.core import VectorStoreIndex
        from llama_index.core.schema import TextNode

        nodes = [TextNode(text=text, id_=str(number)) for number, text in enumerate(texts)]
        return VectorStoreIndex(nodes, embed_model=self._model)

    def closest(self, texts: list[str], queries: list[str], count: int) -> list[list[int]]:
        retriever = self.index(texts).as_retriever(similarity_top_k=count)
        return [[int(hit.node.node_id) for hit in retriever.retrieve(query)] for query in queries]

    def tokens(self) -> tuple[int, int] | None:
        return self._count and self._count.tokens


PEERS = (
    Peer(
        "llama-index-embeddings-huggingface",
        partial(LlamaIndexPeer, dtype=None),
        "`HuggingFaceEmbedding` at its defaults",
    ),
    Peer(
        "millpond in LlamaIndex",
        partial(LlamaIndexPeer, dtype="auto"),
        "`MillpondEmbedding` at its defaults",
        precision="bfloat16",
    ),
    Peer(
        "millpond in LlamaIndex, float32",
        partial(LlamaIndexPeer, dtype="float32"),
        '`MillpondEmbedding`, `dtype="float32"`',
        in_full_run=False,
    ),
)
