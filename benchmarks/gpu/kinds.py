"""Rerankers, sparse and multi-vector models beside sentence-transformers on one GPU.

    python -m benchmarks.gpu.kinds FOLDER
    python -m benchmarks.gpu.kinds FOLDER --figures beside --models MiniLM-L6 bge-reranker-base
    python -m benchmarks.gpu.kinds FOLDER --device cpu --share 0.01      # a rehearsal, tiny models

Prints each figure as a line of JSON, and writes `gpu.json` and `gpu.md` there after each. Both
sides run in the same half precision, sentence-transformers at the batch size that is best here (it
sorts by length itself), on texts that neither has seen before. What they give is compared before
anything is measured: Millpond may be no further from sentence-transformers in float32 than
sentence-transformers in half precision is. A `rank` call beside ingestion is measured without the
peer in memory, and what is loaded is left out of garbage collections, as `millpond serve` has it.
"""
# ruff: noqa: E402

from __future__ import annotations

import time

STARTED = time.perf_counter()  # what is imported below takes its share

import argparse
import gc
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder

from millpond import Engine

from ..cpu.kinds.rerank import PASSAGES
from .checks import RunningTests
from .clock import Clock
from .figures.contest import FEWEST_ROUNDS, PEER_BATCHES, ratio_of, seconds_of
from .figures.rank_beside import RankBeside
from .models.kinds import KINDS, TINY_KINDS, KindShape, save_kind
from .models.shapes import Texts, english_words
from .report import Report, machine

SECONDS = 225.0  # nothing runs for longer
ROUNDS = 4
TESTS = ("tests/behaviour/kinds/test_kinds_on_gpu.py",)
TESTS_WAIT_S = 60.0
WARM_ROUNDS = 3
CALLS = 150  # of fifty pairs
CHECKED = 48
MOST_ERROR = 2.0  # times that of sentence-transformers in half precision
# Inputs of a round, so that it takes sentence-transformers about a second.
INPUTS = {
    "MiniLM-L6": 4000,
    "XLM-R-large": 1000,
    "Qwen3-Reranker-0.6B": 600,
    "SPLADE, BERT-base": 1000,
}
INPUTS_OTHERS = 2000
# Of the largest models no larger one is best, and it takes its time to find that out.
BATCHES = {"XLM-R-large": (32, 128), "Qwen3-Reranker-0.6B": (32, 128)}

FIGURES = ("throughput", "beside")
# The largest last: what there is no time for is left out.
MODELS = (
    *("MiniLM-L6", "SPLADE, BERT-base", "ColBERT, BERT-base"),
    *("bge-reranker-base", "Qwen3-Reranker-0.6B", "XLM-R-large"),
)


@dataclass(frozen=True)
class Peer:
    """sentence-transformers' class for a kind of model, and how it and Millpond are asked."""

    load: Callable[..., Any]
    ours: Callable[[Engine, list[Any]], Any]
    theirs: Mapping[str, Callable[..., Any]]
    """`(model, inputs, batch_size=)`, by what is special about a way to ask it; the first of them
    gives what Millpond gives."""
    rows: Callable[[Any], np.ndarray]
    """What Millpond gives as an array, to be compared."""


def _vectors_of_tokens(vectors: Any) -> np.ndarray:
    return np.concatenate([np.asarray(each, np.float32) for each in vectors])


QUIET: Mapping[str, Any] = {"show_progress_bar": False}
PEERS: Mapping[str, Peer] = {
    "pairs": Peer(
        partial(CrossEncoder, max_length=512),
        lambda engine, pairs: engine.score(pairs, activation="none"),
        {"": lambda model, pairs, **options: model.predict(pairs, **options, **RAW)},
        lambda scores: np.asarray(scores, np.float32),
    ),
    "sparse": Peer(
        SparseEncoder,
        lambda engine, texts: engine.embed_sparse(texts),
        {
            "": lambda model, texts, **options: model.encode(texts, save_to_cpu=True, **options),
            "left on the device": lambda model, texts, **options: model.encode(texts, **options),
        },
        lambda vectors: vectors.to_dense(),
    ),
    "token vectors": Peer(
        MultiVectorEncoder,
        lambda engine, texts: engine.embed_tokens(texts, task="document"),
        {
            "": lambda model, texts, **options: model.encode_document(
                texts, convert_to_numpy=True, **options
            ),
            "left on the device": lambda model, texts, **options: model.encode_document(
                texts, **options
            ),
        },
        _vectors_of_tokens,
    ),
}
RAW: Mapping[str, Any] = {"activation_fn": torch.nn.Identity()}


@dataclass
class Contest:
    """One model in both engines."""

    report: Report
    name: str
    of: KindShape
    folder: Path
    texts: Texts
    device: str
    share: float
    rounds: int
    engine: Engine
    model: Any = field(init=False)
    """sentence-transformers'; in float32 until `checks` is over."""
    best: dict[str, int] = field(default_factory=dict, init=False)
    seed: int = field(default=100, init=False)

    def __post_init__(self) -> None:
        self.model = self.peer.load(
            str(self.folder),
            device=self.device,
            local_files_only=True,
            model_kwargs={"dtype": torch.float32},
        )

    @property
    def peer(self) -> Peer:
        return PEERS[self.of.kind]

    def draw(self, count: int) -> list[Any]:
        """Texts, or pairs of queries with a hundred passages each, that nobody has seen."""
        self.seed += 2
        passages = self.texts.passages(count, seed=self.seed)
        if self.of.kind != "pairs":
            return passages
        queries = self.texts.queries(-(-count // PASSAGES), seed=self.seed + 1)
        return [(queries[i // PASSAGES], passage) for i, passage in enumerate(passages)]

    @property
    def count(self) -> int:
        return max(8, int(self.share * INPUTS.get(self.name, INPUTS_OTHERS)))

    def ours(self, inputs: list[Any]) -> Any:
        return self.peer.ours(self.engine, inputs)

    def theirs(self, inputs: list[Any], how: str = "", batch: int = 32) -> Any:
        return self.peer.theirs[how](self.model, inputs, batch_size=batch, **QUIET)

    def checks(self) -> None:
        """How far both are from float32 in half precision; sentence-transformers is in it after."""
        inputs = self.draw(CHECKED)
        expected = self._their_rows(inputs)
        self.model.to(getattr(torch, self.engine.info().dtype))
        theirs = float(np.abs(self._their_rows(inputs) - expected).max())
        for again in ("", ", again"):
            found = self.peer.rows(self.ours(inputs))
            assert found.shape == expected.shape, (found.shape, expected.shape)
            ours = float(np.abs(found - expected).max())
            what = f"distance to float32, peer's {theirs:.3g}, span {np.ptp(expected):.3g}{again}"
            self.report.check(self.name, what, ours, ours <= MOST_ERROR * theirs + 1e-5)
        route = self.engine.info().routes[0]
        self.report.check(self.name, "runs packed", 1.0, route.execution == "packed")
        if route.execution != "packed":
            self.report.errors.append(f"{self.name}: {route.reason}")

    def _their_rows(self, inputs: list[Any]) -> np.ndarray:
        if self.of.kind != "sparse":
            return self.peer.rows(self.theirs(inputs))
        dense = self.model.encode(inputs, convert_to_sparse_tensor=False, **QUIET)
        found: np.ndarray = dense.float().cpu().numpy()
        return found

    def throughput(self) -> None:
        """All ways to ask, in turn, each round on inputs of its own."""
        for _ in range(WARM_ROUNDS):
            self.ours(self.draw(self.count))
        ways = list(self.peer.theirs)
        for how in ways:
            self.best[how] = self._best_batch(how)
        ours: list[float] = []
        theirs: dict[str, list[float]] = {how: [] for how in ways}
        for _ in range(self.rounds):
            inputs = self.draw(self.count)
            ours.append(seconds_of(partial(self.ours, inputs)))
            for how in ways:
                theirs[how].append(seconds_of(partial(self.theirs, inputs, how, self.best[how])))
        for how in ways:
            self._report(how, ours, theirs[how])

    def _report(self, how: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        of_pairs = self.of.kind == "pairs"
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        dtype = self.engine.info().dtype
        other = f"sentence-transformers, {dtype}, batches of {self.best[how]}"
        self.report.figure(
            self.name,
            f"{self.of.kind}/s" if of_pairs else f"{self.of.kind}, texts/s",
            kind=f"pairs of {self.name}" if of_pairs else self.of.kind,
            millpond=self.count / statistics.median(ours),
            peer=self.count / statistics.median(theirs),
            ratio=ratio_of(ours, theirs),
            other=f"{other}, {how}" if how else other,
            rounds=len(ours),
            least=min(ratios),
            most=max(ratios),
            inputs=self.count,
        )

    def _best_batch(self, how: str) -> int:
        speeds = {}
        for size in BATCHES.get(self.name, PEER_BATCHES):
            try:
                self.theirs(self.draw(min(size, self.count)), how, size)
                inputs = self.draw(min(self.count, max(size, self.count // 4)))
                speeds[size] = len(inputs) / seconds_of(partial(self.theirs, inputs, how, size))
            except torch.OutOfMemoryError:
                print(f"{self.name}: the peer has no memory for batches of {size}", flush=True)
                torch.cuda.empty_cache()
        print(f"{self.name} {how}: the peer's inputs/s by batch size: {speeds}", flush=True)
        return max(speeds, key=speeds.__getitem__)


def measure(report: Report, options: argparse.Namespace, texts: Texts, name: str) -> None:
    """All figures of one model, which is made first."""
    of = (KINDS if options.device.startswith("cuda") else TINY_KINDS)[name]
    with tempfile.TemporaryDirectory() as scratch:
        make = partial(save_kind, of, Path(scratch), texts.words)
        folder = report.attempt(f"{name}: made", make, needs_s=10)
        if folder is None:
            return
        load = partial(Engine, folder, device=options.device)
        engine = report.attempt(f"{name}: engine", load, needs_s=8)
        if engine is None:
            return
        with engine:
            given = (report, name, of, folder, texts, options.device, options.share)
            contest = report.attempt(
                f"{name}: peer", lambda: Contest(*given, rounds=options.rounds, engine=engine)
            )
            if contest is None:
                return
            report.attempt(f"{name}: checks", contest.checks, needs_s=3)
            if report.clock.left < 30:
                contest.rounds = min(contest.rounds, FEWEST_ROUNDS)
            if "throughput" in options.figures:
                report.attempt(f"{name}: throughput", contest.throughput, needs_s=6, limit_s=35)
            del contest  # half of the memory, and most of what the collector looks at
            if "beside" in options.figures and of.kind == "pairs":
                beside = RankBeside(report, name, engine, texts, calls_of(options.share))
                with frozen():
                    report.attempt(f"{name}: beside", beside.measure, needs_s=6, limit_s=25)
            print(repr(engine), engine.stats(), engine.info().prefix_reason, flush=True)


def calls_of(share: float) -> int:
    return max(6, int(min(1.0, 10 * share) * CALLS))


@contextmanager
def frozen() -> Iterator[None]:
    """What is there already is left out of garbage collections."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=[*KINDS])
    parser.add_argument("--figures", nargs="*", default=FIGURES, choices=FIGURES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs, for a rehearsal")
    parser.add_argument("--no-tests", action="store_true", help="not the tests that need a GPU")
    return parser.parse_args(arguments)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("millpond").setLevel(logging.INFO)
    options = parsed()
    clock = Clock(options.seconds, STARTED)
    report = Report(options.folder, machine(options.device), clock)
    print(report.machine, clock, flush=True)
    if not options.no_tests:
        tests = RunningTests.start(options.folder, TESTS)
        if tests is not None:
            wait = partial(tests.end, report, wait_s=TESTS_WAIT_S)
            report.attempt("tests", wait, limit_s=TESTS_WAIT_S + 5)
    texts = Texts(english_words(), words_per_token=0.65)
    for name in options.models:
        whole = partial(measure, report, options, texts, name)
        report.attempt(name, whole, needs_s=10, limit_s=clock.left)
    report.write()
    print(report.markdown())


if __name__ == "__main__":
    main()
