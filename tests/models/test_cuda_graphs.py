"""When a forward pass is recorded, and what becomes of a model that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from millpond.models.cuda_buckets import Bucket
from millpond.models.cuda_graphs import RecordedForwards, Recording, record_cuda_graph

SMALL, LARGE = Bucket(64, 8, 128), Bucket(128, 8, 128)
gpu = pytest.mark.gpu


@dataclass
class Replay:
    """Work done again into the tensor it gave first, as a graph does it."""

    work: Callable[[], Tensor]
    vectors: Tensor
    wrong: bool = False
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        self.vectors.copy_(self.work() + (1.0 if self.wrong else 0.0))


class Recorder:
    def __init__(self, *, error: Exception | None = None, wrong: bool = False) -> None:
        self.error, self.wrong = error, wrong
        self.recordings: list[Replay] = []

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        if self.error is not None:
            raise self.error
        self.recordings.append(Replay(work, work(), self.wrong))
        return self.recordings[-1], self.recordings[-1].vectors


def doubled(bucket: Bucket, integers: Tensor) -> Tensor:
    return integers[: bucket.texts].float() * 2


def run(forwards: RecordedForwards, bucket: Bucket, integers: Tensor) -> list[float]:
    return forwards.run(bucket, integers, bucket.texts).tolist()


def test_a_bucket_is_recorded_when_it_comes_back_and_replayed_from_then_on() -> None:
    recorder, integers = Recorder(), torch.arange(64)
    forwards = RecordedForwards(doubled, recorder)
    assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    assert not recorder.recordings
    for round in range(4):
        integers += round
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    (recording,) = recorder.recordings
    assert recording.replays == 4, "once to be proven and then at each of three calls"
    run(forwards, LARGE, integers)
    assert len(forwards) == 1


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Recorder(error=RuntimeError("it waits for the device")), "it waits for the device"),
        (Recorder(wrong=True), "a replay gave other vectors"),
    ],
)
def test_a_model_that_cannot_be_recorded_runs_plainly(recorder: Recorder, reason: str) -> None:
    forwards, integers = RecordedForwards(doubled, recorder), torch.arange(64)
    for _ in range(4):
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    assert len(forwards) == 0
    assert reason in str(forwards.reason_against)
    assert len(recorder.recordings) <= 1, "it is tried once"


def test_the_graph_used_longest_ago_goes_when_there_are_too_many() -> None:
    forwards = RecordedForwards(doubled, Recorder(), most_graphs=2)
    buckets = [Bucket(64 * n, 8, 128) for n in (1, 2, 3)]
    integers = torch.arange(200)
    for bucket in (*buckets[:2], *buckets[:2], buckets[0], buckets[2], buckets[2]):
        forwards.run(bucket, integers, 1)
    assert len(forwards) == 2
    assert list(forwards._recorded) == [buckets[0], buckets[2]]


def test_what_is_in_the_place_of_empty_texts_is_not_compared() -> None:
    noise = torch.Generator().manual_seed(0)

    def noisy(bucket: Bucket, integers: Tensor) -> Tensor:
        vectors = doubled(bucket, integers)
        vectors[3:] = torch.rand(len(vectors) - 3, generator=noise)
        return vectors

    forwards, integers = RecordedForwards(noisy, Recorder()), torch.arange(64)
    for _ in range(3):
        assert forwards.run(SMALL, integers, 3)[:3].tolist() == [0.0, 2.0, 4.0]
    assert len(forwards) == 1


def test_clearing_forgets_everything() -> None:
    forwards, integers = RecordedForwards(doubled, Recorder()), torch.arange(64)
    for _ in range(2):
        forwards.run(SMALL, integers, 1)
    assert repr(forwards) == "RecordedForwards(graphs=1, seen=1)"
    forwards.clear()
    assert repr(forwards) == "RecordedForwards(graphs=0, seen=0)"


@gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_that_waits_for_the_device_runs_plainly_on_a_gpu() -> None:
    def waits(bucket: Bucket, integers: Tensor) -> Tensor:
        return doubled(bucket, integers) * float(integers.sum().item() > 0)

    integers = torch.arange(64, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for forward, graphs in ((doubled, 1), (waits, 0)):
            forwards = RecordedForwards(forward, record_cuda_graph())
            for _ in range(3):
                assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
            assert len(forwards) == graphs
