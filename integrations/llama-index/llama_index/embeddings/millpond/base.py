"""`MillpondEmbedding`: LlamaIndex's embedding interface on a shared Millpond engine.

What lives here is a translation: LlamaIndex's fields to the options of an engine and of a call,
and arrays to lists of floats. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypedDict, Unpack

import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager

from millpond import CallProgress, Engine, EngineConfig, InvalidOption, InvalidText, ProgressBar

logger = logging.getLogger("millpond")
MAX_EMBED_BATCH_SIZE = 2048  # the most that BaseEmbedding allows
ROWS_PER_TURN = 64  # vectors made into lists before the event loop gets its turn, about 1 ms

_ENGINE_OPTIONS = {
    "model_name": "model",
    "device": "device",
    "devices": "devices",
    "dtype": "dtype",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "max_length": "max_length",
    "pooling": "pooling",
    "prompts": "prompts",
    "max_batch_tokens": "max_batch_tokens",
    "max_queue_tokens": "max_queue_tokens",
    "max_query_wait_ms": "max_query_wait_ms",
    "memory_utilization": "memory_utilization",
    "memory_bytes": "memory_bytes",
    "prefix_cache": "prefix_cache",
    "warmup": "warmup",
    "batch_invariant": "batch_invariant",
    "cache_folder": "cache_dir",
}
"""The fields that configure the engine, and the engine's own names for them."""

PathText = BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)
AutoDevice = BeforeValidator(lambda device: "auto" if device is None else device)


class EmbeddingOptions(TypedDict, total=False):
    """What `MillpondEmbedding` takes beside a model or an engine, for type checkers."""

    device: str | None
    devices: Sequence[str] | None
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"]
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    pooling: str | tuple[str, ...] | None
    prompts: Mapping[str, str] | None
    max_batch_tokens: int | Literal["auto"]
    max_queue_tokens: int
    max_query_wait_ms: float
    memory_utilization: float | None
    memory_bytes: int | None
    prefix_cache: Literal["auto", "off"]
    warmup: bool
    batch_invariant: bool
    cache_folder: str | os.PathLike[str] | None
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


@dataclass
class _Cut:
    """Texts an object has embedded, and those among them that lost a part.

    Without a lock: two calls that end at once may miscount, which a log line survives.
    """

    texts: int = 0
    truncated: int = 0
    said: int = 0
    """Of `truncated`, when it was last logged."""


class _Call:
    """What a call has embedded so far. The engine's threads tell it, several at a time."""

    def __init__(self, owner: MillpondEmbedding, bar: ProgressBar | None, slices: float) -> None:
        self.owner = owner
        self._bar = bar
        self._slices = slices  # calls of the engine that it takes, about
        self.texts = self.truncated = 0  # under the lock
        self._lock = threading.Lock()

    def __call__(self, progress: CallProgress) -> None:
        with self._lock:
            self.texts += progress.texts
            self.truncated += progress.truncated
        if self._bar is not None:
            self._bar.advance(replace(progress, share=progress.share / self._slices))


# The call that is under way in a thread or task, which LlamaIndex divides into several.
_call_under_way: ContextVar[_Call | None] = ContextVar("millpond_call", default=None)


class MillpondEmbedding(BaseEmbedding):
    """
    Embeddings from a Millpond engine inside this process.

    Objects with the same engine options share one engine: the weights are loaded once, and the
    calls of all threads and event loops are batched together. Queries do not wait behind
    ingestion. Texts longer than the model reads are cut, which is logged at the end of a call,
    with the count and what to do about it; then again whenever the count has doubled.

    The options that configure the engine cannot be changed afterwards. Copies use the same
    engine. A pickle holds the options, and finds or makes the shared engine where it is loaded.

    Args:
        model_name (str): A folder, the name of a model on the Hugging Face hub, or a name that an
            installed package carries.
        engine (Optional[Engine], optional): An engine that is already built. It is used as it is,
            and the options of the engine are read from it. Defaults to None.
        device (Optional[str], optional): "auto", "cpu", "cuda", "cuda:N" or "mps"; None is
            "auto". Defaults to "auto".
        devices (Optional[Tuple[str, ...]], optional): Several devices of this host, instead of
            `device`. Defaults to None.
        dtype (str, optional): "auto", "float32", "bfloat16", "float16" or, on a CPU, "int8".
            Defaults to "auto".
        revision (Optional[str], optional): Branch, tag or commit on the hub. Defaults to None.
        trust_remote_code (bool, optional): Run Python code that comes with the checkpoint.
            Defaults to False.
        max_length (Optional[int], optional): Longest text in tokens. Defaults to the model's own.
        pooling (Optional[Union[str, Tuple[str, ...]]], optional): Instead of the checkpoint's
            pooling. Defaults to None.
        prompts (Optional[Dict[str, str]], optional): Prompts by name, over those the checkpoint
            saves. Defaults to None.
        max_batch_tokens (Union[int, str], optional): Most tokens in one forward pass.
            Defaults to "auto".
        max_queue_tokens (int, optional): Most tokens waiting in each priority.
        max_query_wait_ms (float, optional): Longest a query may wait behind ingestion.
        memory_utilization (Optional[float], optional): On CUDA, share of the device's memory to
            fill. Defaults to what batches need.
        memory_bytes (Optional[int], optional): The same as a number of bytes. Defaults to None.
        prefix_cache (str, optional): "auto" keeps beginnings that texts share, where the model
            allows it; "off" does not. Defaults to "auto".
        warmup (bool, optional): On CUDA, prepare for queries while loading. Defaults to False.
        batch_invariant (bool, optional): On CUDA, the same bits whatever else is in flight. On CPU
            this is always so. Defaults to False.
        cache_folder (Optional[str], optional): Where downloaded models are kept. Defaults to
            Hugging Face's own cache.
        query_instruction (Optional[str], optional): Text to put in front of every query. Defaults
            to the prompt the checkpoint saves for queries; "" for none.
        text_instruction (Optional[str], optional): Text to put in front of every text. Defaults to
            the prompt the checkpoint saves for documents; "" for none.
        normalize (bool, optional): Scale vectors to unit length. False leaves them as the model
            gives them. Defaults to True.
        dimensions (Optional[int], optional): Keep only the first so many and restore unit length
            (Matryoshka). Defaults to None.
        truncate (Optional[str], optional): Cut texts that are too long at their "end" or "start",
            or raise `TextTooLong` ("error"). Defaults to where the checkpoint says.
        show_progress_bar (bool, optional): Whether to show a progress bar per call, which moves
            with every batch of the engine. Defaults to False.
        embed_batch_size (int, optional): Texts handed to the engine at a time; the engine forms
            its own batches of them. Defaults to 2048, the most there can be.
        callback_manager (Optional[CallbackManager], optional): Callback manager.
        num_workers (Optional[int], optional): Calls of `embed_batch_size` texts in flight at a
            time in async methods. Defaults to all of them.

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

    model_config = ConfigDict(extra="forbid")

    model_name: Annotated[str, PathText] = Field(
        frozen=True, description="Folder or name of the model."
    )
    embed_batch_size: int = Field(
        default=MAX_EMBED_BATCH_SIZE,
        gt=0,
        le=MAX_EMBED_BATCH_SIZE,
        description="Texts handed to the engine at a time.",
    )

    # The engine's: fixed once it is built.
    device: Annotated[str, AutoDevice] = Field("auto", frozen=True, description="Device to run on.")
    devices: tuple[str, ...] | None = Field(
        None, frozen=True, description="Several devices behind one queue, instead of `device`."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        "auto", frozen=True, description="Precision of the transformer."
    )
    revision: str | None = Field(None, frozen=True, description="Branch, tag or commit.")
    trust_remote_code: bool = Field(
        False, frozen=True, description="Run Python code that comes with the checkpoint."
    )
    max_length: int | None = Field(None, frozen=True, description="Longest text in tokens.")
    pooling: str | tuple[str, ...] | None = Field(
        None, frozen=True, description="Instead of the checkpoint's pooling."
    )
    prompts: dict[str, str] | None = Field(
        None, frozen=True, description="Prompts by name, over those the checkpoint saves."
    )
    max_batch_tokens: int | Literal["auto"] = Field(
        EngineConfig.max_batch_tokens, frozen=True, description="Most tokens in a forward pass."
    )
    max_queue_tokens: int = Field(
        EngineConfig.max_queue_tokens, frozen=True, description="Most tokens waiting at a priority."
    )
    max_query_wait_ms: float = Field(
        EngineConfig.max_query_wait_ms,
        frozen=True,
        description="Longest a query may wait behind ingestion.",
    )
    memory_utilization: float | None = Field(
        None, frozen=True, description="On CUDA: share of the device's memory to fill."
    )
    memory_bytes: int | None = Field(
        None, frozen=True, description="On CUDA: bytes of the device's memory to fill."
    )
    prefix_cache: Literal["auto", "off"] = Field(
        "auto", frozen=True, description="Keep beginnings that texts share."
    )
    warmup: bool = Field(
        False, frozen=True, description="On CUDA: prepare for queries while loading."
    )
    batch_invariant: bool = Field(
        False, frozen=True, description="On CUDA: the same bits whatever else is in flight."
    )
    cache_folder: Annotated[str | None, PathText] = Field(
        None, frozen=True, description="Where downloaded models are kept."
    )

    # The call's.
    query_instruction: str | None = Field(None, description="Text in front of every query.")
    text_instruction: str | None = Field(None, description="Text in front of every text.")
    normalize: bool = Field(True, description="Scale vectors to unit length.")
    dimensions: int | None = Field(None, description="Keep only the first so many.")
    truncate: Literal["end", "start", "error"] | None = Field(
        None, description="Where to cut texts that are too long, or to refuse them."
    )
    show_progress_bar: bool = Field(False, description="Whether to show a progress bar.")

    _engine: Engine | None = PrivateAttr(None)  # None only in a pickle
    _cut: _Cut = PrivateAttr(default_factory=_Cut)

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
            fields = _options_of(engine) | fields
        super().__init__(**fields)
        if engine is not None:
            self._require_described(engine)
        self._engine = engine
        self.engine.embed([], **self._call("document"))  # refuses bad options now

    def _require_described(self, engine: Engine) -> None:
        normalize = True if engine.config.normalize and self.normalize else None
        config = EngineConfig(**self._engine_options(), normalize=normalize)
        if config != engine.config:
            raise InvalidOption(
                f"the engine is built with {engine.config}, and the options given say "
                f"{config}; leave out `engine` or the options, and give `normalize` here"
            )

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
        return {option: getattr(self, field) for field, option in _ENGINE_OPTIONS.items()}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy on the same engine, or with `update` one that is built and checked anew.

        Raises as the constructor does.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        kept = dict(copied)
        if "engine" in update:
            kept = {name: kept[name] for name in kept.keys() - _ENGINE_OPTIONS.keys()}
        elif not _ENGINE_OPTIONS.keys() & update.keys():
            kept["engine"] = copied._engine
        return type(self)(**kept | dict(update))

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's `__setstate__` calls `__init__` and passes over its errors. So a model that
        # cannot be loaded is reported by the first call. An error while a worker process reads
        # its task would have multiprocessing's Pool wait for ever.
        pickle.dumps(self._engine)  # refuses one that its options do not bring back
        state: dict[str, Any] = super().__getstate__()
        return state | {"__pydantic_private__": {"_engine": None, "_cut": _Cut()}}

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
    def _reported(self, texts: int, *, show: bool = False) -> Iterator[_Call]:
        """The call to tell of progress: the one under way, or one that is reported at its end."""
        outer = _call_under_way.get()
        if outer is not None and outer.owner is self:
            yield outer
            return
        with _bar(texts) if show else contextlib.nullcontext() as bar:
            call = _Call(self, bar, max(1.0, texts / self.embed_batch_size))
            token = _call_under_way.set(call)
            try:
                yield call
            finally:
                _call_under_way.reset(token)
            if bar is not None:
                bar.update(texts - call.texts)  # those of a cache, which the engine never saw
        self._report_cut(call)

    def _report_cut(self, call: _Call) -> None:
        cut = self._cut
        cut.texts += call.texts
        cut.truncated += call.truncated
        if call.truncated and cut.truncated >= 2 * cut.said:
            cut.said = cut.truncated
            logger.warning(*_advice(cut, self.engine.info().max_length))


def _bar(texts: int) -> ProgressBar:
    return ProgressBar(total=texts, desc="Generating embeddings")


def _advice(cut: _Cut, most_tokens: int | None) -> tuple[Any, ...]:
    """A message for a logger, with its arguments."""
    if most_tokens is None:  # a limit of one task only
        return (
            "%d of %d texts were longer than the model reads and lost a part: lower "
            "Settings.chunk_size",
            *(cut.truncated, cut.texts),
        )
    # In tokens of LlamaIndex's tokenizer, of which there are fewer than of most models'.
    chunk_size = max(1, most_tokens * 3 // 4)
    return (
        "%d of %d texts were longer than the %d tokens the model reads and lost a part: set "
        "Settings.chunk_size = %d and Settings.chunk_overlap = %d, or those of your node parser",
        *(cut.truncated, cut.texts, most_tokens, chunk_size, chunk_size // 10),
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


def _options_of(engine: Engine) -> dict[str, Any]:
    if not isinstance(engine, Engine):
        raise InvalidOption(f"engine={engine!r}: it must be a millpond.Engine")
    config = engine.config
    options = {field: getattr(config, option) for field, option in _ENGINE_OPTIONS.items()}
    return options | {"prompts": None if config.prompts is None else dict(config.prompts)}
