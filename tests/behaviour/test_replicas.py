"""Replicas in processes of their own give the bits that one process gives."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_checkpoint, save_transformer
from families import FAMILIES, MAX_LENGTH, WIDTH
from rerankers import PAIRS, save_reranker
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from millpond import Engine, InvalidCheckpoint, InvalidOption

TEXTS = [f"text number {number} of the pond" + " mill" * (number % 30) for number in range(200)]
PROMPT = "find what the miller wrote about the stone, the grain and the water of the pond: "

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformer(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def replicas(folder: Path) -> Iterator[Engine]:
    with Engine(folder, device="cpu", replicas=2, dtype="float32", max_batch_tokens=256) as engine:
        yield engine


def test_two_replicas_give_the_bits_of_one_process(folder: Path, replicas: Engine) -> None:
    with Engine(folder, device="cpu", dtype="float32") as one:
        expected = one.embed(TEXTS)
        route = one.info().routes[0]
        assert (one.info().replicas, one.info().processes) == (1, ())
    np.testing.assert_array_equal(replicas.embed(TEXTS), expected)
    np.testing.assert_array_equal(replicas.embed(TEXTS[7]), expected[7])
    info = replicas.info()
    assert (info.replicas, info.device) == (2, "cpu, cpu")
    assert len(set(info.processes)) == 2
    assert os.getpid() not in info.processes
    assert info.routes == (route,)
    assert replicas.stats().texts == len(TEXTS) + 1


def test_an_engine_on_replicas_pickles_to_its_configuration(replicas: Engine) -> None:
    assert pickle.loads(pickle.dumps(replicas.config)).replicas == 2
    assert pickle.dumps(replicas)


def test_replicas_keep_prefixes_each_in_its_own_cache(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "qwen3")
    config = {**family.config, "max_position_embeddings": 512, "initializer_range": 0.1}
    bare = save_transformer(
        tmp_path / "bare", model=family.model, tokenizer=family.tokenizer, config=config
    )
    modules = [Transformer(str(bare), max_seq_length=512), Pooling(WIDTH, "lasttoken")]
    saved = save_checkpoint(tmp_path / "saved", modules, prompts={"query": PROMPT})
    texts = [*TEXTS[:60], " ".join(TEXTS[:25]), " ".join(TEXTS[3:28])]  # two run in parts
    options = {"device": "cpu", "dtype": "float32", "max_batch_tokens": 64}
    with Engine(saved, prefix_cache="off", **options) as one:
        expected = one.embed(texts, task="query")
    with Engine(saved, replicas=2, **options) as two:
        assert two.info().batch_invariant
        for _ in range(3):
            np.testing.assert_array_equal(two.embed(texts, task="query"), expected)
        stats, cache = two.stats(), two.info().prefix_cache
        assert cache is not None
        assert stats.cached_tokens > stats.tokens // 2
        assert stats.prefix_cache is not None
        assert stats.prefix_cache.blocks > cache.blocks
    for each in two._instance.core.scheduler.caches:
        each.check(idle=True)
        assert each.stats.hit_tokens > 0


def test_one_process_of_its_own_scores_as_this_one(tmp_path: Path) -> None:
    saved = save_reranker("bert", tmp_path)
    options = {"device": "cpu", "dtype": "float32", "max_length": MAX_LENGTH}
    with Engine(saved, **options) as here, Engine(saved, replicas=1, **options) as there:
        np.testing.assert_array_equal(there.score(PAIRS), here.score(PAIRS))
        assert len(there.info().processes) == 1


def test_a_checkpoint_that_does_not_load_is_the_error_of_one_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[:1000] if file.suffix == ".safetensors" else data)

    def error(**options: object) -> str:
        with pytest.raises(InvalidCheckpoint) as caught:
            Engine(broken, device="cpu", **options)  # type: ignore[arg-type]
        return str(caught.value)

    assert error(replicas=2) == error()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "replicas": 0}, "at least 1"),
        ({"device": "cpu", "replicas": True}, "at least 1"),
        ({"device": "cpu", "replicas": "2"}, "at least 1"),
        ({"device": ["cpu", "cpu"], "replicas": 3}, "3 and 2 devices"),
        ({"device": ["cpu", "cuda:77"]}, "is not there"),
    ],
)
def test_replicas_that_cannot_be_meant(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Engine(folder, **options)
