"""What the tests put in the place of a model and of time.

`FakeRunner` gives every text a vector that only its own ids decide, so a lost, swapped or
repeated text shows in the result. Its faults are scripted by words: a text that holds the word
has the fault. It records every batch it is given.
"""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millpond.checkpoint.kinds.scoring import ScoringSpec
from millpond.checkpoint.modules import Module
from millpond.checkpoint.routes import Route
from millpond.checkpoint.spec import ModelSpec
from millpond.engine.engine import Engine
from millpond.errors import InvalidInput, InvalidTokenIds, TextTooLong
from millpond.locks import SteadyCondition
from millpond.model.info import RouteInfo
from millpond.pair import Pair
from millpond.runner.limits import Limits
from millpond.scheduler.batch import Batch, BatchShape
from millpond.scheduler.prefix_cache import PrefixCacheConfig

DIMENSION = 8
PATIENCE_S = 30.0  # longest a test waits for what must happen; it fails then
PACKED = BatchShape()
BETWEEN = "|"  # the texts of a pair


class FakeClock:
    """Time that stands still until it is told."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class StepClock(threading.local):
    """A millisecond passes from one look at it to the next, in each thread."""

    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks / 1000


class OutOfFakeMemory(Exception):
    """The fake device is full."""


class FakeDeviceLost(Exception):
    """The fake device is gone for good."""


def token(word: str) -> int:
    """The id of a word; no two words of the tests share one."""
    return zlib.crc32(word.encode()) & 0x7FFF_FFFF


def token_ids(text: str) -> npt.NDArray[np.int32]:
    """One id a word; an empty text has the id 0."""
    return np.array([token(word) for word in text.split()] or [0], dtype=np.int32)


def vector_of(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Any other ids give any other vector."""
    digest = hashlib.blake2b(ids.tobytes(), digest_size=4 * DIMENSION).digest()
    return (np.frombuffer(digest, dtype=np.uint32) / 2**32 - 0.5).astype(np.float32)


def vectors_for(texts: Sequence[str], prompt: str = "") -> npt.NDArray[np.float32]:
    """What an engine on a `FakeRunner` must give for these texts, `[n, DIMENSION]`."""
    rows = [vector_of(token_ids(prompt + text)) for text in texts]
    return np.array(rows, dtype=np.float32).reshape(len(texts), DIMENSION)


@dataclass(frozen=True)
class RanBatch:
    """A batch as the runner saw it."""

    route: int
    padded_length: int | None
    tokens: int
    texts: tuple[str, ...]
    priorities: tuple[str, ...]

    def __contains__(self, text: str) -> bool:
        return text in self.texts

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class FakeTicket:
    padded_tokens: int
    batch: Batch
    tokens: int


@dataclass
class FakeRunner:
    """A `ModelRunner` without a model."""

    max_batch_tokens: int = 64
    min_batch_tokens: int = 64
    shapes: Sequence[BatchShape] = (PACKED,)
    route_names: Sequence[str] = ("default",)
    depth: int = 1
    workers: int = 1
    query_workers: int = 0
    queries_apart: bool = False
    runs_on_callers: bool = False
    prefix_cache_config: PrefixCacheConfig | None = None
    device_name: str = "fake"
    dtype_name: str = "float32"
    max_length: int | None = None
    dimension: int = DIMENSION
    scale: float = 1.0  # of every vector

    raises_on: Collection[str] = ()  # the forward pass fails on a text with one of these words
    memory_error_on: Collection[str] = ()
    not_finite_on: Collection[str] = ()
    fatal_on: Collection[str] = ()
    tokenizer_raises_on: Collection[str] = ()  # an error nobody foresaw
    refuses: Collection[str] = ()  # the tokenizer finds the text unacceptable
    special_ends: tuple[Sequence[int], Sequence[int]] = ((), ())  # put around every text
    memory_tokens: int | None = None  # most tokens launched and not collected at a time

    batches: list[RanBatch] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)  # that launched or collected
    memory_freed: int = 0
    closed: int = 0
    texts_tokenized: int = 0
    chunks_tokenized: int = 0
    texts_collected: int = 0
    most_texts_ahead: int = 0  # tokenised and not collected

    def __post_init__(self) -> None:
        self._changed = SteadyCondition()  # its callers may be interrupted
        self._permits: int | None = None  # batches that may still come home; None for all
        self._held = 0  # batches that stand before `let`
        self._on_device = 0
        self.words: dict[int, str] = {}  # seen by its tokenizer, for `detokenize`

    # Control.

    def hold(self) -> None:
        """Let no batch come home until `let`."""
        with self._changed:
            self._permits = 0

    def let(self, batches: int | None = None) -> None:
        """Let so many more batches come home, or all from now on."""
        with self._changed:
            self._permits = None if batches is None else (self._permits or 0) + batches
            self._changed.notify_all()

    def wait_for_batches(self, count: int) -> None:
        """Wait until so many batches have been launched."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.batches) >= count, PATIENCE_S), self

    def wait_until_held(self, batches: int = 1) -> None:
        """Wait until so many batches stand before `let`; with all there may be, the engine does."""
        with self._changed:
            held = self._changed.wait_for(
                lambda: self._held >= batches and self._permits == 0, PATIENCE_S
            )
            assert held, self

    @property
    def ran(self) -> list[str]:
        """Every text that was in a batch, as often as it was."""
        return [text for batch in list(self.batches) for text in batch.texts]

    # What the engine asks of a runner.

    @property
    def limits(self) -> Limits:
        return Limits(
            max_batch_tokens=self.max_batch_tokens,
            min_batch_tokens=self.min_batch_tokens,
            depth=self.depth,
            workers=self.workers,
            query_workers=self.query_workers,
            queries_apart=self.queries_apart,
        )

    @property
    def routes(self) -> tuple[RouteInfo, ...]:
        return tuple(
            RouteInfo(
                name=name,
                execution="packed" if shape.pad_to is None else "padded",
                reason="a fake has its own way",
                dimension=self.dimension,
                max_length=self.max_length,
                excludes_prompt=True,
                batch_invariant=True,
            )
            for name, shape in zip(self.route_names, self.shapes, strict=True)
        )

    def can_run_inline(self, batch: Batch) -> bool:
        return self.runs_on_callers

    def count_tokenized(self, texts: int) -> None:
        """Called by its tokenizer."""
        with self._changed:
            self.texts_tokenized += texts
            self.chunks_tokenized += 1
            ahead = self.texts_tokenized - self.texts_collected
            self.most_texts_ahead = max(self.most_texts_ahead, ahead)

    def launch(self, batch: Batch) -> FakeTicket:
        self.threads.add(threading.get_ident())
        computed = batch.computed_tokens
        if batch.padded_length is not None:
            for segment in batch.segments:
                lengths = segment.chunk.lengths[segment.start : segment.stop]
                assert (lengths <= batch.padded_length).all()
        self._record(batch)
        if self.memory_tokens is not None and self._on_device + computed > self.memory_tokens:
            raise OutOfFakeMemory(f"{self._on_device} + {computed} > {self.memory_tokens}")
        self._raise_on(batch, self.memory_error_on, OutOfFakeMemory("no room for it"))
        self._on_device += computed
        return FakeTicket(computed - batch.tokens, batch, computed)

    def _record(self, batch: Batch) -> None:
        texts, priorities = [], []
        for segment in batch.segments:
            for row in segment.chunk.rows[segment.start : segment.stop].tolist():
                text = segment.request.texts[row]
                texts.append(shown(text))
                priorities.append(segment.request.priority.value)
        with self._changed:
            self.batches.append(
                RanBatch(batch.route, batch.padded_length, batch.tokens, (*texts,), (*priorities,))
            )
            self._changed.notify_all()

    def collect(self, handle: Any) -> npt.NDArray[np.float32]:
        self.threads.add(threading.get_ident())
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits != 0, PATIENCE_S), "never let"
            self._held -= 1
            if self._permits is not None:
                self._permits -= 1
        batch: Batch = handle.batch
        self._on_device -= handle.tokens
        self._raise_on(batch, self.fatal_on, FakeDeviceLost("the device is gone"))
        self._raise_on(batch, self.raises_on, RuntimeError("the model does not like it"))
        with self._changed:
            self.texts_collected += batch.texts
        bad = {token(word) for word in self.not_finite_on}
        vectors = [
            np.full(self.dimension, np.nan, np.float32)
            if bad and not bad.isdisjoint(ids.tolist())
            else vector_of(ids)[: self.dimension] * np.float32(self.scale)
            for ids in _texts_of(batch)
        ]
        return np.array(vectors, dtype=np.float32)

    def _raise_on(self, batch: Batch, words: Collection[str], error: Exception) -> None:
        marked = {token(word) for word in words}
        if marked and any(not marked.isdisjoint(ids.tolist()) for ids in _texts_of(batch)):
            raise error

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, OutOfFakeMemory)

    def is_fatal(self, error: BaseException) -> bool:
        return isinstance(error, FakeDeviceLost)

    def free_memory(self) -> None:
        self.memory_freed += 1

    @property
    def pids(self) -> tuple[int, ...]:
        return ()

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        pass

    def delivered(self) -> None:
        pass

    def tell_when_lost(self, tell: Callable[[Exception], object]) -> None:
        self.lose = tell

    def close(self, *, wait: bool = True) -> None:
        self.closed += 1

    def __repr__(self) -> str:
        return f"FakeRunner(batches={len(self.batches)}, permits={self._permits})"


@dataclass(frozen=True)
class FakeTokens:
    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]


def shown(text: Any) -> str:
    """A text, a pair or token ids as one string."""
    if isinstance(text, Pair):
        return f"{text.query} {BETWEEN} {text.document}"
    return text if isinstance(text, str) else str(text.tolist())


class FakeTokenizer:
    """A `Tokenizer` whose ids are those of `token`, with the faults and the limit of a runner."""

    def __init__(self, runner: FakeRunner) -> None:
        self.runner = runner

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str,
        task: str | None,
        truncate: Any,
        max_length: int | None,
    ) -> FakeTokens:
        for text in texts:
            if not set(text.split()).isdisjoint(self.runner.tokenizer_raises_on):
                raise RuntimeError("the tokenizer is broken")
        return self._fitted(
            [
                np.array(ids, dtype=np.int32)
                for ids in self.token_ids(texts, prompt=prompt, task=task, special_tokens=True)
            ],
            truncate,
        )

    def encode_pairs(
        self, pairs: Sequence[Pair], *, prompt: str, truncate: Any, max_length: int | None
    ) -> FakeTokens:
        return self.encode(
            [shown(pair) for pair in pairs],
            prompt=prompt,
            task=None,
            truncate=truncate,
            max_length=max_length,
        )

    def shared_pair_prefix_length(self, query: str, prompt: str) -> int:
        return len((prompt + query).split()) + 1

    def fit_ids(self, ids: Any, truncate: Any, *, max_length: int | None) -> FakeTokens:
        return self._fitted(list(ids), truncate, limit=None)

    def _fitted(
        self, rows: list[npt.NDArray[np.int32]], truncate: Any, *, limit: int | None = -1
    ) -> FakeTokens:
        limit = self.runner.max_length if limit == -1 else limit
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for index, ids in enumerate(rows):
            if limit is not None and len(ids) > limit:
                if truncate == "error":
                    raise TextTooLong(f"it has {len(ids)} tokens", index=index)
                truncated[index] = True
                rows[index] = ids[:limit] if truncate != "start" else ids[-limit:]
        self.runner.count_tokenized(len(rows))
        lengths = np.array([len(ids) for ids in rows], dtype=np.int32)
        return FakeTokens(np.concatenate(rows), lengths, truncated)

    def token_ids(
        self, texts: Sequence[str], *, prompt: str, task: str | None, special_tokens: bool
    ) -> list[list[int]]:
        first, last = self.runner.special_ends if special_tokens else ((), ())
        for index, text in enumerate(texts):
            if not set((prompt + text).split()).isdisjoint(self.runner.refuses):
                raise InvalidInput("it is refused", index=index)
        texts = [prompt + text for text in texts]
        self.runner.words.update((token(word), word) for text in texts for word in text.split())
        return [[*first, *token_ids(text).tolist(), *last] for text in texts]

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        words = self.runner.words
        for index, row in enumerate(ids):
            if unknown := [one for one in row if one not in words]:
                raise InvalidTokenIds(f"it has the unknown id {unknown[0]}", index=index)
        return [" ".join(words[one] for one in row) for row in ids]

    def prompt_length(self, prompt: str) -> int:
        return len(prompt.split())

    def shared_prefix_length(self, prompt: str, task: str | None) -> int:
        return len(prompt.split())


def _texts_of(batch: Batch) -> Iterator[npt.NDArray[np.int32]]:
    """The ids of each text, in the order of the batch."""
    for segment in batch.segments:
        offsets, ids = segment.chunk.offsets, segment.chunk.ids
        for text in range(segment.start, segment.stop):
            yield ids[offsets[text] : offsets[text + 1]]


def fake_spec(runner: FakeRunner | None = None, **facts: Any) -> ModelSpec:
    """The checkpoint of a model that does not exist."""
    names = ("default",) if runner is None else runner.route_names
    several = len(names) > 1
    folder = Path("no-such-folder")
    encoder = Module(kind="Transformer", path=folder, options={}, class_name="Fake")
    known: dict[str, Any] = {
        "name": "fake/model",
        "path": folder,
        "source": "folder",
        "revision": None,
        "routes": tuple(Route(name=name, modules=(encoder,)) for name in names),
        "prompts": {"query": "ask: ", "document": "", "title": "title: "},
        "default_prompt_name": None,
        "similarity_fn_name": None,
        "truncate_dim": None,
        "task_routes": {name: name for name in names} if several else {},
        "other_route": names[0],
    }
    return ModelSpec(**(known | facts))


def scorer(runner: FakeRunner, *labels: str, **options: Any) -> Engine:
    """An engine for a model whose scores have these labels, a single one without."""
    names = labels or ("relevance",)
    runner.dimension = len(names)
    scoring = ScoringSpec(labels=names, activation="none", class_activation="softmax")
    return start_engine(runner, spec={"scoring": scoring}, **options)


def scores_for(pairs: Sequence[tuple[str, str]], labels: int = 1) -> npt.NDArray[np.float32]:
    """What such an engine must give for these pairs, `[n, labels]`."""
    texts = [f"{query} {BETWEEN} {document}" for query, document in pairs]
    return vectors_for(texts)[:, :labels]


def start_engine(
    runner: FakeRunner | Sequence[FakeRunner],
    *,
    spec: dict[str, Any] | None = None,
    tokenizer: FakeTokenizer | None = None,
    **options: Any,
) -> Engine:
    """An engine on the runner, or one for each device; `spec` has facts about the checkpoint."""
    first = runner if isinstance(runner, FakeRunner) else runner[0]
    tokenizers = [tokenizer or FakeTokenizer(first)] * len(first.routes)
    facts = fake_spec(first, **(spec or {}))
    engine = Engine.with_runner(runner, facts, tokenizers=tokenizers, **options)
    engine._instance.inputs._clock = StepClock()
    return engine


@contextmanager
def held_engine(runner: FakeRunner, **options: Any) -> Iterator[Engine]:
    """An engine whose runner is held by default, and that is stopped whatever a test does."""
    runner.hold()
    engine = start_engine(runner, **options)
    try:
        yield engine
    finally:
        runner.let()
        engine.close(drain=False)


def wait_until_tokenized(engine: Engine, requests: int) -> None:
    """Wait until this number of requests could be in the next batch, all of their texts."""
    core, until_s = engine._instance.core, time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < until_s, core
        with core.lock:
            queues = core.scheduler.queues.values()
            ready = sum(len(queue.ready_requests) for queue in queues)
            arrived = [chunk is not None for _, chunk in core.pending.arrivals]
            if ready + sum(arrived) == requests and not any(q.untokenized for q in queues):
                return


def words(count: int, word: str = "w") -> str:
    """A text of so many tokens."""
    return " ".join([word] * count)
