"""What tests load in the ranks of a split model: many small models, one after the other.

A process takes seconds to start and a small model much less, so a pair of ranks serves them all.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from child_models import ChildRunner
from fakes import FakeRunner, _texts_of, token
from real_runner import request_of

from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.checkpoint.spec import read_spec
from millpond.config import EngineConfig
from millpond.engine.inputs import InputProcessor
from millpond.model.split.ranks import RankGroup
from millpond.runner.cpu.runner import CpuModelRunner
from millpond.runner.remote.runner import RemoteRunner
from millpond.runner.remote.task import ChildTask, Loaded, Rank
from millpond.runner.split import RankRunner
from millpond.scheduler.batch import Batch, Segment

ENVIRONMENT = {
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
}


def rows_and_facts(
    folder: str, texts: Sequence[Any], options: Mapping[str, Any], ranks: RankGroup | None = None
) -> tuple[Any, dict[str, Any]]:
    """What a checkpoint gives for texts, here or on a rank, and what was seen of it."""
    config = EngineConfig(model=folder, device="cpu", **{"dtype": "float32", **options})
    spec = read_spec(resolve_checkpoint(folder))
    runner = CpuModelRunner.load(spec, config, torch.device("cpu"), ranks=ranks)
    inputs = InputProcessor(spec, runner.routes, [model.tokenizer for model in runner.models])
    request = request_of(list(texts))
    chunk = inputs.tokenize(request, np.arange(len(texts))).chunk
    assert chunk is not None
    segment = Segment(request, chunk, 0, len(texts))
    rows = runner.collect(runner.launch(Batch(0, (segment,))))
    by_text = np.empty_like(rows)
    by_text[chunk.rows] = rows
    encoder: Any = runner.models[0].encoder
    cache = runner.prefix_cache_config
    facts = {
        "weights": sum(weight.nbytes for weight in encoder.model.parameters()),
        "routes": runner.routes,
        "cached": None if cache is None else cache.bytes_per_token,
        "workers": runner.limits.workers,
    }
    return by_text, facts


def load_each(
    models: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]], *, rank: Rank
) -> Loaded:
    """On a rank: what `rows_and_facts` gives for each model, or its error."""
    ranks = RankGroup(
        rank=rank.rank,
        size=rank.world_size,
        rendezvous=str(rank.rendezvous),
        device=torch.device("cpu"),
    )
    found = [rows_and_facts(*model, ranks) for model in models]
    return Loaded(FakeRunner(), extra=found)


class SumsOfRanks(ChildRunner):
    """Adds up over the ranks in every pass, and raises on one of them, or on both."""

    def __init__(self, ranks: RankGroup) -> None:
        super().__init__()
        self._ranks = ranks

    def launch(self, batch: Batch) -> Any:
        words = {one for ids in _texts_of(batch) for one in ids.tolist()}
        on_second = self._ranks.rank == 1
        if token("alone") in words and on_second:
            raise RuntimeError("out of memory on this rank")
        if token("end") in words and on_second:
            os.kill(os.getpid(), signal.SIGKILL)
        self._ranks.add_up(torch.ones(4), torch.float32)
        if token("bad") in words:
            raise ValueError("a bad one")
        return super().launch(batch)


def load_sums(*, rank: Rank) -> Loaded:
    """On a rank: a fake that needs the others."""
    ranks = RankGroup(
        rank=rank.rank,
        size=rank.world_size,
        rendezvous=str(rank.rendezvous),
        device=torch.device("cpu"),
    )
    runner: Any = SumsOfRanks(ranks)
    return Loaded(RankRunner(runner, ranks))


def fail_on_second(*, rank: Rank) -> Loaded:
    """On a rank: the first waits for the second, which has no room."""
    if rank.rank == 1:
        raise MemoryError("no room on the second")
    return load_sums(rank=rank)


def load_pair(name: str, *arguments: Any) -> RemoteRunner:
    """Two ranks, loaded by a function of this module."""
    with tempfile.TemporaryDirectory() as folder:
        return RemoteRunner.load(
            [
                ChildTask(
                    loader=f"child_ranks:{name}",
                    arguments=arguments,
                    rank=Rank(
                        rank=rank, world_size=2, rendezvous=f"file://{Path(folder, 'ranks')}"
                    ),
                    environment={**ENVIRONMENT, "RANK": str(rank)},
                )
                for rank in range(2)
            ]
        )
