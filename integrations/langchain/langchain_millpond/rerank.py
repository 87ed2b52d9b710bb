"""`MillpondRerank` and `MillpondCrossEncoder`: LangChain's interfaces for rerankers.

What lives here is a translation, as in `langchain_millpond.embeddings`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy.typing as npt
from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document

from langchain_millpond.shared_engine import EngineOptions, SharedEngine
from langchain_millpond.switching import OF_RERANKERS
from millpond import Engine, UnsupportedCall


class RerankOptions(EngineOptions, total=False):
    """What both classes take, for type checkers; their fields say what it means."""

    activation: str
    truncate: Literal["end", "start", "document", "error"] | None
    prompt: str | None
    prompt_name: str | None


class DocumentOptions(RerankOptions, total=False):
    """What `MillpondRerank` takes."""

    top_n: int | None


class _Reranker(SharedEngine):
    """The options of a call for pairs."""

    activation: str = "auto"
    """What is applied to the model's logits: "auto" is what the checkpoint says, mostly a
    sigmoid; "none", "sigmoid" and others."""
    truncate: Literal["end", "start", "document", "error"] | None = None
    """What to cut of a pair that is too long: "document" leaves the query whole, "error" raises
    `TextTooLong`; None cuts the longer of the two."""
    prompt: str | None = None
    """Text in front of every query, or the instruction where the checkpoint has a chat template;
    None for the checkpoint's own."""
    prompt_name: str | None = None
    """Name of a prompt that the checkpoint saved."""

    _renamed = OF_RERANKERS

    def __init__(self, **options: Any) -> None:  # or type checkers make another
        super().__init__(**options)

    @property
    def _call(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "truncate": self.truncate,
            "prompt": self.prompt,
            "prompt_name": self.prompt_name,
        }


class MillpondRerank(_Reranker, BaseDocumentCompressor):
    """Reranks documents with a cross-encoder in a Millpond engine inside this process.

    Objects with the same model and engine options share one engine, also with
    `MillpondCrossEncoder`: the weights are loaded once, and the calls of all threads and event
    loops are batched together. A call does not wait behind larger ones. An object cannot be
    changed; it pickles to its options and finds or makes the shared engine on the other side.

    Setup:
        Install `langchain-millpond`.

        ```bash
        pip install -U langchain-millpond
        ```

    Key init args — rerank params:
        model: str
            A folder, the name of a reranker on the Hugging Face hub, or a name that an installed
            package carries. Also taken and read as `model_name`.
        top_n: int | None
            How many documents to keep, 3 by default; None for all of them.
        activation, truncate, prompt, prompt_name
            See the fields.

    Key init args — engine params:
        device, dtype, engine_options, engine
            As in `MillpondEmbeddings`.

    Instantiate:
        ```python
        from langchain_millpond import MillpondRerank

        reranker = MillpondRerank(model="cross-encoder/ms-marco-MiniLM-L6-v2", top_n=3)
        ```

    Rerank:
        ```python
        reranker.compress_documents(documents, "When can I buy bread?")
        ```

    Async:
        ```python
        await reranker.acompress_documents(documents, "When can I buy bread?")
        ```

    In a retriever:
        ```python
        from langchain_classic.retrievers import ContextualCompressionRetriever

        retriever = ContextualCompressionRetriever(
            base_compressor=reranker, base_retriever=store.as_retriever(search_kwargs={"k": 50})
        )
        ```

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is no reranker.
    """

    top_n: int | None = 3
    """How many documents to keep; None for all of them."""

    def __init__(self, *, engine: Engine | None = None, **options: Unpack[DocumentOptions]) -> None:
        super().__init__(engine=engine, **options)

    def _require_valid(self) -> None:
        self.engine.rank("", [], top_n=self.top_n, **self._call)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents for a query, best first.

        Args:
            documents: The documents, which are left as they are.
            query: The query.
            callbacks: Not used.

        Returns:
            Copies of the best, with `metadata["relevance_score"]`, a float.
        """
        texts = [document.page_content for document in documents]
        ranked = self.engine.rank(query, texts, top_n=self.top_n, **self._call)
        return [_scored(documents[one.index], one.score) for one in ranked]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` for an event loop, which is free meanwhile."""
        texts = [document.page_content for document in documents]
        ranked = await self.engine.arank(query, texts, top_n=self.top_n, **self._call)
        return [_scored(documents[one.index], one.score) for one in ranked]


class MillpondCrossEncoder(_Reranker, BaseCrossEncoder):
    """Scores pairs of texts with a cross-encoder in a Millpond engine inside this process.

    For `CrossEncoderReranker` and others that take a `BaseCrossEncoder`; `MillpondRerank` needs
    no other class and is asynchronous. The engine is shared, as there.

    Key init args:
        model, device, dtype, engine_options, engine
            As in `MillpondRerank`.

    Instantiate:
        ```python
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
        from langchain_millpond import MillpondCrossEncoder

        encoder = MillpondCrossEncoder(model="cross-encoder/ms-marco-MiniLM-L6-v2")
        reranker = CrossEncoderReranker(model=encoder, top_n=3)
        ```

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is no reranker.
    """

    def __init__(self, *, engine: Engine | None = None, **options: Unpack[RerankOptions]) -> None:
        super().__init__(engine=engine, **options)

    def _require_valid(self) -> None:
        _relevance(self.engine.score([], **self._call))

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs.

        Args:
            text_pairs: Pairs of a query and a document.

        Returns:
            A score for each. Of a model with two labels (not relevant, relevant) the second's.
        """
        return _relevance(self.engine.score(list(text_pairs), **self._call))

    async def ascore(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """`score` for an event loop, which is free meanwhile."""
        return _relevance(await self.engine.ascore(list(text_pairs), **self._call))


def _scored(document: Document, score: float) -> Document:
    metadata = {**copy.deepcopy(document.metadata), "relevance_score": score}
    return document.model_copy(update={"metadata": metadata})


def _relevance(scores: npt.NDArray[Any]) -> list[float]:
    """Of scores `[n]`, or `[n, 2]` with those of "relevant" as the second."""
    if scores.ndim == 2 and scores.shape[1] != 2:
        raise UnsupportedCall(
            f"the model gives {scores.shape[1]} classes, and a pair has one score; take a reranker"
        )
    found: list[float] = (scores if scores.ndim == 1 else scores[:, 1]).tolist()
    return found
