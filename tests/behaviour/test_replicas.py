"""Replicas in processes of their own: the same bits as in one process, and every law."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from millpond import Engine, InvalidOption

TEXTS = [f"text number {number} of the pond" + " mill" * (number % 30) for number in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_transformer(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def replicas(folder: Path) -> Iterator[Engine]:
    with Engine(folder, device="cpu", replicas=2, dtype="float32", max_batch_tokens=256) as engine:
        yield engine


def test_two_replicas_give_the_bits_of_one_process(folder: Path, replicas: Engine) -> None:
    with Engine(folder, device="cpu", dtype="float32") as one:
        expected = one.embed(TEXTS)
        route = one.info().routes[0]
    np.testing.assert_array_equal(replicas.embed(TEXTS), expected)
    np.testing.assert_array_equal(replicas.embed(TEXTS[7]), expected[7])
    info = replicas.info()
    assert (info.replicas, info.device) == (2, "cpu, cpu")
    assert len(set(info.processes)) == 2
    assert os.getpid() not in info.processes
    assert info.routes == (route,)
    assert replicas.stats().texts == len(TEXTS) + 1


def test_an_engine_on_replicas_pickles_to_its_configuration(replicas: Engine) -> None:
    config = pickle.loads(pickle.dumps(replicas.config))
    assert config.replicas == 2
    assert pickle.dumps(replicas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "at least 1"),
        ({"replicas": True}, "at least 1"),
        ({"replicas": "2"}, "at least 1"),
        ({"device": ["cpu", "cpu"], "replicas": 3}, "3 and 2 devices"),
    ],
)
def test_replicas_that_cannot_be_meant(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Engine(folder, **options)
