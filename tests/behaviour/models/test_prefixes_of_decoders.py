"""Prefixes of real decoders: a text has the vector it has when it is computed whole.

From a cold cache, a warm one, one that is full and evicts, and with several callers at once.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from agreement import TOLERANCE, off
from checkpoints import reference, save_checkpoint, save_transformer
from fakes import PATIENCE_S
from families import FAMILIES, WIDTH
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from millpond import Engine
from millpond.runner import kv_cache_config as prefix_memory

LONGEST = 512
BATCH_TOKENS = 64
BY_NAME = {family.name: family for family in FAMILIES}
NAMES = [
    name
    for name in (
        "qwen3",
        "llama",
        "mistral",
        "gemma3_text",
        "qwen2_sliding",
        "gpt2",
        "qwen2",
        "gemma2",
        "phi3",
        "phi3_sliding",
    )
    if name in BY_NAME
]
STORY = [
    "the",
    "stone",
    "grinds",
    "the",
    "grain",
    "of",
    "the",
    "mill",
    "while",
    "the",
    "water",
    "of",
    "the",
    "pond",
    "falls",
    "and",
    "a",
    "query",
    "never",
    "waits",
    "behind",
    "ingestion",
    "and",
    "every",
    "request",
    "ends",
    "exactly",
    "once",
    "in",
    "the",
    "engine",
    "of",
    "the",
    "pond",
]
INSTRUCTION = "Instruct: find what the miller wrote about " + " ".join(STORY[:20]) + "\nQuery: "
PROMPTS = {"query": INSTRUCTION, "document": "text: "}
TEXTS = (
    "",
    "a",
    "mill",
    *(" ".join(STORY[:count]) for count in (2, 5, 9, 14, 20, 28)),
    *(" ".join((STORY * 5)[:count]) for count in (29, 45, 60, 80)),
    *(" ".join([*STORY[:15], name, *STORY[3:9]]) for name in ("pond", "mill", "🦊", "東京")),
    "mill",
)
"""From a token to three batches, many of which begin alike."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A decoder's checkpoint with prompts and room for long texts."""

    @cache
    def save(name: str) -> Path:
        family, folder = BY_NAME[name], tmp_path_factory.mktemp(name)
        positions = "n_positions" if name == "gpt2" else "max_position_embeddings"
        config = {**family.config, positions: LONGEST, "initializer_range": 0.1}
        bare = save_transformer(
            folder / "bare", model=family.model, tokenizer=family.tokenizer, config=config
        )
        modules = [Transformer(str(bare), max_seq_length=LONGEST), Pooling(WIDTH, "lasttoken")]
        return save_checkpoint(folder / "saved", modules, prompts=PROMPTS)

    return save


@contextmanager
def engine_on(folder: Path, *, blocks: int | None = None, **options: Any) -> Iterator[Engine]:
    """An engine whose cache has so many blocks, or none."""
    options = {"device": "cpu", "dtype": "float32", "max_batch_tokens": BATCH_TOKENS, **options}
    if blocks is None:
        options["prefix_cache"] = "off"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_memory, "MOST_BLOCKS", blocks)
        patch.setattr(prefix_memory, "FEWEST_BLOCKS", 0)
        engine = Engine(folder, **options)
    with engine:
        yield engine
    scheduler = engine._instance.core.scheduler
    assert len(scheduler.caches) == (blocks is not None)
    for each in scheduler.caches:
        each.check(idle=True)


def agree(engine: Engine, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.shape == expected.shape
    assert off(found, expected) <= TOLERANCE
    if engine.info().batch_invariant:
        assert np.array_equal(found, expected)


def ways(engine: Engine, texts: Sequence[str] = TEXTS) -> dict[str, npt.NDArray[Any]]:
    """The texts with every prompt."""
    return {
        "plain": engine.embed(texts, prompt=""),
        "query": engine.embed(texts, task="query"),
        "document": engine.embed(texts, task="document"),
        "given": engine.embed(texts, prompt="of the pond and of the mill beside it: "),
    }


@pytest.fixture(scope="module")
def whole(saved: Callable[[str], Path]) -> Callable[[str], dict[str, npt.NDArray[Any]]]:
    """What an engine gives that computes every text whole."""

    @cache
    def compute(name: str) -> dict[str, npt.NDArray[Any]]:
        with engine_on(saved(name)) as engine:
            assert engine.info().routes[0].prefixes == "turned off"
            found = ways(engine)
            assert engine.stats().cached_tokens == 0
            return found

    return compute


@pytest.mark.parametrize("name", NAMES)
def test_computed_whole_they_are_those_of_the_reference(
    saved: Callable[[str], Path], whole: Callable[[str], dict[str, npt.NDArray[Any]]], name: str
) -> None:
    official = reference(saved(name))
    texts = [text for text in TEXTS if text]
    expected = official.encode(texts, prompt=INSTRUCTION, batch_size=1)
    found = whole(name)["query"][[place for place, text in enumerate(TEXTS) if text]]
    assert off(found, expected) <= TOLERANCE


@pytest.mark.parametrize("blocks", [0, 1, 6, 24, 500])
@pytest.mark.parametrize("name", NAMES)
def test_a_cold_cache_a_warm_one_and_a_full_one_change_nothing(
    saved: Callable[[str], Path],
    whole: Callable[[str], dict[str, npt.NDArray[Any]]],
    name: str,
    blocks: int,
) -> None:
    with engine_on(saved(name), blocks=blocks) as engine:
        assert engine.info().routes[0].prefixes == "it agrees with the whole run"
        for _ in range(2):
            for how, found in ways(engine).items():
                agree(engine, found, whole(name)[how])
        stats = engine.stats()
        (cache,) = engine._instance.core.scheduler.caches
        assert (stats.cached_tokens > 0) == (blocks > 0)
        assert (cache.stats.evictions > 0) == (0 < blocks < 500)


def test_a_prompt_that_pooling_leaves_out_is_left_out_of_what_follows_a_prefix(
    tmp_path: Path,
) -> None:
    """Without an end token the empty text is nothing but its prompt: its vector is zeros."""
    family = BY_NAME["qwen3"]
    config = {**family.config, "max_position_embeddings": LONGEST}
    bare = save_transformer(
        tmp_path / "bare", model=family.model, tokenizer="decoder", config=config
    )
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    modules = [
        Transformer(str(bare), max_seq_length=LONGEST),
        Pooling(WIDTH, "lasttoken", include_prompt=False),
    ]
    folder = save_checkpoint(tmp_path / "saved", modules, prompts=PROMPTS)
    with engine_on(folder) as off, engine_on(folder, blocks=500) as engine:
        expected = ways(off)
        assert not expected["query"][TEXTS.index("")].any()
        for _ in range(2):
            for how, found in ways(engine).items():
                agree(engine, found, expected[how])
        assert engine.stats().cached_tokens > 0


@pytest.mark.parametrize("blocks", [6, 24, 500])
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_several_callers_at_once_change_nothing(
    saved: Callable[[str], Path],
    whole: Callable[[str], dict[str, npt.NDArray[Any]]],
    name: str,
    blocks: int,
) -> None:
    expected = whole(name)
    asked: dict[str, dict[str, Any]] = {
        "plain": {"prompt": ""},
        "query": {"task": "query"},
        "document": {"task": "document"},
    }

    def call(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            how = chance.choice([*asked])
            places = chance.sample(range(len(TEXTS)), chance.choice([1, 1, 3, len(TEXTS)]))
            priority = chance.choice(["interactive", "bulk"])
            found = engine.embed(
                [TEXTS[place] for place in places], priority=priority, **asked[how]
            )
            agree(engine, found, expected[how][places])

    with engine_on(saved(name), blocks=blocks) as engine, ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(call, seed) for seed in range(6)]:
            done.result(PATIENCE_S)


def test_one_text_at_a_time_and_all_in_one_batch_are_the_same(saved: Callable[[str], Path]) -> None:
    with (
        engine_on(saved("qwen3"), blocks=500) as engine,
        engine_on(saved("qwen3"), blocks=500, max_batch_tokens=4096) as large,
    ):
        together = large.embed(TEXTS, task="query")
        alone = np.array([engine.embed(text, task="query") for text in reversed(TEXTS)])[::-1]
        agree(engine, alone, together)
        again = np.array([large.embed(text, task="query") for text in TEXTS])
        agree(engine, again, together)


def test_a_thousand_queries_compute_their_instruction_once(saved: Callable[[str], Path]) -> None:
    """An instruction of 40 tokens at least, and bodies of about 10."""
    chance = random.Random(7)
    queries = [" ".join(chance.choices(STORY, k=4)) for _ in range(1000)]
    with engine_on(saved("qwen3"), blocks=2000, max_batch_tokens=512) as engine:
        tokenizer = engine._instance.runners[0].models[0].tokenizer  # type: ignore[attr-defined]
        shared = tokenizer.shared_prefix_length(INSTRUCTION)
        assert shared >= 40
        engine.embed("the first of all", task="query")
        before = engine.stats()
        futures = [engine.submit(query, task="query") for query in queries]
        counts = [int(future.result(PATIENCE_S).token_counts[0]) for future in futures]
        stats = engine.stats()
    computed = stats.tokens - before.tokens - (stats.cached_tokens - before.cached_tokens)
    assert computed <= sum(counts) - 1000 * shared
    assert stats.tokens - before.tokens <= sum(counts)


def test_a_layer_that_throws_half_way_leaves_nothing_behind(
    saved: Callable[[str], Path], whole: Callable[[str], dict[str, npt.NDArray[Any]]]
) -> None:
    """By then the layers before it have written keys and values for some of the texts."""
    expected = whole("qwen3")["query"]
    with engine_on(saved("qwen3"), blocks=200) as engine:
        layer = engine._instance.runners[0].models[0].encoder.model.layers[1]  # type: ignore[attr-defined]
        forward, calls = layer.forward, itertools.count()

        def failing(*rows: Any, **options: Any) -> Any:
            if next(calls) % 3 == 0:
                raise RuntimeError("half-way")
            return forward(*rows, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer, "forward", failing)
            for _ in range(3):
                result = engine.submit(TEXTS, task="query").result(PATIENCE_S)
                good = [row for row in range(len(TEXTS)) if row not in result.errors]
                assert good
                agree(engine, result.vectors[good], expected[good])
        assert next(calls) > 9
        agree(engine, engine.embed(TEXTS, task="query"), expected)
        assert engine.health == "ready"


@pytest.mark.parametrize("blocks", [2, 500])
def test_a_long_text_is_computed_in_parts_of_the_batch_s_size(
    saved: Callable[[str], Path], blocks: int
) -> None:
    text = " ".join(STORY * 5)
    with engine_on(saved("qwen3")) as off, engine_on(saved("qwen3"), blocks=blocks) as engine:
        sizes: list[int] = []
        engine.add_stats_hook(lambda batch: sizes.append(batch.tokens - batch.cached_tokens))
        agree(engine, engine.embed(text), off.embed(text))
        tokens = off.stats().tokens
    assert tokens > 3 * BATCH_TOKENS
    assert sum(sizes) == tokens
    assert (max(sizes) <= BATCH_TOKENS) == (blocks == 500)
