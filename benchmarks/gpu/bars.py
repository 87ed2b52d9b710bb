"""Every bar that a GPU is held to, in one run: `python -m benchmarks.gpu.bars FOLDER`.

Each round has texts that no round before it had. What is cold is measured first, after a load
without `warmup`: the first hundred queries, and then the first second of an ingestion. Each figure
is printed as it is measured, its bar beside it, and `gpu.json` and `gpu.md` are written after each.
The same program measures another commit: `PYTHONPATH=OTHER/src python -m benchmarks.gpu.bars ...`.

`--real FOLDER` is a checkpoint of all-MiniLM-L6-v2, and `--judged FOLDER` texts with judgements, as
`benchmarks.cpu.retrieval` reads them: for what random weights cannot show. `--device cpu --share
0.01` is a rehearsal on tiny models.
"""
# ruff: noqa: E402

from __future__ import annotations

import time

STARTED = time.perf_counter()  # what is imported below takes its share

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
import transformers

import millpond
from millpond import Engine

from .clock import Clock
from .figures.measured import Measured, Work
from .figures.quality import check_real_model
from .models.shapes import SHAPES, TINY, Shape, english_words, save
from .report import Report, machine, matrix_rate

SECONDS = 350.0  # nothing runs for longer
LIMIT_S = 40.0  # of one figure
REAL_LIMIT_S = 120.0  # of a rehearsal on a processor
NEEDS_S = 5.0
MODELS = ("bge-base", "MiniLM-L6", "bge-large", "Qwen3-0.6B")
FIGURES = (
    *("cold", "passages", "chunks", "busy", "query", "beside", "callers", "fp8", "invariant"),
)


def measure_model(
    report: Report, name: str, folder: Path, options: argparse.Namespace, words: Sequence[str]
) -> None:
    """All figures of one model."""
    shape = shape_of(name, options.device)
    work = Work(words, shape, name, share=options.share)
    load = partial(Engine, folder, device=options.device, **options.engine)
    with ExitStack() as stack:
        since = time.perf_counter()
        engine = report.attempt(f"{name}: load", load)
        if engine is None:
            return
        stack.enter_context(engine)
        report.figure(name, "load without warmup, s", millpond=time.perf_counter() - since)
        measured = Measured(report, name, engine, load, work, rounds=options.rounds)
        figures: dict[str, Callable[[], None]] = {
            "cold": measured.cold,
            "passages": partial(measured.ingestion, "passages"),
            "chunks": partial(measured.ingestion, "chunks"),
            "busy": measured.busy,
            "query": measured.lone_query,
            "beside": measured.beside,
            "callers": measured.callers,
            "fp8": measured.float8,
            "invariant": measured.batch_invariant,
        }
        for figure in (figure for figure in FIGURES if figure in options.figures):
            what = f"{name}: {figure}"
            report.attempt(what, figures[figure], needs_s=NEEDS_S, limit_s=LIMIT_S)
        print(repr(engine), engine.stats(), flush=True)


def shape_of(name: str, device: str) -> Shape:
    """The model's or, in a rehearsal, a tiny one's."""
    shape = SHAPES[name]
    if device.startswith("cuda"):
        return shape
    return TINY["tiny Qwen3" if shape.is_decoder else "tiny BERT"]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=[*SHAPES])
    parser.add_argument("--figures", nargs="*", default=FIGURES, choices=FIGURES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--share", type=float, default=1.0, help="of the texts, for a rehearsal")
    parser.add_argument(
        "--engine", type=json.loads, default={}, help="options of the engine, as a JSON object"
    )
    parser.add_argument("--real", type=Path, help="a checkpoint of all-MiniLM-L6-v2")
    parser.add_argument("--judged", type=Path, help="texts, queries and judgements")
    return parser.parse_args(arguments)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("millpond").setLevel(logging.INFO)
    options = parsed()
    report = Report(options.folder, machine(options.device), Clock(options.seconds, STARTED))
    print(millpond.__file__, report.machine, report.clock, flush=True)
    words = english_words()
    with tempfile.TemporaryDirectory() as scratch:
        if options.real is not None:
            check = partial(check_real_model, report, options.real, options.judged, options.device)
            report.attempt("real model", check, limit_s=REAL_LIMIT_S)
        for name in options.models:
            make = partial(save, shape_of(name, options.device), Path(scratch) / name, words)
            folder = report.attempt(f"{name}: made", make, needs_s=NEEDS_S)
            if folder is not None:
                work = partial(measure_model, report, name, folder, options, words)
                report.attempt(name, work, limit_s=report.clock.left)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if options.device.startswith("cuda"):
        print("TFLOP/s at the end:", matrix_rate() / 1e12, flush=True)
    report.write()
    print(report.markdown())


if __name__ == "__main__":
    main()
