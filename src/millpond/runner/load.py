"""`Replicas`: one model on several devices, behind one queue.

Every worker of the engine is given a device when it launches its first batch and stays with it.
Which batch goes to which worker is the loop's business.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..errors import InvalidOption
from ..model.info import RouteInfo
from ..scheduler.batch import Batch
from ..scheduler.batch_shape import BatchShape
from ..scheduler.prefix_cache import PrefixCacheConfig
from ..scheduler.request import Request
from ..scheduler.token_chunk import TokenChunk
from .base import BatchHandle, FloatArray, ModelRunner
from .model_runner import TorchModelRunner

__all__ = ["Replicas", "load_runner"]


def load_runner(spec: ModelSpec, config: EngineConfig) -> ModelRunner:
    """Load a model onto its device or devices. Raises `ModelError` and `InvalidOption`."""
    names = _device_names(config)
    changes: dict[str, Any] = {}
    if len(names) > 1:
        changes["prefix_cache"] = "off"  # the scheduler does not know who will run a batch
    configs = [replace(config, device=name, **changes) for name in names]
    runners = [TorchModelRunner.load(spec, one) for one in configs]
    return runners[0] if len(runners) == 1 else Replicas(runners)


def _device_names(config: EngineConfig) -> Sequence[str]:
    count = torch.cuda.device_count() if config.device == "cuda" else 1
    return [f"cuda:{index}" for index in range(count)] if count > 1 else config.device_names


class Replicas:
    """A `ModelRunner` made of several, which run the same model in the same precision.

    Raises `InvalidOption` where the devices chose different precisions.
    """

    def __init__(self, runners: Sequence[ModelRunner]) -> None:
        precisions = sorted({runner.dtype_name for runner in runners})
        if len(precisions) > 1:
            raise InvalidOption(
                f"the devices run in {' and '.join(precisions)}, and a text's vector would depend "
                "on where it ran; choose a dtype that all of them have"
            )
        self._runners = tuple(runners)
        self._first = self._runners[0]
        self.max_batch_tokens = min(runner.max_batch_tokens for runner in runners)
        self.min_batch_tokens = min(runner.min_batch_tokens for runner in runners)
        self.depth = min(runner.depth for runner in runners)
        self.workers = sum(runner.workers for runner in runners)
        self.query_workers = sum(runner.query_workers for runner in runners)
        # Guarded by being an iterator: `next` of `cycle` is one step of the interpreter.
        self._next = itertools.cycle(self._places())
        self._own = threading.local()

    def _places(self) -> list[ModelRunner]:
        """A runner for every worker, the first of each device before the second of any."""
        counted = [
            (turn, place, runner)
            for place, runner in enumerate(self._runners)
            for turn in range(runner.workers + runner.query_workers)
        ]
        return [runner for *_, runner in sorted(counted, key=lambda entry: entry[:2])]

    @property
    def _runner(self) -> ModelRunner:
        """The runner of the calling thread."""
        runner: ModelRunner | None = getattr(self._own, "runner", None)
        if runner is None:
            runner = self._own.runner = next(self._next)
        return runner

    @property
    def routes(self) -> Sequence[RouteInfo]:
        return self._first.routes

    @property
    def shapes(self) -> Sequence[BatchShape]:
        return self._first.shapes

    @property
    def device_name(self) -> str:
        return ", ".join(runner.device_name for runner in self._runners)

    @property
    def dtype_name(self) -> str:
        return self._first.dtype_name

    def runs_here(self, tokens: int) -> bool:
        """Never: a thread stays with a device, and callers come and go."""
        return False

    def prompt_tokens(self, route: int, prompt: str) -> int:
        """Tokens of a prompt that pooling leaves out."""
        return self._first.prompt_tokens(route, prompt)

    def shared_tokens(self, route: int, prompt: str, task: str | None) -> int:
        """0: what one device has computed, the others do not have."""
        return 0

    @property
    def prefix_budget(self) -> PrefixCacheConfig | None:
        return None

    def tokenize(self, job: Request, rows: npt.NDArray[np.int64]) -> TokenChunk:
        """Turn texts of a job into ids, from any thread. Raises `InvalidInput`."""
        return self._first.tokenize(job, rows)

    def token_ids(
        self,
        route: int,
        texts: Sequence[str],
        *,
        prompt: str,
        task: str | None,
        special_tokens: bool,
    ) -> list[list[int]]:
        """Token ids of texts, whole and from any thread. Raises `InvalidInput`."""
        return self._first.token_ids(
            route, texts, prompt=prompt, task=task, special_tokens=special_tokens
        )

    def detokenize(self, route: int, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, from any thread. Raises `InvalidInput`."""
        return self._first.detokenize(route, ids)

    def launch(self, batch: Batch) -> BatchHandle:
        """Start a forward pass on the calling worker's device."""
        return self._runner.launch(batch)

    def collect(self, ticket: BatchHandle) -> FloatArray:
        """Wait for the vectors of a batch that the same thread launched."""
        return self._runner.collect(ticket)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""
        return self._runner.is_out_of_memory(error)

    def is_fatal(self, error: BaseException) -> bool:
        """Whether a device is lost; the engine ends with the first."""
        return self._runner.is_fatal(error)

    def free_memory(self) -> None:
        """Give cached memory of the calling worker's device back."""
        self._runner.free_memory()

    def __repr__(self) -> str:
        return f"Replicas({', '.join(map(repr, self._runners))})"
