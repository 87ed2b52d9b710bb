"""What a query costs the interpreter, with many callers on one event loop: no model is run.

    python -m benchmarks.cpu.callers --forward-ms 2

The runner gives vectors at once or, as a GPU does, some milliseconds after the launch, for which
the thread that waits sleeps. Everything else is the engine's own: a tokenizer of 20,000 words, the
scheduler, the threads, the futures. Microseconds are of processor time, of all threads together,
those of the callers' own coroutines included.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from millpond import Engine
from millpond.model.info import RouteInfo
from millpond.runner.limits import CUDA_BATCH_TOKENS, CUDA_MIN_BATCH_TOKENS, Limits
from millpond.scheduler.batch import Batch, BatchShape

from ..gpu.figures.callers import on_a_loop
from ..gpu.models.shapes import TINY, Texts, english_words, save

COLUMNS = 384
ROUNDS = 5
QUERIES = 6_400  # of a round


@dataclass(frozen=True)
class Launched:
    """A batch that has its vectors when the time has come."""

    texts: int
    done_s: float
    padded_tokens: int = 0


class NullRunner:
    """A `ModelRunner` as that of a GPU, which computes nothing."""

    device_name, dtype_name, prefix_cache_config, pids = "none", "float32", None, ()
    limits = Limits(
        max_batch_tokens=CUDA_BATCH_TOKENS,
        min_batch_tokens=CUDA_MIN_BATCH_TOKENS,
        depth=2,
        query_workers=1,
        queries_apart=True,
    )

    def __init__(self, route: RouteInfo, forward_s: float) -> None:
        self.routes = (route,)
        self.shapes = (BatchShape(None, route.max_length),)
        self.batches = 0
        self._forward_s = forward_s
        self._vectors = np.ones((CUDA_BATCH_TOKENS, route.dimension), dtype=np.float32)

    def can_run_inline(self, batch: Batch) -> bool:
        return False

    def launch(self, batch: Batch) -> Launched:
        self.batches += 1
        return Launched(batch.texts, time.perf_counter() + self._forward_s)

    def collect(self, handle: Launched) -> npt.NDArray[np.float32]:
        if self._forward_s:
            time.sleep(max(0.0, handle.done_s - time.perf_counter()))
        return self._vectors[: handle.texts]

    def is_out_of_memory(self, error: BaseException) -> bool:
        return False

    def is_fatal(self, error: BaseException) -> bool:
        return False

    def free_memory(self) -> None:
        pass

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        pass

    def delivered(self) -> None:
        pass

    def tell_when_lost(self, tell: Callable[[Exception], object]) -> None:
        pass

    def close(self, *, wait: bool = True) -> None:
        pass


def null_engine(folder: Path, forward_s: float) -> tuple[Engine, NullRunner]:
    """An engine with the tokenizer of a checkpoint, and its runner."""
    with Engine(folder, device="cpu") as loaded:
        info = loaded.info()
        tokenizers = [model.tokenizer for model in loaded._instance.runners[0].models]  # type: ignore[attr-defined]
    runner = NullRunner(info.routes[0], forward_s)
    return Engine.with_runner(runner, info.model, tokenizers=tokenizers), runner


def idle_loop_us(queries: Sequence[str], callers: int) -> float:
    """What the callers themselves cost: a future that ends at the loop's next turn."""

    async def ask(query: str) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future

    since = time.process_time()
    on_a_loop(queries, ask, callers)
    return 1e6 * (time.process_time() - since) / len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, nargs="*", default=(64, 256))
    parser.add_argument("--forward-ms", type=float, default=0.0)
    options = parser.parse_args()
    words = english_words()
    texts = Texts(words, words_per_token=0.65)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(TINY["tiny BERT"], Path(scratch), words)
        engine, runner = null_engine(folder, options.forward_ms / 1000)
    print("| callers | µs a query | in rounds | the callers' own | queries/s | queries a batch |")
    print("|---|---|---|---|---|---|")
    with engine:
        ask = partial(engine.aembed, task="query")
        for callers in options.callers:
            on_a_loop(texts.queries(QUERIES, seed=100), ask, callers)
            costs, speeds, runner.batches = [], [], 0
            for number in range(ROUNDS):
                queries, since = texts.queries(QUERIES, seed=number), time.process_time()
                since = time.process_time()
                asked = on_a_loop(queries, ask, callers)
                costs.append(1e6 * (time.process_time() - since) / QUERIES)
                speeds.append(asked.per_second)
            own = idle_loop_us(texts.queries(QUERIES, seed=101), callers)
            shown = f"{min(costs):.0f} to {max(costs):.0f}"
            speed, size = statistics.median(speeds), ROUNDS * QUERIES / runner.batches
            cost = statistics.median(costs)
            print(f"| {callers} | {cost:.0f} | {shown} | {own:.0f} | {speed:,.0f} | {size:.0f} |")


if __name__ == "__main__":
    main()
