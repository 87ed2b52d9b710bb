"""Millpond beside sentence-transformers on one GPU: what is right first, then every figure.

Run by `benchmarks/gpu/run.sh FOLDER`; writes `gpu.json` and `gpu.md` there after each figure.
No figure is started that the time left does not suffice for, and a failure or a hang stops only its
own figure. `--device cpu --share 0.01` is a rehearsal on tiny models.
"""
# ruff: noqa: E402

from __future__ import annotations

import time

STARTED = time.perf_counter()  # what is imported below takes its share

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer

from millpond import Engine

from .checks import RunningTests, check_agreement, check_kernels
from .clock import Clock
from .figures.contest import DEFAULT_BATCH, FEWEST_ROUNDS, Contest
from .figures.prefixes import prefix_figures
from .models.shapes import SHAPES, TINY, Shape, Texts, english_words, save
from .report import Report, machine

SECONDS = 460.0  # nothing runs for longer
ROUNDS = 5
TESTS_WAIT_S = 75.0
# What was never measured goes first. XLM-R-large has the shape of bge-large.
MODELS = ("bge-large", "Qwen3-0.6B", "bge-base", "MiniLM-L6")
# Ingestion before queries: for five seconds after one, an engine keeps bulk batches short.
FIGURES = (
    *("checks", "passages", "chunks", "matrix", "prefixes", "batch_invariant", "defaults", "flash"),
    *("query", "callers", "beside"),
)
ON_REQUEST = ("profile",)
FIRST = {"bge-base": ("checks", "chunks", "batch_invariant")}  # the others were measured once
# About what a figure takes, so that none is begun in vain.
NEEDS_S = {"callers": 15.0, "chunks": 12.0, "passages": 10.0, "prefixes": 25.0}
NEEDS_S_OTHERS = 8.0
LIMIT_S = 60.0  # and what ends it
EXTRAS = ("defaults", "flash", "beside")  # as long as what follows has enough:
RESERVE_S = 70.0  # for each model
OWN_RESERVE_S = 35.0
LESS_S = 95.0  # for each model: where less is left there are fewer rounds


@dataclass
class Plan:
    """What is to be measured, in which order."""

    report: Report
    clock: Clock
    options: argparse.Namespace
    texts: Texts

    def model(self, name: str, folder: Path, following: int) -> None:
        """All figures of one model, before that many others."""
        shape, device = shapes(self.options)[name], self.options.device
        loading = partial(self.report.attempt, needs_s=20)
        engine = loading(f"{name}: engine", lambda: Engine(folder, device=device))
        if engine is None:
            return
        with engine:
            peer = loading(f"{name}: peer", lambda: load_peer(folder, device, shape.dtype))
            if peer is None:
                return
            contest = Contest(
                self.report,
                name,
                shape,
                folder,
                engine,
                peer,
                self.texts,
                rounds=self._rounds(following + 1),
                device=device,
                share=self.options.share,
            )
            self._measure(contest, following)
            print(repr(engine), engine.stats(), engine.info().prefix_reason, flush=True)

    def _rounds(self, models: int) -> int:
        enough = self.clock.left / models >= LESS_S
        return self.options.rounds if enough else min(FEWEST_ROUNDS, self.options.rounds)

    def _measure(self, contest: Contest, following: int) -> None:
        figures = figures_of(contest)
        first = FIRST.get(contest.name, ())
        order = dict.fromkeys((*first, *FIGURES, *ON_REQUEST))
        for figure in (figure for figure in order if figure in self.options.figures):
            if figure == "prefixes" and not contest.shape.is_decoder:
                continue
            contest.rounds = self._rounds(following + 1)
            needs_s = NEEDS_S.get(figure, NEEDS_S_OTHERS)
            if figure in EXTRAS:
                needs_s += RESERVE_S * following + OWN_RESERVE_S
            name = f"{contest.name}: {figure}"
            self.report.attempt(name, figures[figure], needs_s=needs_s, limit_s=LIMIT_S)


def load_peer(folder: Path, device: str, dtype: torch.dtype, **options: str) -> SentenceTransformer:
    return SentenceTransformer(
        str(folder), device=device, local_files_only=True, model_kwargs={"dtype": dtype, **options}
    )


def figures_of(contest: Contest) -> Mapping[str, Callable[[], None]]:
    """How each figure is measured."""
    kept: dict[str, SentenceTransformer] = {}
    report, name, folder, device = contest.report, contest.name, contest.folder, contest.device

    def in_float32() -> SentenceTransformer:
        if "float32" not in kept:
            kept["float32"] = load_peer(folder, device, torch.float32)
        return kept["float32"]

    def checks() -> None:
        check_agreement(report, name, contest.engine, in_float32(), contest.few_texts())

    def defaults() -> None:
        """Of checkpoints as they are published: encoders in float32, Qwen3 in bfloat16."""
        is_half = contest.shape.is_decoder
        peer = contest.peer if is_half else in_float32()
        label = f"at its defaults, {'bfloat16' if is_half else 'float32'}"
        for what in ("passages", "chunks"):
            contest.against(peer, what, label=label, batch=DEFAULT_BATCH)
        kept.clear()

    def flash() -> None:
        """sentence-transformers packs texts where it finds flash attention."""
        dtype = contest.shape.dtype
        peer = load_peer(folder, device, dtype, attn_implementation="flash_attention_2")
        batch = contest.best_batches.get("passages", 128)
        contest.against(peer, "passages", label="flash_attention_2", batch=batch)

    return {
        "checks": checks,
        "passages": partial(contest.ingestion, "passages"),
        "chunks": partial(contest.ingestion, "chunks"),
        "matrix": contest.matrix_share,
        "batch_invariant": contest.batch_invariant,
        "query": contest.lone_query,
        "callers": contest.callers,
        "prefixes": partial(
            prefix_figures,
            *(report, name, folder),
            device=device,
            dtype=str(contest.engine.info().dtype),
            share=contest.share,
        ),
        "defaults": defaults,
        "flash": flash,
        "beside": contest.beside,
        "profile": contest.profile,
    }


def shapes(options: argparse.Namespace) -> Mapping[str, Shape]:
    """The models there are; in a rehearsal, tiny ones by the same names."""
    if options.device.startswith("cuda"):
        return SHAPES
    return {
        name: TINY["tiny Qwen3" if shape.is_decoder else "tiny BERT"]
        for name, shape in SHAPES.items()
    }


def make_models(
    report: Report, options: argparse.Namespace, words: Sequence[str], scratch: Path
) -> dict[str, Path]:
    """The checkpoints' folders; the tests run meanwhile."""
    tests = RunningTests.start(options.folder) if "tests" in options.figures else None
    found: dict[str, Path] = {}
    for name in options.models:
        make = partial(save, shapes(options)[name], scratch / name, words)
        folder = report.attempt(f"{name}: made", make, needs_s=20)
        if folder is not None:
            found[name] = folder
    if tests is not None:
        end = partial(tests.end, report, wait_s=max(1.0, TESTS_WAIT_S - report.clock.gone))
        report.attempt("tests", end, limit_s=TESTS_WAIT_S + 5)
    return found


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=[*SHAPES])
    figures = ("tests", *FIGURES)
    parser.add_argument("--figures", nargs="*", default=figures, choices=[*figures, *ON_REQUEST])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--share", type=float, default=1.0, help="of the texts, for a rehearsal")
    return parser.parse_args(arguments)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("millpond").setLevel(logging.INFO)
    options = parsed()
    clock = Clock(options.seconds, STARTED)
    report = Report(options.folder, machine(options.device), clock)
    print(report.machine, clock, flush=True)
    words = english_words()
    plan = Plan(report, clock, options, Texts(words, words_per_token=0.65))
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_models(report, options, words, Path(scratch))
        if options.device.startswith("cuda"):
            report.attempt("kernels", partial(check_kernels, report))
        for number, (name, folder) in enumerate(folders.items(), 1):
            measure = partial(plan.model, name, folder, len(folders) - number)
            report.attempt(name, measure, needs_s=20, limit_s=clock.left)
    report.write()
    print(report.markdown())


if __name__ == "__main__":
    main()
