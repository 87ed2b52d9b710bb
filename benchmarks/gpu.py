"""Millpond and sentence-transformers on one GPU: agreement first, then every figure.

Run by `benchmarks/gpu.sh FOLDER`; writes `gpu.json` and `gpu.md` there after each figure.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_figures import Contest, compiled_speed, deterministic_cost, profile
from gpu_models import SHAPES, TINY, Texts, english_words, save
from gpu_report import Report, machine, matrix_rate
from sentence_transformers import SentenceTransformer

from millpond import Engine

STARTED = time.perf_counter()
SECONDS = 400.0  # after these no further figure is begun
ROUNDS = 3
FIGURES = (
    *("tiny", "checks", "query", "passages", "chunks", "matrix", "deterministic", "compiled"),
    *("concurrent", "beside"),
)
LEAST_COSINE = {torch.float16: 0.999, torch.bfloat16: 0.99, torch.float32: 0.99999}


def _least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def check_agreement(report: Report, name: str, folder: Path, texts: list[str]) -> None:
    """The reference in float32, against Millpond in float32 and in half precision."""
    peer = SentenceTransformer(
        str(folder), device="cuda", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    expected = peer.encode(texts, batch_size=16, show_progress_bar=False)
    del peer
    for dtype in ("float32", "auto"):
        with Engine(folder, device="cuda", dtype=dtype) as engine:
            info = engine.info()
            found = engine.embed(texts)
        used = getattr(torch, info.dtype)
        cosine = _least_cosine(found, expected)
        report.check(name, f"cosine to float32, {info.dtype}", cosine, cosine >= LEAST_COSINE[used])
        report.check(name, f"runs packed, {info.dtype}", 1.0, info.execution == "packed")
        if info.execution != "packed":
            print(info.routes[0].reason)


def check_same_bits(report: Report, name: str, folder: Path, texts: list[str]) -> None:
    """With `deterministic=True`, a text has the same bits alone and in any company."""
    with Engine(folder, device="cuda", deterministic=True) as engine:
        together = engine.embed(texts)
        reversed_company = engine.embed(texts[::-1])[::-1]
        halves = np.concatenate([engine.embed(part) for part in (texts[:7], texts[7:])])
        alone = np.stack([engine.embed(text) for text in texts])
        differing = sum(
            int((other != together).any(axis=1).sum())
            for other in (reversed_company, halves, alone)
        )
    report.check(name, "deterministic: texts whose bits differ", differing, differing == 0)


def contest(report: Report, name: str, folder: Path, texts: Texts, options: Any) -> None:
    """The wanted figures of one model, while there is time."""
    shape = SHAPES[name]
    few = [*texts.queries(6), *texts.passages(8), *texts.chunks(2, longest=0), "mill", ""]
    if "checks" in options.figures:
        with report.attempt(f"{name}: checks"):
            check_agreement(report, name, folder, few)
            check_same_bits(report, name, folder, few)
    peer = SentenceTransformer(
        str(folder), device="cuda", local_files_only=True, model_kwargs={"dtype": shape.dtype}
    )
    with Engine(folder, device="cuda") as engine:
        ours = Contest(report, name, shape, engine, peer, texts, options.rounds)
        for figure, measure in figures_of(ours, folder, options.figures).items():
            if figure not in options.figures:
                continue
            if time.perf_counter() - STARTED > options.seconds:
                report.errors.append(f"{name}: {figure}: left out, the time was up")
                continue
            with report.attempt(f"{name}: {figure}"):
                measure()
        print(repr(engine), engine.stats(), flush=True)


def figures_of(ours: Contest, folder: Path, wanted: list[str]) -> dict[str, Callable[[], None]]:
    """How each figure is measured, in their order."""

    def profiled(engine: Engine) -> None:
        if "profile" in wanted:
            profile(engine, ours, ours.report.folder)

    texts, longest = ours.texts, ours.shape.max_length
    return {
        "query": ours.lone_query,
        "passages": lambda: ours.ingestion("passages", texts.passages, 80),
        "chunks": lambda: ours.ingestion(
            "chunks", lambda count: texts.chunks(count, longest=longest), 400
        ),
        "matrix": lambda: ours.matrix_share(matrix_rate()),
        "deterministic": lambda: deterministic_cost(ours, folder),
        "compiled": lambda: compiled_speed(ours, folder, matrix_rate(), profiled),
        "concurrent": ours.concurrent_queries,
        "beside": ours.queries_during_ingestion,
        "profile": lambda: profiled(ours.engine),
    }


def check_tiny(report: Report, texts: Texts, words: list[str], scratch: Path) -> None:
    """The checks on models of a few layers."""
    few = [*texts.queries(12), *texts.passages(12), "mill", ""]
    for name, shape in TINY.items():
        with report.attempt(f"{name}: checks"):
            folder = save(shape, scratch / name.replace(" ", "-"), words)
            check_agreement(report, name, folder, few)
            check_same_bits(report, name, folder, few)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("millpond").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--figures", nargs="*", default=FIGURES, choices=[*FIGURES, "profile"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    report = Report(options.folder, machine())
    print(report.machine, flush=True)
    words = english_words()
    texts = Texts(words, words_per_token=0.65)
    with tempfile.TemporaryDirectory() as scratch:
        if "tiny" in options.figures:
            check_tiny(report, texts, words, Path(scratch))
        for name in options.models:
            with report.attempt(name):
                folder = save(SHAPES[name], Path(scratch) / name, words)
                contest(report, name, folder, texts, options)
    print(report.markdown())


if __name__ == "__main__":
    main()
