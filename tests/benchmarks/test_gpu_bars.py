"""What the bars of a GPU are measured by, on a machine without one."""

from __future__ import annotations

import pytest

from benchmarks.gpu.figures.kernel_trace import Span, device_time
from benchmarks.gpu.figures.measured import BARS, Work, weights_per_token
from benchmarks.gpu.models.shapes import SHAPES

pytestmark = pytest.mark.slow

MICROSECOND = 1000
FIRST_BATCH = [
    Span("product", 0, 10 * MICROSECOND),
    Span("Memcpy DtoH (Device -> Pinned)", 10 * MICROSECOND, 20 * MICROSECOND),
]


def spans(*times: tuple[int, int]) -> list[Span]:
    return [Span("product", a * MICROSECOND, b * MICROSECOND) for a, b in times]


def test_time_before_the_end_of_the_first_batch_is_left_out() -> None:
    seen = device_time([*FIRST_BATCH, *spans((20, 40))])
    assert seen.share == 1.0
    assert seen.wall_s == pytest.approx(20e-6)
    assert seen.by_name == {"product": (1, pytest.approx(20e-6))}


def test_kernels_side_by_side_count_once_and_gaps_are_added_up() -> None:
    seen = device_time([*FIRST_BATCH, *spans((20, 40), (30, 50), (150, 170), (180, 220))])
    assert seen.busy_s == pytest.approx(90e-6)
    assert seen.wall_s == pytest.approx(200e-6)
    assert (seen.gaps, seen.gaps_s) == (1, pytest.approx(100e-6))


def test_a_trace_without_a_batch_is_no_figure() -> None:
    assert device_time(spans((0, 10))).share == 0.0


def test_no_two_rounds_have_a_text_in_common() -> None:
    words = [f"word{number}" for number in range(100_000)]
    work = Work(words, SHAPES["bge-base"], "bge-base", share=0.002)
    drawn = [text for _ in range(5) for text in work.draw("passages")]
    assert len(set(drawn)) > 0.99 * len(drawn)
    assert work.draw("chunks") != work.draw("chunks")
    assert work.queries(5) != work.queries(5)


def test_weights_are_those_of_the_products() -> None:
    assert weights_per_token(SHAPES["bge-base"]) == 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    attention = 1024 * (2 * 16 * 128 + 2 * 8 * 128)
    assert weights_per_token(SHAPES["Qwen3-0.6B"]) == 28 * (attention + 3 * 1024 * 3072)


def test_every_model_that_can_be_measured_has_bars() -> None:
    assert set(BARS) == set(SHAPES)
