"""`MillpondRanker`: documents by a reranker's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component

from haystack_integrations.common.millpond import MillpondComponent, require_string

__all__ = ["MillpondRanker"]


@component
class MillpondRanker(MillpondComponent):
    """Documents by a reranker's score for a query, the best first.

    `top_k` keeps at most that many, `score_threshold` those with at least that score. `activation`,
    `prompt` and `truncate` are those of `Engine.score`; the others as with the embedders.
    """

    def __init__(
        self,
        model: str,
        *,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        activation: str = "auto",
        prompt: str | None = None,
        truncate: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        self.keep(
            model,
            engine_options,
            top_k=top_k,
            score_threshold=score_threshold,
            activation=activation,
            prompt=prompt,
            truncate=truncate,
            meta_fields_to_embed=list(meta_fields_to_embed or ()),
            embedding_separator=embedding_separator,
        )

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """`documents` are copies with scores; the arguments go before those of the component.

        Raises `TypeError` for what are no documents, and what `Engine.rank` raises.
        """
        texts, top_n = self._given(documents, top_k)
        options = self.options("activation", "prompt", "truncate")
        ranked = self.engine.rank(require_string(query), texts, top_n=top_n, **options)
        return self._ranked(documents, ranked, score_threshold)

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """`run` for an event loop."""
        texts, top_n = self._given(documents, top_k)
        options = self.options("activation", "prompt", "truncate")
        ranked = await self.engine.arank(require_string(query), texts, top_n=top_n, **options)
        return self._ranked(documents, ranked, score_threshold)

    def _given(self, documents: Sequence[Document], top_k: int | None) -> tuple[list[str], Any]:
        return self.texts(documents), self.arguments["top_k"] if top_k is None else top_k

    def _ranked(
        self, documents: Sequence[Document], ranked: Any, threshold: float | None
    ) -> dict[str, Any]:
        least = self.arguments["score_threshold"] if threshold is None else threshold
        kept = [one for one in ranked if least is None or one.score >= least]
        return {"documents": [replace(documents[one.index], score=one.score) for one in kept]}
