"""`MillpondSparseEmbedding`: LlamaIndex's sparse embedding interface on a shared Millpond engine.

Its `sparse_doc_fn` and `sparse_query_fn` are the pair of functions that LlamaIndex' Qdrant store
takes for hybrid retrieval. What lives here is a translation, and CSR to dictionaries and lists.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.embeddings.millpond.base import (
    MAX_EMBED_BATCH_SIZE,
    OF_ENGINE,
    PathText,
    _fields_for,
    _string,
    _strings,
)

from millpond import Engine, InvalidOption, SparseVectors

BatchSparseEncoding = tuple[list[list[int]], list[list[float]]]
"""Indices and values of several texts, as LlamaIndex' Qdrant store takes them."""


class SparseOptions(TypedDict, total=False):
    """What `MillpondSparseEmbedding` takes beside a model or an engine, for type checkers."""

    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]
    query_instruction: str | None
    text_instruction: str | None
    max_active_dims: int | None
    query_max_active_dims: int | None
    min_weight: float
    truncate: Literal["end", "start", "error"] | None
    embed_batch_size: int
    num_workers: int | None


class MillpondSparseEmbedding(BaseSparseEmbedding):
    """
    Sparse embeddings, such as SPLADE's, from a Millpond engine inside this process.

    Objects with the same engine options share one engine. Queries take the query route and prompt
    of the checkpoint, and do not wait behind ingestion. A pickle holds the options, and finds or
    makes the shared engine where it is loaded.

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is not sparse.

    Examples:
        `pip install llama-index-embeddings-millpond llama-index-vector-stores-qdrant`

        ```python
        from llama_index.embeddings.millpond import MillpondSparseEmbedding
        from llama_index.vector_stores.qdrant import QdrantVectorStore

        sparse = MillpondSparseEmbedding(model_name="naver/splade-v3")
        store = QdrantVectorStore(
            "documents",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
        )
        ```

    """

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # it may be a token
        use_attribute_docstrings=True,
    )

    model_name: Annotated[str, PathText] = Field(frozen=True)
    """A folder, or the name of a model on the Hugging Face hub. Without it, `engine`: an engine
    that is already built, whose options are read."""
    embed_batch_size: int = Field(default=MAX_EMBED_BATCH_SIZE, gt=0, le=MAX_EMBED_BATCH_SIZE)
    """Texts handed to the engine at a time, which forms its own batches of them."""
    device: str | list[str] | None = Field("auto", frozen=True)
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`, or several of them."""
    dtype: str = Field("auto", frozen=True)
    """`auto`, `float32`, `bfloat16`, `float16` or, on a CPU, `int8`."""
    revision: str | None = Field(None, frozen=True)
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = Field(False, frozen=True)
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = Field(None, frozen=True)
    """Longest text in tokens; None for the model's own."""
    cache_folder: Annotated[str | None, PathText] = Field(None, frozen=True)
    """Where downloaded models are kept; None for Hugging Face's own cache."""
    engine_options: dict[str, Any] = Field({}, frozen=True)
    """Any other option of `millpond.EngineConfig`, by name."""
    query_instruction: str | None = None
    """Text in front of every query; None for the prompt the checkpoint saves, "" for none."""
    text_instruction: str | None = None
    """Text in front of every text; None for the prompt the checkpoint saves, "" for none."""
    max_active_dims: int | None = None
    """Terms of a text that are kept, the heaviest; None for what the checkpoint says."""
    query_max_active_dims: int | None = None
    """The same of a query."""
    min_weight: float = 0.0
    """Weights above it are kept."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or raise `TextTooLong`; None as the checkpoint says."""

    _engine: Engine | None = PrivateAttr(None)  # None only in a pickle

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[SparseOptions],
    ) -> None:
        fields: dict[str, Any] = {**options}
        fields.pop("class_name", None)  # part of what `model_dump` gives
        if model_name is not None:
            fields["model_name"] = model_name
        if engine is not None:
            fields |= _fields_for(engine, fields)
        super().__init__(**fields)
        self._engine = engine
        for task in ("query", "document"):  # refuses bad options now
            self.engine.embed_sparse([], **self._call(task))

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised form."""
        return "MillpondSparseEmbedding"

    @property
    def engine(self) -> Engine:
        """The engine behind this object, for its `info()`, `stats()` and hooks."""
        if self._engine is None:
            self._engine = Engine.shared(**self._engine_options())
        return self._engine

    def _engine_options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in OF_ENGINE}
        options |= {"model": self.model_name, "cache_dir": self.cache_folder}
        if twice := options.keys() & self.engine_options.keys():
            raise InvalidOption(
                f"engine_options holds {', '.join(sorted(twice))}, which is a field of its own "
                "(model is model_name, and cache_dir is cache_folder)"
            )
        return options | self.engine_options

    def __getstate__(self) -> dict[str, Any]:
        pickle.dumps(self._engine)  # refuses one that its options do not bring back
        state: dict[str, Any] = super().__getstate__()
        return state | {"__pydantic_private__": {"_engine": None}}

    def _call(self, task: str) -> dict[str, Any]:
        query = task == "query"
        return {
            "task": task,
            "prompt": self.query_instruction if query else self.text_instruction,
            "priority": "interactive" if query else "bulk",
            "max_active_dims": self.query_max_active_dims if query else self.max_active_dims,
            "min_weight": self.min_weight,
            "truncate": self.truncate,
        }

    def sparse_doc_fn(self, texts: list[str]) -> BatchSparseEncoding:
        """Indices and values of documents, for a Qdrant store."""
        return _lists(self.engine.embed_sparse(_strings(texts), **self._call("document")))

    def sparse_query_fn(self, texts: list[str]) -> BatchSparseEncoding:
        """Indices and values of queries, for a Qdrant store."""
        return _lists(self.engine.embed_sparse(_strings(texts), **self._call("query")))

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        found = self.engine.embed_sparse(_string(query), **self._call("query"))
        return dict(found.to_dict())

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        found = await self.engine.aembed_sparse(_string(query), **self._call("query"))
        return dict(found.to_dict())

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        found = self.engine.embed_sparse(_strings(texts), **self._call("document"))
        return list(found.to_dicts())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        found = await self.engine.aembed_sparse(_strings(texts), **self._call("document"))
        return list(found.to_dicts())


def _lists(vectors: SparseVectors) -> BatchSparseEncoding:
    indices = [vector.indices.tolist() for vector in vectors]
    return indices, [vector.values.tolist() for vector in vectors]
