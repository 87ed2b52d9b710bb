"""The prefix cache on a GPU, by `prefix_cache.py`'s own rounds: queries, and nothing in common."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import transformers

from millpond import Engine

from ...cpu.prefix_cache import (
    INSTRUCTION_TOKENS,
    WARM_UP_ROUNDS,
    Run,
    Words,
    check_agreement,
    one_round,
)
from ..report import Report
from .contest import FEWEST_ROUNDS

ROUNDS = 9  # a few per cent are to be seen
ALLOWED_S = 12.0
FIGURES = {  # and the kind that it is held to; passages first, because queries keep batches short
    "passages": ("nothing shared", "passages with nothing in common, texts/s"),
    "queries": ("prefixes", "1,000 queries after 40 tokens of instruction, texts/s"),
}


def prefix_figures(
    report: Report,
    name: str,
    folder: Path,
    *,
    device: str = "cuda",
    dtype: str = "bfloat16",
    share: float = 1.0,
) -> None:
    """The same engine with the cache on and off. `folder` is of a model that `save` made."""
    words = Words(transformers.AutoTokenizer.from_pretrained(folder.parent / "bare"))
    prompts = {"query": words.cut(INSTRUCTION_TOKENS, random.Random(0)) + " "}
    amounts = argparse.Namespace(
        queries=max(64, int(1000 * share)), passages=max(16, int(1000 * share)), callers=8
    )
    with ExitStack() as stack:
        engines = {
            cache: stack.enter_context(
                Engine(folder, device=device, dtype=dtype, prefix_cache=cache, prompts=prompts)
            )
            for cache in ("auto", "off")
        }
        print(engines["auto"].info().prefix_cache, engines["auto"].info().prefix_reason, flush=True)
        check_agreement(engines, words, dtype)
        report.check(name, "prefixes: cached vectors agree with whole ones", 1.0, True)
        for figure, (kind, what) in FIGURES.items():
            rounds = _rounds(figure, engines, words, amounts)
            report.figure(name, what, kind=kind, **_values(rounds))
        print(engines["auto"].stats(), flush=True)


def _rounds(
    figure: str, engines: dict[str, Engine], words: Words, amounts: argparse.Namespace
) -> list[dict[str, Run]]:
    for number in range(-WARM_UP_ROUNDS, 0):
        one_round(figure, engines, words, number, amounts)
    found: list[dict[str, Run]] = []
    since = time.perf_counter()
    while len(found) < ROUNDS:
        found.append(one_round(figure, engines, words, len(found), amounts))
        if len(found) >= FEWEST_ROUNDS and time.perf_counter() - since > ALLOWED_S:
            break
    return found


def _values(rounds: Sequence[dict[str, Run]]) -> dict[str, object]:
    off, on = ([one[cache] for one in rounds] for cache in ("off", "auto"))
    ratios = [b.texts_per_s / a.texts_per_s for a, b in zip(off, on, strict=True)]
    return {
        "millpond": statistics.median(run.texts_per_s for run in on),
        "peer": statistics.median(run.texts_per_s for run in off),
        "ratio": statistics.median(ratios),
        "other": 'Millpond, prefix_cache="off"',
        "rounds": len(rounds),
        "least": min(ratios),
        "most": max(ratios),
        "cached_share": statistics.median(run.cached_share for run in on),
    }
