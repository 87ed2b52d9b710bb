"""`MillpondEmbedding`: LlamaIndex's embedding interface on a shared Millpond engine.

What lives here is a translation: LlamaIndex's fields to the options of an engine and of a call,
and arrays to lists of floats. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Unpack

import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.embeddings.millpond.shared_engine import (
    SharedEngine,
    SharedOptions,
    require_string,
    require_strings,
)

from millpond import CallProgress, Engine, ProgressBar, ProgressHook, TruncationLog

ROWS_PER_TURN = 64  # vectors made into lists before the event loop gets its turn, about 1 ms


class EmbeddingOptions(SharedOptions, total=False):
    """What `MillpondEmbedding` takes beside a model or an engine, for type checkers."""

    normalize: bool
    dimensions: int | None
    show_progress_bar: bool
    callback_manager: CallbackManager | None
    embeddings_cache: Any
    rate_limiter: Any


_NO_BACKEND = "none; set HF_TOKEN and HF_HUB_OFFLINE"
_NOT_NEEDED = "not needed: threads share one engine, and device takes several"
_POOLING = 'engine_options={"pooling": …} overrides the checkpoint\'s'
RENAMED = {
    "batch_size": "leave it out: it is 2048, and batches are sized in tokens",
    "truncate_dim": "dimensions, which also restores unit length",
    "model_kwargs": 'dtype; "auto" by default',
    "default_prompt_name": "leave it out; it had no effect",
    **dict.fromkeys(("backend", "token", "local_files_only"), _NO_BACKEND),
    **dict.fromkeys(("parallel_process", "target_devices"), _NOT_NEEDED),
    **dict.fromkeys(("tokenizer_name", "pooling", "model", "tokenizer"), _POOLING),
}
"""What parameters of `HuggingFaceEmbedding` are called here, as docs/integrations.md says."""

# The object whose call is in flight in a thread or task, which LlamaIndex divides into several, and
# the hook for its progress.
_call_in_flight: ContextVar[tuple[MillpondEmbedding, ProgressHook] | None] = ContextVar(
    "millpond_call", default=None
)


class MillpondEmbedding(SharedEngine, BaseEmbedding):
    """
    Embeddings from a Millpond engine inside this process.

    Objects with the same engine options share one engine: the weights are loaded once, and the
    calls of all threads and event loops are batched together. Queries do not wait behind
    ingestion. Texts longer than the model reads are cut, which is logged at the end of a call,
    with the count and what to do about it; then again whenever the count has doubled.

    The options that configure the engine cannot be changed afterwards. Copies use the same
    engine. A pickle holds the options, and finds or makes the shared engine where it is loaded.

    Raises:
        MillpondError: One of its kinds. Errors about one text carry its `index` in the call.

    Examples:
        `pip install llama-index-embeddings-millpond`

        ```python
        from llama_index.core import Settings
        from llama_index.embeddings.millpond import MillpondEmbedding

        Settings.embed_model = MillpondEmbedding(
            model_name="sentence-transformers/all-MiniLM-L6-v2"
        )

        vector = Settings.embed_model.get_query_embedding("Where is bread sold?")
        ```

    """

    normalize: bool = True
    """Scale vectors to unit length. False leaves them as the model gives them."""
    dimensions: int | None = None
    """Keep only the first N dimensions and restore unit length (Matryoshka)."""
    show_progress_bar: bool = False
    """Show a progress bar per call, which moves with every batch of the engine."""

    _renamed = RENAMED
    _truncation: TruncationLog = PrivateAttr(default_factory=lambda: TruncationLog(_advice))

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(model_name, engine=engine, **options)

    def _require_valid(self) -> None:
        self.engine.embed([], **self._call("document"))

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised form."""
        return "MillpondEmbedding"

    def _call(self, task: Literal["query", "document"]) -> dict[str, Any]:
        query = task == "query"
        return {
            "task": task,
            "prompt": self.query_instruction if query else self.text_instruction,
            "priority": "interactive" if query else "bulk",
            "dimensions": self.dimensions,
            "normalize": self.normalize,
            "truncate": self.truncate,
        }

    def _get_query_embedding(self, query: str) -> Embedding:
        return _floats(self.engine.embed(require_string(query), **self._call("query")))

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return _floats(await self.engine.aembed(require_string(query), **self._call("query")))

    def _get_text_embedding(self, text: str) -> Embedding:
        options = self._call("document")
        with self._reported(1) as call:
            return _floats(self.engine.embed(require_string(text), progress=call, **options))

    async def _aget_text_embedding(self, text: str) -> Embedding:
        options = self._call("document")
        with self._reported(1) as call:
            return _floats(await self.engine.aembed(require_string(text), progress=call, **options))

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        options = self._call("document")
        with self._reported(len(texts), show=self.show_progress_bar) as call:
            rows = self.engine.embed(require_strings(texts), progress=call, **options)
        return list(map(_floats, rows))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        options = self._call("document")
        with self._reported(len(texts), show=self.show_progress_bar) as call:
            rows = await self.engine.aembed(require_strings(texts), progress=call, **options)
        vectors: list[Embedding] = []
        for start in range(0, len(rows), ROWS_PER_TURN):
            vectors.extend(map(_floats, rows[start : start + ROWS_PER_TURN]))
            await asyncio.sleep(0)  # thousands of lists at once would hold up the loop
        return vectors

    # LlamaIndex's own bars count slices of `embed_batch_size` texts; ours counts texts as they are
    # embedded. Unwrapped, its methods open no second span within the one that is open for ours.

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed texts, `embed_batch_size` at a time; the bar moves with every batch."""
        embed = inspect.unwrap(BaseEmbedding.get_text_embedding_batch)
        with self._reported(len(texts), show=show_progress or self.show_progress_bar):
            vectors: list[Embedding] = embed(self, texts, **kwargs)
        return vectors

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """`get_text_embedding_batch` for an event loop."""
        embed = inspect.unwrap(BaseEmbedding.aget_text_embedding_batch)
        with self._reported(len(texts), show=show_progress or self.show_progress_bar):
            vectors: list[Embedding] = await embed(self, texts, **kwargs)
        return vectors

    @contextlib.contextmanager
    def _reported(self, texts: int, *, show: bool = False) -> Iterator[ProgressHook]:
        """The hook for the progress of the call in flight, or of one that begins here."""
        owner, hook = _call_in_flight.get() or (None, None)
        if owner is self and hook is not None:
            yield hook
            return
        bar = ProgressBar(total=texts, desc="Generating embeddings") if show else None
        slices = max(1.0, texts / self.embed_batch_size)  # calls of the engine that it takes, about
        advance = None if bar is None else partial(_advance, bar, slices)
        with (
            contextlib.nullcontext() if bar is None else bar,
            self._truncation.call(self.engine.info().max_length, advance) as totals,
        ):
            token = _call_in_flight.set((self, totals))
            try:
                yield totals
            finally:
                _call_in_flight.reset(token)
            if bar is not None:
                bar.update(texts - totals.texts)  # those of a cache, which the engine never saw


MillpondEmbedding.__doc__ = f"{MillpondEmbedding.__doc__}\n    Args:\n" + "\n".join(
    f"        {name} ({inspect.formatannotation(field.annotation)}): {field.description}"
    for name, field in MillpondEmbedding.model_fields.items()
)


def _advance(bar: ProgressBar, slices: float, progress: CallProgress) -> None:
    bar.advance(replace(progress, share=progress.share / slices))


def _advice(most_tokens: int | None) -> str:
    if most_tokens is None:  # a limit of one task only
        return "lower Settings.chunk_size"
    # In tokens of LlamaIndex's tokenizer, of which there are fewer than of most models'.
    chunk_size = max(1, most_tokens * 3 // 4)
    return (
        f"set Settings.chunk_size = {chunk_size} and Settings.chunk_overlap = {chunk_size // 10}, "
        "or those of your node parser"
    )


def _floats(vector: npt.NDArray[Any]) -> Embedding:
    floats: Embedding = vector.tolist()
    return floats
