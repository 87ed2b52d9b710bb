"""When a forward pass is captured, and what becomes of a model that cannot be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from millpond.runner.cuda.buckets import Bucket
from millpond.runner.cuda.graphs import PAUSE, CapturedGraph, CudaGraphs, cuda_graph_capture

SMALL, LARGE = Bucket(64, 8, 128), Bucket(128, 8, 128)
gpu = pytest.mark.gpu


@dataclass
class PaysAfter:
    """Plain runs of a bucket after which capturing pays."""

    after: int
    waits_for_launches: bool = False
    runs: int = 0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        self.runs += 1
        return work()

    @property
    def capture_pays(self) -> bool:
        return self.runs >= self.after


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


class Capture:
    def __init__(self, *, error: Exception | None = None, wrong: bool = False) -> None:
        self.error, self.wrong = error, wrong
        self.captured: list[Replay] = []

    def __call__(self, work: Callable[[], Tensor]) -> tuple[CapturedGraph, Tensor]:
        if self.error is not None:
            raise self.error
        self.captured.append(Replay(work, work(), self.wrong))
        return self.captured[-1], self.captured[-1].vectors


def doubled(bucket: Bucket, integers: Tensor) -> Tensor:
    return integers[: bucket.texts].float() * 2


def run(forwards: CudaGraphs, bucket: Bucket, integers: Tensor) -> list[float]:
    return forwards.run(bucket, integers, bucket.texts).tolist()


def test_a_bucket_is_recorded_when_it_comes_back_and_replayed_from_then_on() -> None:
    capture, integers = Capture(), torch.arange(64)
    forwards = CudaGraphs(doubled, capture)
    assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    assert not capture.captured
    for round in range(4):
        integers += round
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    (graph,) = capture.captured
    assert graph.replays == 4, "once to be verified and then at each of three calls"
    run(forwards, LARGE, integers)
    assert len(forwards) == 1


def test_a_bucket_is_captured_when_its_plain_runs_say_so() -> None:
    capture, integers = Capture(), torch.arange(64)
    forwards = CudaGraphs(doubled, capture, plain_runs=partial(PaysAfter, 3))
    counts = []
    for round in range(5):
        integers += round
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
        counts.append(len(capture.captured))
    assert counts == [0, 0, 1, 1, 1]
    assert capture.captured[0].replays == 3


@pytest.mark.parametrize("waits", [True, False])
def test_a_larger_graph_is_at_hand_where_launches_take_longer_than_padding(waits: bool) -> None:
    forwards = CudaGraphs(doubled, Capture(), plain_runs=partial(PaysAfter, 2, waits))
    large, integers = Bucket(1024, 64, 256), torch.arange(64)
    wanted = Bucket(512, 8, 128)
    assert forwards.at_hand(wanted) == wanted, "nothing is captured"
    for bucket in (large, large, Bucket(2048, 64, 256), Bucket(2048, 64, 256)):
        forwards.run(bucket, integers, 1)
    assert forwards.at_hand(wanted) == (large if waits else wanted)
    assert forwards.at_hand(large) == large
    for other in (Bucket(448, 8, 128), Bucket(512, 512, 128), Bucket(512, 8, 512)):
        assert forwards.at_hand(other) == other, "there is no room, or too much"


def test_what_the_first_replay_gave_is_looked_at_when_the_bucket_comes_again() -> None:
    capture, integers = Capture(wrong=True), torch.arange(64)
    forwards = CudaGraphs(doubled, capture)
    for _ in range(2):
        run(forwards, SMALL, integers)
    assert forwards.reason_against is None, "no thread has waited for it"
    run(forwards, LARGE, integers)
    assert forwards.reason_against is None
    assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    assert forwards.reason_against is not None
    assert capture.captured[0].replays == 1


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (Capture(error=RuntimeError("it waits for the device")), "it waits for the device"),
        (Capture(wrong=True), "a replay gave other vectors"),
    ],
)
def test_a_model_that_cannot_be_recorded_runs_plainly(capture: Capture, reason: str) -> None:
    forwards, integers = CudaGraphs(doubled, capture), torch.arange(64)
    for _ in range(4):
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    assert len(forwards) == 0
    assert reason in str(forwards.reason_against)
    assert len(capture.captured) <= 1, "it is tried once"


def test_the_graph_used_longest_ago_goes_when_there_are_too_many() -> None:
    forwards = CudaGraphs(doubled, Capture(), most_graphs=2)
    buckets = [Bucket(64 * n, 8, 128) for n in (1, 2, 3)]
    integers = torch.arange(200)
    for bucket in (*buckets[:2], *buckets[:2], buckets[0], buckets[2], buckets[2]):
        forwards.run(bucket, integers, 1)
    assert len(forwards) == 2
    assert list(forwards._graphs) == [buckets[0], buckets[2]]


def test_a_graph_that_made_room_has_to_come_twice_again() -> None:
    capture, integers = Capture(), torch.arange(200)
    forwards = CudaGraphs(doubled, capture, most_graphs=1)
    for bucket in (SMALL, SMALL, LARGE, LARGE):
        forwards.run(bucket, integers, 1)
    assert len(capture.captured) == 2
    forwards.run(SMALL, integers, 1)
    assert len(capture.captured) == 2
    forwards.run(SMALL, integers, 1)
    assert len(capture.captured) == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("CUDA error: out of memory"),  # of what makes a graph of a capture
    ],
)
def test_a_full_device_ends_graphs_for_a_while_and_not_for_good(error: Exception) -> None:
    capture, integers = Capture(), torch.arange(200)
    forwards = CudaGraphs(doubled, capture)
    for _ in range(2):
        run(forwards, SMALL, integers)
    capture.error = error
    for _ in range(4):
        assert run(forwards, LARGE, integers) == doubled(LARGE, integers).tolist()
    assert (len(forwards), forwards.reason_against) == (0, None)
    capture.error = None
    for _ in range(PAUSE + 2):
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    assert len(forwards) == 1


class FakeGraph:
    """A CUDA graph that writes down what is done to it."""

    calls: ClassVar[list[str]] = []
    fails_at: ClassVar[str] = ""

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails_at or (what == "end" and self.fails_at == "begin"):
            raise RuntimeError(f"{what}: not permitted when stream is capturing")

    def capture_begin(self, *, pool: int, capture_error_mode: str) -> None:
        self._do("begin")
        self.calls.append(f"pool {pool}")

    def capture_end(self) -> None:
        self._do("end")


@pytest.fixture
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    handles = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        done = partial(lambda name, *args: FakeGraph.calls.append(f"{name[6:]}{args}"), name)
        monkeypatch.setattr(torch._C, name, done, raising=False)
    FakeGraph.calls, FakeGraph.fails_at = [], ""
    return FakeGraph


def test_graphs_share_a_pool_until_the_last_of_them_is_gone(fake_graphs: type[FakeGraph]) -> None:
    capture = cuda_graph_capture()
    kept = [capture(lambda: torch.ones(1)), capture(lambda: torch.ones(1))]
    assert fake_graphs.calls == ["begin", "pool 1", "end"] * 2
    kept.clear()
    capture(lambda: torch.ones(1))
    assert fake_graphs.calls[-2] == "pool 2"


@pytest.mark.parametrize("fails_at", ["begin", "end"])
def test_where_a_capture_cannot_be_ended_the_allocator_is_told(
    fake_graphs: type[FakeGraph], fails_at: str
) -> None:
    capture = cuda_graph_capture()
    fake_graphs.fails_at = fails_at
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(lambda: torch.ones(1))
    told = ["endAllocateToPool(3, 1)", "releasePool(3, 1)"]
    assert fake_graphs.calls[-3:] == ["end", *told]


def test_a_capture_whose_work_fails_is_ended(fake_graphs: type[FakeGraph]) -> None:
    def fails() -> Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cuda_graph_capture()(fails)
    assert fake_graphs.calls == ["begin", "pool 1", "end"]


def test_what_is_in_the_place_of_empty_texts_is_not_compared() -> None:
    noise = torch.Generator().manual_seed(0)

    def noisy(bucket: Bucket, integers: Tensor) -> Tensor:
        vectors = doubled(bucket, integers)
        vectors[3:] = torch.rand(len(vectors) - 3, generator=noise)
        return vectors

    forwards, integers = CudaGraphs(noisy, Capture()), torch.arange(64)
    for _ in range(3):
        assert forwards.run(SMALL, integers, 3)[:3].tolist() == [0.0, 2.0, 4.0]
    assert len(forwards) == 1


class Share(Capture):
    """A part of a device that is made up, and whether it is on."""

    is_on = False
    capture = Capture.__call__


def test_while_a_share_is_on_what_was_captured_is_captured_for_it_and_replayed_there() -> None:
    capture, share, integers = Capture(), Share(), torch.arange(64)
    forwards = CudaGraphs(doubled, capture, share=share)
    for _ in range(2):
        run(forwards, SMALL, integers)
    assert not share.captured, "before it is needed"
    counts = []
    for is_on in (True, True, False, True):
        share.is_on = is_on
        integers += 1
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
        counts.append((capture.captured[0].replays, share.captured[0].replays))
    assert counts == [(2, 1), (2, 2), (3, 2), (3, 3)], "the first of each to be verified"
    forwards.clear()
    run(forwards, SMALL, integers)
    run(forwards, SMALL, integers)
    assert len(share.captured) == 1, "not before it comes again"
    run(forwards, SMALL, integers)
    assert len(share.captured) == 2


@pytest.mark.parametrize(
    "share",
    [
        Share(error=torch.OutOfMemoryError("CUDA out of memory")),
        Share(error=RuntimeError("it is refused there")),
        Share(wrong=True),
    ],
)
def test_what_cannot_be_captured_for_a_share_is_replayed_on_the_whole_device(share: Share) -> None:
    capture, integers = Capture(), torch.arange(64)
    forwards = CudaGraphs(doubled, capture, share=share)
    share.is_on = True
    for _ in range(5):
        assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
    (whole,) = capture.captured
    assert whole.replays == 4, "once to be verified and then at each of three calls"
    assert len(share.captured) <= 1, "it is tried once"
    assert forwards.reason_against is None


def test_clearing_forgets_everything() -> None:
    forwards, integers = CudaGraphs(doubled, Capture()), torch.arange(64)
    for _ in range(2):
        forwards.run(SMALL, integers, 1)
    assert repr(forwards) == "CudaGraphs(graphs=1, seen=1)"
    forwards.clear()
    assert repr(forwards) == "CudaGraphs(graphs=0, seen=0)"


@gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_that_waits_for_the_device_runs_plainly_on_a_gpu() -> None:
    def waits(bucket: Bucket, integers: Tensor) -> Tensor:
        return doubled(bucket, integers) * float(integers.sum().item() > 0)

    integers = torch.arange(64, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for forward, graphs in ((doubled, 1), (waits, 0)):
            forwards = CudaGraphs(forward, cuda_graph_capture())
            for _ in range(3):
                assert run(forwards, SMALL, integers) == doubled(SMALL, integers).tolist()
            assert len(forwards) == graphs
