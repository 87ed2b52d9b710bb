"""Embedders of a text and of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component

from haystack_integrations.common.millpond import MillpondComponent, require_string

__all__ = ["MillpondDocumentEmbedder", "MillpondTextEmbedder"]

_EMBED = ("prompt", "dimensions", "normalize", "truncate")


@component
class MillpondTextEmbedder(MillpondComponent):
    """The vector of a text, as a query: with the model's prompt for queries, unless `prompt` is.

    `dimensions`, `normalize` and `truncate` are those of `Engine.embed`; `engine_options` are the
    fields of `EngineConfig`. Raises `InvalidOption`.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: str | None = None,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        self.keep(
            model,
            engine_options,
            prompt=prompt,
            dimensions=dimensions,
            normalize=normalize,
            truncate=truncate,
        )

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """`embedding` is the vector. Raises `TypeError` for what is no string."""
        vector = self.engine.embed(require_string(text), task="query", **self.options(*_EMBED))
        return {"embedding": vector.tolist(), "meta": {"model": self.model}}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run` for an event loop; concurrent calls share forward passes."""
        vector = await self.engine.aembed(
            require_string(text), task="query", **self.options(*_EMBED)
        )
        return {"embedding": vector.tolist(), "meta": {"model": self.model}}


@component
class MillpondDocumentEmbedder(MillpondComponent):
    """Documents with their vectors: with the model's prompt for documents, unless `prompt` is.

    A document's text is its content after the values of `meta_fields_to_embed`, with
    `embedding_separator` between them. The other arguments are those of `MillpondTextEmbedder`.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        self.keep(
            model,
            engine_options,
            prompt=prompt,
            dimensions=dimensions,
            normalize=normalize,
            truncate=truncate,
            meta_fields_to_embed=list(meta_fields_to_embed or ()),
            embedding_separator=embedding_separator,
            progress_bar=progress_bar,
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """`documents` are copies with vectors. Raises `TypeError` for what are no documents."""
        texts = self.texts(documents)
        progress = bool(self.arguments["progress_bar"])
        options = self.options(*_EMBED)
        vectors = self.engine.embed(texts, task="document", progress=progress, **options)
        return self._embedded(documents, vectors)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run` for an event loop."""
        texts = self.texts(documents)
        progress = bool(self.arguments["progress_bar"])
        options = self.options(*_EMBED)
        vectors = await self.engine.aembed(texts, task="document", progress=progress, **options)
        return self._embedded(documents, vectors)

    def _embedded(self, documents: Sequence[Document], vectors: Any) -> dict[str, Any]:
        embedded = [
            replace(document, embedding=vector.tolist())
            for document, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded, "meta": {"model": self.model}}
