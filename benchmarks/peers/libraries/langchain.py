"""LangChain embeddings objects: what people use today, and Millpond's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.forward_count import ForwardCount
from benchmarks.peers.peer import Embedder, Peer


class LangChainPeer(Embedder):
    """The four methods of LangChain's `Embeddings`."""

    def __init__(self, folder: Path, *, dtype: str | None) -> None:
        if dtype is None:
            from langchain_huggingface import HuggingFaceEmbeddings

            options = {"device": "cpu"}
            self._embeddings: Any = HuggingFaceEmbeddings(model=str(folder), model_kwargs=options)
            self._count: ForwardCount | None = ForwardCount(self._embeddings._client)
        else:
            from langchain_millpond import MillpondEmbeddings

            self._embeddings = MillpondEmbeddings(model=str(folder), device="cpu", dtype=dtype)
            self._count = None  # as for Millpond by itself

    def embed(self, texts: list[str]) -> Any:
        return self._embeddings.embed_documents(texts)

    def query(self, text: str) -> Any:
        return self._embeddings.embed_query(text)

    async def aembed(self, texts: list[str]) -> Any:
        return await self._embeddings.aembed_documents(texts)

    async def aquery(self, text: str) -> Any:
        return await self._embeddings.aembed_query(text)

    def tokens(self) -> tuple[int, int] | None:
        return self._count and self._count.tokens


PEERS = (
    Peer(
        "langchain-huggingface",
        partial(LangChainPeer, dtype=None),
        "`HuggingFaceEmbeddings` at its defaults",
    ),
    Peer(
        "millpond in LangChain",
        partial(LangChainPeer, dtype="auto"),
        "`MillpondEmbeddings` at its defaults",
        precision="bfloat16",
    ),
    Peer(
        "millpond in LangChain, float32",
        partial(LangChainPeer, dtype="float32"),
        '`MillpondEmbeddings`, `dtype="float32"`',
        in_full_run=False,
    ),
)
