"""`MillpondEmbedding`: LlamaIndex's embedding interface on a shared Millpond engine.

What lives here is a translation: LlamaIndex's fields to the options of an engine and of a call,
and arrays to lists of floats. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, Self, TypedDict, Unpack

import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager

from millpond import (
    CallProgress,
    Engine,
    InvalidOption,
    InvalidText,
    ProgressBar,
    ProgressHook,
    TruncationLog,
)

MAX_EMBED_BATCH_SIZE = 2048  # the most that BaseEmbedding allows
ROWS_PER_TURN = 64  # vectors made into lists before the event loop gets its turn, about 1 ms

OF_ENGINE = ("device", "dtype", "max_length", "revision", "trust_remote_code")
"""The engine's everyday options, which are fields; the others are in `engine_options`."""
FIELDS_OF_ENGINE = {"model_name", "cache_folder", "engine_options", *OF_ENGINE}

PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)


class EmbeddingOptions(TypedDict, total=False):
    """What `MillpondEmbedding` takes beside a model or an engine, for type checkers."""

    device: str | Sequence[str] | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    cache_folder: str | os.PathLike[str] | None
    engine_options: Mapping[str, Any]
    query_instruction: str | None
    text_instruction: str | None
    normalize: bool
    dimensions: int | None
    truncate: Literal["end", "start", "error"] | None
    show_progress_bar: bool
    embed_batch_size: int
    callback_manager: CallbackManager | None
    num_workers: int | None
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
_call_under_way: ContextVar[tuple[MillpondEmbedding, ProgressHook] | None] = ContextVar(
    "millpond_call", default=None
)


class MillpondEmbedding(BaseEmbedding):
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

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # it may be a token
        use_attribute_docstrings=True,
    )

    model_name: Annotated[str, PathText] = Field(frozen=True)
    """A folder, the name of a model on the Hugging Face hub, or a name that an installed package
    carries. Without it, `engine`: an engine that is already built, whose options are read."""
    embed_batch_size: int = Field(default=MAX_EMBED_BATCH_SIZE, gt=0, le=MAX_EMBED_BATCH_SIZE)
    """Texts handed to the engine at a time, which forms its own batches of them; by default the
    most there can be. `num_workers` such calls are in flight at a time in async methods, by default
    all of them."""

    # The engine's: fixed once it is built.
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

    # The call's.
    query_instruction: str | None = None
    """Text in front of every query; None for the prompt the checkpoint saves, "" for none."""
    text_instruction: str | None = None
    """Text in front of every text; None for the prompt the checkpoint saves, "" for none."""
    normalize: bool = True
    """Scale vectors to unit length. False leaves them as the model gives them."""
    dimensions: int | None = None
    """Keep only the first N dimensions and restore unit length (Matryoshka)."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or raise `TextTooLong`; None as the checkpoint says."""
    show_progress_bar: bool = False
    """Show a progress bar per call, which moves with every batch of the engine."""

    _engine: Engine | None = PrivateAttr(None)  # None only in a pickle
    _truncation: TruncationLog = PrivateAttr(default_factory=lambda: TruncationLog(_advice))

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        fields: dict[str, Any] = {**options}
        fields.pop("class_name", None)  # part of what `model_dump` gives
        if model_name is not None:
            fields["model_name"] = model_name
        if engine is not None:
            fields |= _fields_for(engine, fields)
        error = InvalidOption.of_unknown("MillpondEmbedding", fields, self._known(), RENAMED)
        if error is not None:
            raise error
        super().__init__(**fields)
        self._engine = engine
        self.engine.embed([], **self._call("document"))  # refuses bad options now

    @classmethod
    def _known(cls) -> set[str]:
        return {one.alias or name for name, one in cls.model_fields.items()} | {"engine"}

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised form."""
        return "MillpondEmbedding"

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

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        kept = dict(copied)
        changed = FIELDS_OF_ENGINE & update.keys()
        engine = update.get("engine", None if changed else copied.engine)
        if engine is not None:  # it has its own
            kept = {name: kept[name] for name in kept.keys() - FIELDS_OF_ENGINE}
        return type(self)(**kept | dict(update) | {"engine": engine})

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's `__setstate__` calls `__init__` and passes over its errors. So a model that
        # cannot be loaded is reported by the first call. An error while a worker process reads
        # its task would have multiprocessing's Pool wait for ever.
        pickle.dumps(self._engine)  # refuses one that its options do not bring back
        state: dict[str, Any] = super().__getstate__()
        private = {"_engine": None, "_truncation": TruncationLog(_advice)}
        return state | {"__pydantic_private__": private}

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
        return _floats(self.engine.embed(_string(query), **self._call("query")))

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return _floats(await self.engine.aembed(_string(query), **self._call("query")))

    def _get_text_embedding(self, text: str) -> Embedding:
        options = self._call("document")
        with self._reported(1) as call:
            return _floats(self.engine.embed(_string(text), progress=call, **options))

    async def _aget_text_embedding(self, text: str) -> Embedding:
        options = self._call("document")
        with self._reported(1) as call:
            return _floats(await self.engine.aembed(_string(text), progress=call, **options))

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        options = self._call("document")
        with self._reported(len(texts), show=self.show_progress_bar) as call:
            rows = self.engine.embed(_strings(texts), progress=call, **options)
        return list(map(_floats, rows))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        options = self._call("document")
        with self._reported(len(texts), show=self.show_progress_bar) as call:
            rows = await self.engine.aembed(_strings(texts), progress=call, **options)
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
        owner, hook = _call_under_way.get() or (None, None)
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
            token = _call_under_way.set((self, totals))
            try:
                yield totals
            finally:
                _call_under_way.reset(token)
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


def _string(text: str) -> str:
    if not isinstance(text, str):  # an engine takes token ids, too
        raise InvalidText(f"expected a string, not {type(text).__name__}")
    return text


def _strings(texts: list[str]) -> list[str]:
    """By the first the engine tells what they are; it checks the others."""
    for text in texts[:1]:
        _string(text)
    return texts


def _fields_for(engine: Engine, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that bring an equal engine back."""
    if not isinstance(engine, Engine):
        raise InvalidOption(f"engine={engine!r}: it must be a millpond.Engine")
    if taken := FIELDS_OF_ENGINE & given.keys():
        raise InvalidOption(
            f"{', '.join(sorted(taken))}: the engine is built and has its own; leave out `engine` "
            "or the options"
        )
    config = engine.config
    others = config.options()
    fields = {name: getattr(config, name) for name in OF_ENGINE}
    fields |= {"model_name": config.model, "cache_folder": others.pop("cache_dir", None)}
    options = {name: value for name, value in others.items() if name not in OF_ENGINE}
    return fields | {"engine_options": options}
