"""What LangChain's classes of sparse embeddings share: an engine, and the options of a call."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any, Literal, Unpack

from langchain_millpond.embeddings import _strings
from langchain_millpond.shared_engine import EngineOptions, SharedEngine
from millpond import Engine, SparseVectors

ROWS_PER_TURN = 64  # vectors made into a store's before the event loop gets its turn


class SparseOptions(EngineOptions, total=False):
    """What classes of sparse embeddings take, for type checkers; the fields say what it means."""

    query_prompt: str | None
    document_prompt: str | None
    query_max_active_dims: int | None
    max_active_dims: int | None
    min_weight: float
    truncate: Literal["end", "start", "error"] | None


class SparseModel(SharedEngine):
    """A sparse model on a shared engine. Queries take the query route and prompt of the checkpoint,
    and do not wait behind ingestion."""

    query_prompt: str | None = None
    """Text in front of every query; None for the checkpoint's own."""
    document_prompt: str | None = None
    """Text in front of every document; None for the checkpoint's own."""
    max_active_dims: int | None = None
    """Terms of a document that are kept, the heaviest; None for what the checkpoint says."""
    query_max_active_dims: int | None = None
    """The same of a query."""
    min_weight: float = 0.0
    """Weights above it are kept."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or to refuse them; None as the checkpoint says."""

    def __init__(self, *, engine: Engine | None = None, **options: Unpack[SparseOptions]) -> None:
        super().__init__(engine=engine, **options)

    def _require_valid(self) -> None:
        for task in ("query", "document"):
            self.engine.embed_sparse([], **self._call(task))

    def __hash__(self) -> int:  # pydantic's own does not take `engine_options`
        return hash((self.model, self.dtype, self.query_prompt, self.document_prompt))

    def _call(self, task: str) -> dict[str, Any]:
        query = task == "query"
        return {
            "task": task,
            "prompt": self.query_prompt if query else self.document_prompt,
            "priority": "interactive" if query else "bulk",
            "max_active_dims": self.query_max_active_dims if query else self.max_active_dims,
            "min_weight": self.min_weight,
            "truncate": self.truncate,
        }

    @staticmethod
    @abstractmethod
    def _of_store(vectors: SparseVectors) -> list[Any]:
        """Vectors as the store has them."""

    def embed_documents(self, texts: list[str]) -> list[Any]:
        """Embed documents, at bulk priority and with the document route and prompt.

        Args:
            texts: The texts to embed.

        Returns:
            One vector for each text, in order, as the store has it.
        """
        return self._of_store(self.engine.embed_sparse(_strings(texts), **self._call("document")))

    async def aembed_documents(self, texts: list[str]) -> list[Any]:
        """`embed_documents` for an event loop, which is free meanwhile."""
        vectors = await self.engine.aembed_sparse(_strings(texts), **self._call("document"))
        rows: list[Any] = []
        for start in range(0, len(vectors), ROWS_PER_TURN):
            rows += self._of_store(vectors[start : start + ROWS_PER_TURN])
            await asyncio.sleep(0)
        return rows

    def _query(self, text: str) -> Any:
        found = self.engine.embed_sparse(_strings([text]), **self._call("query"))
        return self._of_store(found)[0]

    async def _aquery(self, text: str) -> Any:
        found = await self.engine.aembed_sparse(_strings([text]), **self._call("query"))
        return self._of_store(found)[0]
