"""The part of a GPU that bulk batches have beside queries: when, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from millpond.runner.cuda import bulk_share
from millpond.runner.cuda.bulk_share import QUERY_MEMORY_S, BulkShare
from millpond.runner.cuda.own_stream import OwnStream
from millpond.runner.cuda.partial_stream import multiprocessors_for_bulk

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeStream:
    """Notes what it waits for."""

    device = torch.device("cpu")

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def replay(self) -> None:
        self.log.append("replay")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens on the streams of a device that is made up, the current one `outer`."""
    log: list[str] = []
    outer = FakeStream("outer", log)

    @contextmanager
    def stream(entered: FakeStream) -> Iterator[None]:
        log.append(f"{entered.name} is current")
        yield
        log.append("outer is current")

    def capture(work: Callable[[], Tensor]) -> tuple[FakeGraph, Tensor]:
        log.append("capture")
        return FakeGraph(log), work()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: outer)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(bulk_share, "cuda_graph_capture", lambda: capture)
    return log


def share_of(log: list[str], **options: Any) -> BulkShare:
    own: Any = SimpleNamespace(stream=FakeStream("part", log))
    return BulkShare(own, **options)


def test_it_is_on_for_a_while_after_a_query(log: list[str]) -> None:
    now_s = 100.0
    share = share_of(log, clock=lambda: now_s)
    assert not share.is_on, "before the first"
    share.note_query()
    assert share.is_on
    now_s += QUERY_MEMORY_S / 2
    assert share.is_on
    share.note_query()
    now_s += QUERY_MEMORY_S
    assert not share.is_on


def test_what_runs_there_is_in_the_order_of_the_current_stream(log: list[str]) -> None:
    in_order = ["part waits for outer", "part is current", "{}", "outer is current"]
    in_order += ["outer waits for part"]
    share = share_of(log)
    graph, vectors = share.capture(lambda: torch.ones(2))
    assert log == [line.format("capture") for line in in_order]
    assert vectors.tolist() == [1, 1]
    log.clear()
    graph.replay()
    assert log == [line.format("replay") for line in in_order]


def test_a_device_without_multiprocessors_to_share_out_has_none() -> None:
    assert multiprocessors_for_bulk(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("major", "count", "bulk"),
    [(9, 132, 112), (9, 114, 96), (10, 148, 128), (8, 108, 94), (8, 58, 50), (7, 40, 34)],
)
def test_bulk_has_whole_units_and_leaves_an_eighth_or_more(
    monkeypatch: pytest.MonkeyPatch, major: int, count: int, bulk: int
) -> None:
    found = SimpleNamespace(major=major, multi_processor_count=count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(torch._C, "_CUDAGreenContext", object, raising=False)
    assert multiprocessors_for_bulk(torch.device("cuda", 0)) == bulk
    monkeypatch.delattr(torch._C, "_CUDAGreenContext")
    assert multiprocessors_for_bulk(torch.device("cuda", 0)) is None, "an older torch"


def test_a_stream_that_is_refused_says_so() -> None:
    with pytest.raises(RuntimeError, match="no stream on a part of cuda:99"):
        OwnStream(torch.device("cuda", 99), multiprocessors=8)


@gpu
@needs_gpu
def test_a_replay_on_a_part_of_a_gpu_gives_the_same() -> None:
    device = torch.device("cuda", 0)
    count = multiprocessors_for_bulk(device)
    if count is None:
        pytest.skip("this GPU's multiprocessors cannot be shared out")
    share = BulkShare(OwnStream(device, multiprocessors=count))
    with torch.cuda.device(device), torch.cuda.stream(OwnStream(device).stream):
        share.take_workspace()
        rows = torch.randn(512, 512).to(device)  # the device's own generator may be amid a capture
        graph, found = share.capture(lambda: rows @ rows)
        for _ in range(3):
            rows.copy_(torch.randn(512, 512))
            graph.replay()
            assert torch.allclose(found, rows @ rows, atol=1e-3)
