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

from .callers import CALLERS, on_a_loop
from .checks import least_cosine
from .clock import Clock
from .figures import alternated, ratio_of
from .models import SHAPES, Texts, english_words, save
from .report import Report, machine

SECONDS, LIMIT_S = 300.0, 120.0
MODELS = ("MiniLM-L6", "bge-base", "bge-large")
TOKENS = {"MiniLM-L6": 3_000_000, "bge-base": 2_000_000, "bge-large": 1_000_000}
WARM_UPS = 3
CALLS = 8
ROUNDS = 5


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

        def contest(what: str, amount: int, work: Callable[[Engine], object]) -> None:
            works = partial(work, every), partial(work, one)
            alternated(*works, rounds=WARM_UPS)
            on_all, alone = alternated(*works, rounds=ROUNDS)
            report.figure(
                name,
                what,
                millpond=amount / statistics.median(on_all),
                peer=amount / statistics.median(alone),
                ratio=ratio_of(on_all, alone),
                other="Millpond on one of them",
                rounds=len(alone),
            )

        tokens = TOKENS[name]
        for what, drawn in (
            ("passages", texts.passages(tokens // 80)),
            ("chunks", texts.chunks(tokens // 400, longest=SHAPES[name].max_length)),
        ):
            total = int(one.submit(drawn).result().token_counts.sum())
            contest(f"{what}, tokens/s", total, partial(Engine.embed, texts=drawn))
        queries = texts.queries(CALLERS * CALLS)
        contest(
            f"{CALLERS} callers, queries/s",
            len(queries),
            lambda engine: on_a_loop(queries, engine.aembed),
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
