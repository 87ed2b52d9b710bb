"""The engine on a GPU: the vectors of the CPU, the same bits in company, and its memory."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from families import ENCODER, FAMILIES
from rerankers import PAIRS, TEMPLATE, save_answering, save_modular, save_reranker

from millpond import Engine, InvalidOption
from millpond.runner import kv_cache_config
from millpond.runner.cuda import runner as cuda_runner
from millpond.runner.cuda.runner import CudaModelRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXTS = [text for text in checkpoints.TEXTS if text]
MANY = [f"{text} {i % 17}" for i, text in enumerate(TEXTS * 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_transformer(tmp_path_factory.mktemp("model") / "bert", config=ENCODER)


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    with Engine(folder, device="cpu", dtype="float32") as engine:
        return engine.embed(MANY, normalize=True)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"dtype": "float32"}, 1e-5),
        ({}, 2e-2),
        ({"warmup": True}, 2e-2),
        ({"batch_invariant": True}, 2e-2),
        ({"max_batch_tokens": 100}, 2e-2),
        ({"memory_utilization": 0.5}, 2e-2),
        ({"memory_bytes": 2**28, "max_batch_tokens": 10_000}, 2e-2),
    ],
    ids=str,
)
def test_the_vectors_are_those_of_the_cpu(
    folder: Path, expected: np.ndarray, options: dict, tolerance: float
) -> None:
    with Engine(folder, device="cuda:0", **options) as engine:
        for _ in range(3):  # plain, recorded, replayed
            found = engine.embed(MANY, normalize=True)
            assert np.abs(found - expected).max() < tolerance
        assert np.abs(engine.embed(MANY[3], normalize=True) - expected[3]).max() < tolerance


def test_a_decoder_that_shares_keys_has_the_vectors_of_the_cpu(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "qwen3")
    folder = checkpoints.save_family(family, tmp_path)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(MANY, normalize=True)
    with Engine(folder, device="cuda:0", dtype="bfloat16") as engine:
        assert engine.info().execution == "packed"
        for _ in range(3):
            found = engine.embed(MANY, normalize=True)
            assert (found * expected).sum(1).min() > 0.99


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("bert", 3e-2),
        ("modernbert", 3e-2),
        ("deberta_v2", 5e-2),
        ("qwen3", 5e-2),
        ("eurobert", 5e-2),
    ],
)
def test_the_scores_are_those_of_the_cpu(tmp_path: Path, name: str, tolerance: float) -> None:
    folder = save_reranker(name, tmp_path)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        scores, queries = engine.score(PAIRS), engine.rank("mill", [text for _, text in PAIRS])
    for options, most in (({"dtype": "float32"}, 1e-4), ({}, tolerance)):
        with Engine(folder, device="cuda:0", **options) as engine:
            for _ in range(3):  # plain, captured, replayed
                assert np.abs(engine.score(PAIRS) - scores).max() < most
            assert np.abs(engine.score(PAIRS[5]) - scores[5]) < most
            ranked = engine.rank("mill", [text for _, text in PAIRS])
            found = sorted((one.index, one.score) for one in ranked)
            expected = sorted((one.index, one.score) for one in queries)
            assert np.abs(np.array(found) - np.array(expected)).max() < most


def test_scores_of_modules_answers_and_tokens_are_those_of_the_cpu(tmp_path: Path) -> None:
    tokens = save_reranker("bert", tmp_path / "c", labels=3, task="ForTokenClassification")
    folders = [save_modular(tmp_path / "a"), save_answering(tmp_path / "b", template=TEMPLATE)]
    for folder in folders:
        with Engine(folder, device="cpu", dtype="float32") as engine:
            expected = engine.score(PAIRS)
        with Engine(folder, device="cuda:0", dtype="float32") as engine:
            assert np.abs(engine.score(PAIRS) - expected).max() < 1e-4
    with Engine(tokens, device="cpu", dtype="float32") as engine:
        classes = engine.submit_classify(TEXTS).result().rows
    with Engine(tokens, device="cuda:0", dtype="float32") as engine:
        for one, other in zip(engine.submit_classify(TEXTS).result().rows, classes, strict=True):
            assert one is not None
            assert np.abs(one - other).max() < 1e-4


def test_batch_invariant_scores_have_the_same_bits_alone_and_together(tmp_path: Path) -> None:
    folder = save_reranker("bert", tmp_path)
    with Engine(folder, device="cuda:0", batch_invariant=True) as engine:
        together = engine.score(PAIRS)
        alone = np.array([engine.score(pair) for pair in PAIRS[::9]])
        assert np.array_equal(alone, together[::9])


def test_batch_invariant_gives_the_same_bits_in_any_company(folder: Path) -> None:
    with Engine(folder, device="cuda:0", batch_invariant=True) as engine:
        assert_the_same_bits_in_any_company(engine)


@pytest.fixture(scope="module")
def usual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the weights' usual size, which float8 bears better."""
    config = {**ENCODER, "initializer_range": 0.02}
    return checkpoints.save_transformer(tmp_path_factory.mktemp("model") / "bert", config=config)


def skip_without_float8() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this card has no products in float8")


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_in_float8_the_vectors_are_nearly_those_of_the_cpu(
    usual_folder: Path, batch_invariant: bool
) -> None:
    skip_without_float8()
    with Engine(usual_folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(MANY, normalize=True)
    options = {"dtype": "fp8", "batch_invariant": batch_invariant}
    with Engine(usual_folder, device="cuda:0", **options) as engine:
        assert engine.info().dtype == "fp8"
        for _ in range(3):  # plain, recorded, replayed
            found = engine.embed(MANY, normalize=True)
            assert (found * expected).sum(1).min() > 0.995
        if batch_invariant:
            assert_the_same_bits_in_any_company(engine)


def test_a_decoder_in_float8_continues_from_cached_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_float8()
    monkeypatch.setattr(cuda_runner, "MIN_SAVED_TOKENS", 0)
    family = next(family for family in FAMILIES if family.name == "qwen3")
    family = replace(family, config={**family.config, "initializer_range": 0.02, "head_dim": 32})
    folder = checkpoints.save_family(family, tmp_path)
    prompt = "Instruct: find the mill\nQuery: "
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(MANY, prompt=prompt, normalize=True)
    with Engine(folder, device="cuda:0", dtype="fp8") as engine:
        assert engine.info().dtype == "fp8"
        for _ in range(4):
            found = engine.embed(MANY, prompt=prompt, normalize=True)
            assert (found * expected).sum(1).min() > 0.98
        assert engine.stats().cached_tokens > 0


def test_models_without_known_layers_are_refused_in_float8(tmp_path: Path) -> None:
    skip_without_float8()
    family = next(family for family in FAMILIES if family.name == "mpnet")
    folder = checkpoints.save_family(family, tmp_path)
    with pytest.raises(InvalidOption, match="this model is of another kind"):
        Engine(folder, device="cuda:0", dtype="fp8")


def assert_the_same_bits_in_any_company(engine: Engine) -> None:
    assert engine.info().batch_invariant
    together = engine.embed(MANY)
    assert np.array_equal(engine.embed(MANY[::-1])[::-1], together)
    for i in range(0, 40):
        assert np.array_equal(engine.embed(MANY[i]), together[i])


@pytest.mark.parametrize(("name", "dtype"), [("mpnet", "float16"), ("qwen3", "float32")])
def test_batch_invariant_padded_texts_and_float32_have_the_same_bits_too(
    tmp_path: Path, name: str, dtype: str
) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    folder = checkpoints.save_family(family, tmp_path)
    with Engine(folder, device="cuda:0", dtype=dtype, batch_invariant=True) as engine:
        assert engine.info().execution == family.execution
        assert_the_same_bits_in_any_company(engine)


def test_without_batch_invariant_no_bits_are_promised(folder: Path) -> None:
    with Engine(folder, device="cuda:0") as engine:
        assert not engine.info().batch_invariant


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_the_second_device_is_as_good_as_the_first(tmp_path: Path, name: str) -> None:
    """Whichever is current: some kernels go to the current one, wherever their tensors are."""
    family = next(family for family in FAMILIES if family.name == name)
    folder = checkpoints.save_family(family, tmp_path)
    torch.cuda.set_device(0)
    with (
        Engine(folder, device="cuda:0") as first,
        Engine(folder, device="cuda:1", warmup=True) as second,
    ):
        for _ in range(3):
            assert np.abs(first.embed(MANY) - second.embed(MANY)).max() < 2e-2
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("blocks", [8, 5000])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3_text", "qwen2_sliding"])
def test_texts_after_cached_prefixes_have_the_vectors_of_whole_ones(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: str,
    tolerance: float,
    blocks: int,
) -> None:
    monkeypatch.setattr(cuda_runner, "MIN_SAVED_TOKENS", 0)
    monkeypatch.setattr(kv_cache_config, "MOST_BLOCKS", blocks)
    monkeypatch.setattr(kv_cache_config, "FEWEST_BLOCKS", 0)
    prompt = "Instruct: find the mill\nQuery: "
    family = next(family for family in FAMILIES if family.name == name)
    folder = checkpoints.save_family(family, tmp_path)
    with Engine(folder, device="cuda:0", dtype=dtype, prefix_cache="off") as engine:
        expected = engine.embed(MANY, prompt=prompt, normalize=True)
    with Engine(folder, device="cuda:0", dtype=dtype, max_batch_tokens=2000) as engine:
        assert engine.info().prefix_reason == "it agrees with the whole run"
        for _ in range(4):  # plain, recorded, replayed
            found = engine.embed(MANY, prompt=prompt, normalize=True)
            assert np.abs(found - expected).max() < tolerance
        alone = np.array([engine.embed(text, prompt=prompt, normalize=True) for text in MANY[:40]])
        assert np.abs(alone - expected[:40]).max() < tolerance
        stats = engine.stats()
    assert stats.prefix_cache is not None
    assert stats.cached_tokens > 0
    assert (stats.prefix_cache.evictions > 0) == (blocks == 8)


def test_two_engines_on_one_device_do_not_disturb_each_other(
    folder: Path, expected: np.ndarray
) -> None:
    with Engine(folder, device="cuda:0") as one, Engine(folder, device="cuda:0") as other:
        futures = [engine.submit(MANY, normalize=True) for _ in range(6) for engine in (one, other)]
        for future in futures:
            assert np.abs(future.result(60).vectors - expected).max() < 2e-2


def test_two_replicas_on_one_device(folder: Path, expected: np.ndarray) -> None:
    with Engine(folder, device=["cuda:0", "cuda:0"], max_batch_tokens=500) as engine:
        for _ in range(3):
            assert np.abs(engine.embed(MANY, normalize=True) - expected).max() < 2e-2


def test_a_budget_below_the_weights_is_refused(folder: Path) -> None:
    for options in ({}, {"max_batch_tokens": 100}, {"dtype": "float32"}):
        with pytest.raises(InvalidOption, match="the weights alone take"):
            Engine(folder, device="cuda:0", memory_bytes=1000, **options)


def test_a_full_device_splits_batches_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A batch of all texts, no two alike, takes several times the room that is left below.
    words, rng = " ".join(TEXTS).split(), random.Random(7)
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(300)]
    wide = {"hidden_size": 256, "intermediate_size": 8192, "num_attention_heads": 4}
    folder = checkpoints.save_transformer(tmp_path, config={**ENCODER, **wide})
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(texts, normalize=True)
    freed = []
    free_memory = CudaModelRunner.free_memory

    def noting(runner: CudaModelRunner) -> None:
        freed.append(runner)
        free_memory(runner)

    monkeypatch.setattr(CudaModelRunner, "free_memory", noting)
    with Engine(folder, device="cuda:0") as engine:
        engine.embed(texts[0])  # each thread that multiplies takes a workspace and keeps it
        engine.embed(texts[:64], priority="bulk")
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        # What this process holds and room for a text alone, and the capture of its graph;
        # what others hold does not count.
        room = torch.cuda.memory_reserved() + 32 * 2**20
        torch.cuda.set_per_process_memory_fraction(room / total)
        try:
            found = engine.embed(texts, normalize=True)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert freed, "the device was never full"
        again = engine.embed(texts, normalize=True)
    assert np.abs(found - expected).max() < 2e-2
    assert np.abs(again - expected).max() < 2e-2
