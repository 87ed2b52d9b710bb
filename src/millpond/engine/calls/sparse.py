"""`SparseCalls`: the calls of an engine for sparse vectors, on the engine's own queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Unpack

from ...scheduler.request import Priority
from ...sparse.embeddings import SparseEmbeddings
from ...sparse.vectors import SparseVectors
from ...stats import ProgressHook
from ..params.embed import TextInput, TextOptions, TextsInput, params_of
from ..params.sparse import SparseParams
from .base import Calls

__all__ = ["SparseCalls", "SparseOptions"]


class SparseOptions(TextOptions, total=False):
    """The options of one call, as `Engine.embed_sparse` explains them."""

    max_active_dims: int | None
    min_weight: float


class SparseCalls(Calls):
    """What an engine answers with a model that gives sparse vectors."""

    def embed_sparse(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[SparseOptions],
    ) -> Any:
        """Sparse vectors of texts, by a model such as SPLADE: weights of terms of its vocabulary.

        A list of texts gives `SparseVectors`, a single text a `SparseVector`, which unpacks into
        its indices and values.

        - `task`: "query" or "document"; adds the prompt the model saved for it and takes its route,
          which for queries may be a table instead of a transformer.
        - `max_active_dims`: keep this number of dimensions, of the largest weights; None keeps what
          the checkpoint says, all as a rule.
        - `min_weight`: keep weights above it.
        - the others are those of `embed`.

        A folder without modules.json whose model is a masked language model gives sparse vectors
        by this call, as sentence-transformers' `SparseEncoder` reads it, and dense ones by `embed`.

        Raises `UnsupportedCall` where the model gives no sparse vectors, and else as `embed`.
        """
        result, single = self._run(texts, self._sparse(options), progress, call="embed_sparse")
        return result.vectors[0] if single else result.vectors

    async def aembed_sparse(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[SparseOptions],
    ) -> Any:
        """`embed_sparse` for any event loop. A cancelled call is taken out of the queue."""
        params = self._sparse(options)
        result, single = await self._arun(texts, params, progress, call="embed_sparse")
        return result.vectors[0] if single else result.vectors

    def submit_sparse(
        self, texts: TextsInput, *, wait: bool = True, **options: Unpack[SparseOptions]
    ) -> Future[SparseEmbeddings]:
        """Hand texts in and go on; the future gives `SparseEmbeddings`, an error per failed text.

        It raises, blocks and is cancelled as `submit` is.
        """
        return self._submit(texts, self._sparse(options), wait, call="embed_sparse")

    def embed_sparse_iter(
        self,
        texts: Iterable[TextInput],
        *,
        chunk_size: int = 1024,
        progress: ProgressHook | None = None,
        **options: Unpack[SparseOptions],
    ) -> Iterator[SparseVectors]:
        """Sparse vectors of a corpus of any length: those of `chunk_size` texts at a time.

        It reads ahead, and raises for texts of a chunk, as `embed_iter` does.
        """
        params = self._sparse({"priority": Priority.BULK, **options})
        return self._stream(texts, params, chunk_size, progress, call="embed_sparse")

    def _sparse(self, options: SparseOptions) -> SparseParams:
        return params_of(SparseParams, SparseOptions, options, terms=self._inputs.names)
