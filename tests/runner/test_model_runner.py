"""What the runners of all kinds of device share, on the CPU without what is the CPU's own."""

from __future__ import annotations

import numpy as np
import pytest
from real_runner import TEXTS, load_on_cpu, segment, vectors_by_text

from millpond.runner.cpu.runner import CpuModelRunner
from millpond.runner.model_runner import TorchModelRunner
from millpond.scheduler.batch import Batch


@pytest.fixture(scope="module")
def on_cpu() -> CpuModelRunner:
    return load_on_cpu()


def test_a_device_without_ways_of_its_own_gives_the_vectors_of_the_cpu(
    on_cpu: CpuModelRunner,
) -> None:
    shared = TorchModelRunner(on_cpu.models, device=on_cpu.device, max_batch_tokens=64)
    batch = Batch(0, (segment(on_cpu, TEXTS),))
    assert shared.launch(batch).padded_tokens == 0, "no kernels that know a few numbers of rows"
    for (text, vector), (_, expected) in zip(
        vectors_by_text(shared, batch), vectors_by_text(on_cpu, batch), strict=True
    ):
        assert np.abs(vector - expected).max() < 1e-6, text


def test_such_a_device_runs_one_batch_at_a_time_and_none_on_a_callers_thread(
    on_cpu: CpuModelRunner,
) -> None:
    shared = TorchModelRunner(on_cpu.models, device=on_cpu.device, max_batch_tokens=64)
    limits = shared.limits
    assert (limits.max_batch_tokens, limits.depth, limits.workers) == (64, 1, 1)
    assert not shared.can_run_inline(1)


def test_the_memory_of_mps_runs_out_with_an_error_of_its_own(on_cpu: CpuModelRunner) -> None:
    error = RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)")
    shared = TorchModelRunner(on_cpu.models, device=on_cpu.device, max_batch_tokens=64)
    assert shared.is_out_of_memory(error)
    assert not shared.is_fatal(error)


def test_batch_invariance_is_found_by_real_batches(on_cpu: CpuModelRunner) -> None:
    shared = TorchModelRunner(on_cpu.models, device=on_cpu.device, max_batch_tokens=64)
    assert not shared.routes[0].batch_invariant
    collect = shared.collect
    shared.check_batch_invariance(promised=False)
    found = shared.routes[0].batch_invariant
    turn = iter(range(10**6))
    shared.collect = lambda handle: collect(handle) + np.float32(next(turn))  # type: ignore
    shared.check_batch_invariance(promised=True)
    assert isinstance(found, bool)
    assert not shared.routes[0].batch_invariant, "every batch gave other vectors"
