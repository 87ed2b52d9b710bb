"""`SparseCalls`: the calls of an engine for sparse vectors, on the engine's own queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack, cast

from ...config import require_bool
from ...scheduler.request import Priority, Request, TruncateSide
from ...sparse.embeddings import SparseEmbeddings
from ...sparse.vectors import SparseVectors
from ...stats import ProgressHook
from ..params.embed import TextInput, TextsInput
from ..params.sparse import SparseParams
from .base import Calls
from .progress import progress_hook
from .stream import EmbeddingStream, require_stream_options

__all__ = ["SparseCalls", "SparseOptions"]


class SparseOptions(TypedDict, total=False):
    """The options of one call, as `Engine.embed_sparse` explains them."""

    task: str | None
    prompt: str | None
    prompt_name: str | None
    max_active_dims: int | None
    min_weight: float
    truncate: TruncateSide | None
    priority: Priority | str | None
    timeout: float | None


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
        with progress_hook(texts, progress) as hook:
            params = self._sparse_params(options, progress=hook, reported=hook is progress)
            request, single = self._submit_sparse(texts, params, strict=True, inline=True)
            return _sparse_vectors(self._wait(request, params.timeout), single)

    async def aembed_sparse(
        self,
        texts: TextsInput,
        *,
        progress: bool | ProgressHook = False,
        **options: Unpack[SparseOptions],
    ) -> Any:
        """`embed_sparse` for any event loop. A cancelled call is taken out of the queue."""
        with progress_hook(texts, progress) as hook:
            params = self._sparse_params(options, progress=hook, reported=hook is progress)
            request, single = self._submit_sparse(texts, params, strict=True)
            return _sparse_vectors(await self._await(request, params.timeout), single)

    def submit_sparse(
        self, texts: TextsInput, *, wait: bool = True, **options: Unpack[SparseOptions]
    ) -> Future[SparseEmbeddings]:
        """Hand texts in and go on; the future gives `SparseEmbeddings`, an error per failed text.

        It raises, blocks and is cancelled as `submit` is.
        """
        require_bool("wait", wait)
        params = self._sparse_params(options)
        request, _ = self._submit_sparse(texts, params, wait=wait, block=wait)
        return cast("Future[SparseEmbeddings]", request.future)

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
        spec = self._instance.spec
        SparseParams.require(spec, "embed_sparse_iter")
        require_stream_options(texts, chunk_size, progress, None)
        bulk: SparseOptions = {"priority": Priority.BULK, **options}
        params = self._sparse_params(bulk, progress=progress, reported=progress is not None)
        params.validate(spec)

        def submit(chunk: list[TextInput]) -> Request:
            return self._submit_sparse(chunk, params, several=True)[0]

        wait = partial(self._wait, timeout=params.timeout)
        return EmbeddingStream(iter(texts), chunk_size=chunk_size, submit=submit, wait=wait)

    def _sparse_params(
        self,
        options: SparseOptions,
        *,
        progress: ProgressHook | None = None,
        reported: bool = False,
    ) -> SparseParams:
        own = {"progress": progress, "reports_truncation": reported, "terms": self._inputs.names}
        return replace(SparseParams(**options), **own)  # type: ignore[arg-type]

    def _submit_sparse(
        self, texts: TextsInput, params: SparseParams, **how: bool
    ) -> tuple[Request, bool]:
        return self._send_texts(texts, params, call="embed_sparse", **how)


def _sparse_vectors(result: SparseEmbeddings, single: bool) -> Any:
    result.raise_for_errors()
    return result.vectors[0] if single else result.vectors
