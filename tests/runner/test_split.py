"""Ranks of one model: who is refused before anything is started, and how ranks end together."""

from __future__ import annotations

import os
import signal
from collections import deque
from itertools import repeat
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from child_ranks import load_pair
from fakes import PATIENCE_S, FakeRunner, FakeTokenizer, fake_spec, vectors_for
from left_behind import wait_until_gone

from millpond import Engine, EngineFailed, InvalidOption, UnsupportedModel
from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.checkpoint.spec import read_spec
from millpond.config import EngineConfig
from millpond.runner import split
from millpond.runner.remote.process import ChildProcess
from millpond.runner.remote.runner import RemoteRunner
from millpond.runner.split import rank_devices

CPU, CUDA = torch.device("cpu"), [torch.device("cuda", index) for index in range(4)]


def engine_on(runner: RemoteRunner) -> Engine:
    here = FakeRunner()
    return Engine.with_runner([runner], fake_spec(here), tokenizers=[FakeTokenizer(here)])


def placed(folder: Path, devices: list[torch.device], **options: Any) -> Any:
    config = EngineConfig(model=str(folder), **{"tensor_parallel_size": 2, **options})
    return rank_devices(read_spec(resolve_checkpoint(str(folder))), config, devices)


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "refused" in request.node.name:
        monkeypatch.setattr(ChildProcess, "__init__", lambda *_: pytest.fail("a process"))
        monkeypatch.setattr(split, "find_spec", lambda _: True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_transformer(tmp_path_factory.mktemp("bert") / "bert")


def saved(folder: Path, model: str, **config: Any) -> Path:
    sizes = {**checkpoints.ENCODER, "num_hidden_layers": 1, **config}
    return checkpoints.save_transformer(folder / "model", model=model, config=sizes)


@pytest.mark.parametrize(
    ("model", "config", "size", "said"),
    [
        ("BertModel", {}, 3, "num_attention_heads=4 cannot be split among 3"),
        ("BertModel", {"intermediate_size": 97}, 2, "intermediate_size=97"),
        ("MistralModel", {"num_key_value_heads": 1}, 2, "num_key_value_heads=1"),
        ("ElectraModel", {}, 2, "electra cannot be split, there is no plan"),
        ("ModernBertModel", {"attention_bias": True}, 2, "modernbert with biases"),
        ("Phi3Model", {"num_key_value_heads": 2}, 2, "phi3 cannot be split: its plan has layers"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(
    tmp_path: Path, model: str, config: dict[str, Any], size: int, said: str
) -> None:
    folder = saved(tmp_path, model, **config)
    with pytest.raises(UnsupportedModel, match=said) as raised:
        placed(folder, CUDA[:size], tensor_parallel_size=size)
    assert "replicas serve it better" in str(raised.value)


@pytest.mark.parametrize(
    ("devices", "options", "said"),
    [
        ([CPU], {"replicas": 2}, "split or copied"),
        ([CPU], {"tensor_parallel_size": 4096}, "4096 and .* processors"),
        ([CUDA[0]], {}, r"1 devices \(cuda:0\)"),
        (CUDA, {}, "4 devices"),
        ([CUDA[1], CUDA[1]], {}, "named twice"),
        ([CPU, CUDA[0]], {}, "among CUDA devices"),
        ([torch.device("mps")], {}, "among CUDA devices"),
        ([CPU], {"dtype": "int8"}, "quantised"),
        (CUDA[:2], {"dtype": "fp8"}, "quantised"),
    ],
)
def test_devices_and_options_that_cannot_be_meant_are_refused(
    bert: Path, devices: list[torch.device], options: dict[str, Any], said: str
) -> None:
    with pytest.raises((InvalidOption, UnsupportedModel), match=said):
        placed(bert, devices, **options)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2", None])
def test_a_number_of_devices_that_is_none_is_refused(bert: Path, size: Any) -> None:
    with pytest.raises(InvalidOption, match="tensor_parallel_size="):
        EngineConfig(model=str(bert), tensor_parallel_size=size)


def test_without_accelerate_it_is_refused_by_the_extras_name(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "find_spec", lambda _: None)
    with pytest.raises(InvalidOption, match=r"millpond\[tensor-parallel\]"):
        placed(bert, CUDA[:2])


def test_devices_in_the_order_of_the_ranks(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "find_spec", lambda _: True)
    assert placed(bert, CUDA[2:]) == CUDA[2:]
    assert placed(bert, [CPU]) == [CPU, CPU]


def test_a_rank_sees_its_own_device_and_nothing_of_it_is_in_the_parent(bert: Path) -> None:
    before = dict(os.environ)
    spec = read_spec(resolve_checkpoint(str(bert)))
    config = EngineConfig(
        model=str(bert), device="cpu", tensor_parallel_size=2, memory_bytes=1 << 20
    )
    tasks = [
        split._task("a:b", spec, config, CUDA[:2], split.Rank(rank=rank, world_size=2), "/folder")
        for rank in range(2)
    ]
    assert [task.environment["RANK"] for task in tasks] == ["0", "1"]
    assert [task.environment["LOCAL_RANK"] for task in tasks] == ["0", "0"]
    assert len({task.environment["CUDA_VISIBLE_DEVICES"] for task in tasks}) == 2
    assert {task.rank.rendezvous for task in tasks} == {"file:///folder/ranks"}
    assert {task.device_name for task in tasks} == {"cuda:0, cuda:1"}
    assert {task.arguments[1].memory_bytes for task in tasks} == {1 << 20}
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_a_pass_that_raises_on_every_rank_is_an_error_of_its_own() -> None:
    pair = load_pair("load_sums")
    with engine_on(pair) as engine:
        result = engine.submit(["fine", "bad", "fine too"], priority="bulk").result(PATIENCE_S)
        assert list(result.errors) == [1]
        np.testing.assert_array_equal(result.vectors[[0, 2]], vectors_for(["fine", "fine too"]))
        np.testing.assert_array_equal(engine.embed("a query"), vectors_for(["a query"])[0])
    pair.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["alone", "end"])
def test_a_rank_that_fails_or_dies_amid_a_pass_ends_the_model_and_nobody_waits(fault: str) -> None:
    pair = load_pair("load_sums")
    pids = pair.pids
    with engine_on(pair) as engine:
        future = engine.submit([fault, *["other"] * 20], priority="bulk")
        with pytest.raises(EngineFailed, match="process"):
            future.result(PATIENCE_S)
        with pytest.raises(EngineFailed):
            engine.embed("a query")
    for pid in pids:
        wait_until_gone(pid)


@pytest.mark.slow
def test_a_rank_that_cannot_load_ends_the_others() -> None:
    with pytest.raises(MemoryError, match="no room on the second"):
        load_pair("fail_on_second")


@pytest.mark.slow
def test_an_engine_on_a_split_model_embeds_as_one_process_does_until_a_rank_ends(
    bert: Path,
) -> None:
    pytest.importorskip("accelerate", reason="it is installed by the test extra")
    texts = [f"text {number} of the mill and the pond " * (number % 5 + 1) for number in range(20)]
    with Engine(bert, device="cpu", dtype="float32") as whole:
        expected, query = whole.embed(texts), whole.embed("a query", task=None)
        ids = whole.tokenize(texts)
    with Engine(bert, device="cpu", dtype="float32", tensor_parallel_size=2) as engine:
        info = engine.info()
        assert (info.tensor_parallel_size, info.replicas) == (2, 1)
        assert len(set(info.processes)) == 2
        np.testing.assert_allclose(engine.embed(texts), expected, atol=1e-5)
        np.testing.assert_allclose(engine.embed("a query"), query, atol=1e-5)
        assert engine.tokenize(texts) == ids
        os.kill(info.processes[1], signal.SIGKILL)
        with pytest.raises(EngineFailed, match="SIGKILL"):
            deque(map(engine.embed, repeat(texts)), maxlen=0)  # until it is noticed
        assert engine.health == "failed"
    for pid in info.processes:
        wait_until_gone(pid)
