"""What LangChain's classes of sparse embeddings share: an engine, and the options of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Unpack

from langchain_millpond.embeddings import _strings
from langchain_millpond.shared_engine import EngineOptions, SharedEngine
from millpond import SparseVector, SparseVectors

ROWS_PER_TURN = 64  # vectors made into a store's before the event loop gets its turn

Found = TypeVar("Found")


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

    def __init__(self, **options: Unpack[SparseOptions]) -> None:
        super().__init__(**options)

    def _require_valid(self) -> None:
        for task in ("query", "document"):
            self._serving.embed_sparse([], **self._call(task))

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

    def _documents(self, texts: list[str]) -> SparseVectors:
        found: SparseVectors = self._serving.embed_sparse(_strings(texts), **self._call("document"))
        return found

    def _query(self, text: str) -> SparseVector:
        found = self._serving.embed_sparse(_strings([text]), **self._call("query"))
        vector: SparseVector = found[0]
        return vector

    async def _adocuments(
        self, texts: list[str], of_store: Callable[[SparseVector], Found]
    ) -> list[Found]:
        vectors = await self._serving.aembed_sparse(_strings(texts), **self._call("document"))
        rows: list[Found] = []
        for start in range(0, len(vectors), ROWS_PER_TURN):
            rows += map(of_store, vectors[start : start + ROWS_PER_TURN])
            await asyncio.sleep(0)
        return rows

    async def _aquery(self, text: str) -> SparseVector:
        found = await self._serving.aembed_sparse(_strings([text]), **self._call("query"))
        vector: SparseVector = found[0]
        return vector
