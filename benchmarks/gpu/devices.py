"""One engine on one GPU and on all of a host's, in turn: `python -m benchmarks.gpu.devices FOLDER`.

Writes `gpu.json` and `gpu.md` there. Ratios are to the same engine on the first GPU alone; with two
GPUs, 2 is the most there is. Vectors of both are compared first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from millpond import Engine

from .checks import least_cosine
from .clock import Clock
from .figures.callers import on_a_loop
from .figures.contest import ratio_of, seconds_of
from .models.shapes import SHAPES, Texts, english_words, save
from .report import Report, machine

SECONDS, LIMIT_S = 300.0, 120.0
MODELS = ("MiniLM-L6", "bge-base", "bge-large")
TOKENS = {"MiniLM-L6": 3_000_000, "bge-base": 2_000_000, "bge-large": 1_000_000}
CALLERS = (64, 256)
WARM_UPS = 3
CALLS = 16
ROUNDS = 5
LEAST = {"MiniLM-L6": 1.6, "bge-base": 1.8, "bge-large": 1.95, 64: 1.0, 256: 1.6}
"""How many times the rate of one GPU is wanted of two."""


Draw = Callable[[int], list[str]]
Work = Callable[[Engine, list[str]], object]


def figures(report: Report, name: str, folder: Path, texts: Texts) -> None:
    """Ingestion and many callers, of one device and of all."""
    count = torch.cuda.device_count()
    with ExitStack() as stack:
        one = stack.enter_context(Engine(folder, device="cuda:0"))
        every = stack.enter_context(Engine(folder, device="cuda"))
        print(every.info(), flush=True)
        sample = texts.passages(256)
        cosine = least_cosine(one.embed(sample), every.embed(sample))
        report.check(name, f"vectors of {count} GPUs are those of one", cosine, cosine >= 0.999)

        def contest(what: str, least: float, draw: Draw, work: Work) -> None:
            """Each round has texts of its own, which neither engine has seen."""
            times: list[list[float]] = []
            for number in range(WARM_UPS + ROUNDS):
                drawn = draw(1000 * len(report.figures) + number)
                times.append([seconds_of(partial(work, engine, drawn)) for engine in (every, one)])
            on_all, alone = zip(*times[WARM_UPS:], strict=True)
            ratio = ratio_of(on_all, alone)
            report.figure(
                name,
                what,
                millpond=len(drawn) / statistics.median(on_all),
                peer=len(drawn) / statistics.median(alone),
                ratio=ratio,
                other="Millpond on one of them",
                wanted=f"≥ {least} ×",
                reached=ratio >= least,
                rounds=ROUNDS,
            )

        tokens, longest = TOKENS[name], SHAPES[name].max_length
        contest(
            "passages, texts/s",
            LEAST[name],
            lambda seed: texts.passages(tokens // 80, seed=seed),
            Engine.embed,
        )
        contest(
            "chunks, texts/s",
            LEAST[name],
            lambda seed: texts.chunks(tokens // 400, longest=longest, seed=seed),
            Engine.embed,
        )
        for callers in CALLERS:
            contest(
                f"{callers} callers, queries/s",
                LEAST[callers],
                lambda seed, callers=callers: texts.queries(callers * CALLS, seed=seed),
                lambda engine, drawn, callers=callers: on_a_loop(drawn, engine.aembed, callers),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    if torch.cuda.device_count() < 2:
        parser.error("it compares one GPU with several, and there are not two here")
    facts = machine() | {"GPUs": torch.cuda.device_count(), "processors": os.cpu_count()}
    report = Report(options.folder, facts, Clock(SECONDS))
    words = english_words()
    texts = Texts(words, words_per_token=0.65)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            folder = save(SHAPES[name], Path(scratch) / name, words)
            work = partial(figures, report, name, folder, texts)
            report.attempt(name, work, limit_s=LIMIT_S)
    report.write()


if __name__ == "__main__":
    main()
