"""What the processes of replicas are started for: device, threads, share of the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import fake_spec

from millpond import EngineConfig, InvalidOption
from millpond.runner import replicas
from millpond.runner.replicas import replica_devices, replica_tasks, visible_name

CPU, GPUS = torch.device("cpu"), [torch.device("cuda", index) for index in range(2)]


def tasks(devices: list[torch.device], **options: Any) -> Any:
    return replica_tasks("a.module:load", fake_spec(), EngineConfig(model="m", **options), devices)


@pytest.mark.parametrize(
    ("devices", "count", "expected"),
    [
        ([CPU], 3, [CPU] * 3),
        ([CPU], 1, [CPU]),
        (GPUS, None, GPUS),
        (GPUS, 2, GPUS),
        (GPUS[:1], 1, GPUS[:1]),
    ],
)
def test_each_replica_has_a_device(devices: list, count: int | None, expected: list) -> None:
    assert list(replica_devices(devices, count)) == expected


@pytest.mark.parametrize(
    ("devices", "count", "message"),
    [(GPUS, 3, "each device has one"), (GPUS[:1], 2, "is for CPUs and this is cuda:0")],
)
def test_a_number_that_does_not_go_with_the_devices(
    devices: list, count: int, message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        replica_devices(devices, count)


def test_systems_without_a_way_to_connect_children_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "can_start_children", lambda: False)
    with pytest.raises(InvalidOption, match="POSIX"):
        replica_devices([CPU], 2)


def test_replicas_of_a_cpu_share_threads_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 11)
    made = tasks([CPU] * 3, memory_bytes=900, replicas=3)
    assert [one.environment["OMP_NUM_THREADS"] for one in made] == ["3"] * 3
    assert [one.repeats for one in made] == [False, True, True]
    for one in made:
        _, config, sharers = one.arguments
        assert (config.device, config.replicas, config.memory_bytes, sharers) == (
            "cpu",
            None,
            300,
            3,
        )


def test_more_replicas_than_threads_have_one_each_and_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert {one.environment["MKL_NUM_THREADS"] for one in tasks([CPU] * 2)} == {"1"}
    assert "more replicas (2) than threads (1)" in caplog.text


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, ["0", "1"]), ("3, 5", ["3", "5"]), ("GPU-aa,GPU-bb", ["GPU-aa", "GPU-bb"])],
)
def test_a_process_sees_its_own_gpu_alone(
    visible: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    made = tasks(GPUS, memory_bytes=900)
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in made] == seen
    assert [one.device_name for one in made] == ["cuda:0", "cuda:1"]
    for one in made:
        _, config, sharers = one.arguments
        assert (config.device, config.memory_bytes, sharers) == ("cuda:0", 900, 1)
    assert visible_name(1) == seen[1]
