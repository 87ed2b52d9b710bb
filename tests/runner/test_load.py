"""One model on several devices: two that are the CPU, and two that are fakes."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
from fakes import FakeRunner, start_engine, vectors_for

from millpond import Engine, InvalidOption
from millpond.runner.load import require_alike

TEXTS = [f"text number {i} of the pond" for i in range(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_transformer(tmp_path_factory.mktemp("model") / "bert")


def test_two_devices_give_what_one_gives(folder: Path) -> None:
    with Engine(folder, device="cpu", dtype="float32") as one:
        expected = one.embed(TEXTS)
    with Engine(folder, device=["cpu", "cpu"], dtype="float32", max_batch_tokens=64) as two:
        assert two.info().device == "cpu, cpu"
        found = two.embed(TEXTS)
        query = two.embed(TEXTS[7])
    assert np.array_equal(found, expected)
    assert np.array_equal(query, expected[7])


def test_every_device_takes_its_share_and_every_text_runs_once() -> None:
    runners = [FakeRunner(max_batch_tokens=16) for _ in range(3)]
    for runner in runners:
        runner.hold()
    with start_engine(runners) as engine:
        future = engine.submit(TEXTS)
        for runner in runners:
            runner.wait_for_batches(1)
            runner.let()
        assert np.array_equal(future.result(30).vectors, vectors_for(TEXTS))
    assert sorted(text for runner in runners for text in runner.ran) == sorted(TEXTS)
    assert all(len(runner.threads) == 1 for runner in runners), "a device has one worker's thread"


def test_a_batch_that_does_not_fit_is_split_on_its_own_device() -> None:
    runners = [FakeRunner(max_batch_tokens=64, memory_tokens=limit) for limit in (20, None)]
    with start_engine(runners) as engine:
        assert np.array_equal(engine.embed(TEXTS), vectors_for(TEXTS))
    assert runners[1].memory_freed == 0


def test_the_budget_is_that_of_the_smallest_device() -> None:
    with start_engine([FakeRunner(max_batch_tokens=8), FakeRunner(max_batch_tokens=64)]) as engine:
        assert engine.info().max_batch_tokens == 8
        assert engine.info().device == "fake, fake"


def test_devices_must_agree_on_the_precision() -> None:
    with pytest.raises(InvalidOption, match="float16 and float32"):
        require_alike([FakeRunner(), FakeRunner(dtype_name="float16")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": []}, "or a list of them"),
        ({"device": ["cpu", "cuda:77"]}, "is not there"),
    ],
)
def test_devices_that_cannot_be_meant(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Engine(folder, **options)
