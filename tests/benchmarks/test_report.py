"""Numbers, tables and plots from made-up runs, where every result can be worked out by hand."""

from __future__ import annotations

import importlib.util
import re

import pytest
from made_up_results import FIRST, SECOND, made_up_results

from benchmarks.report import plots, summary
from benchmarks.report import tables as report


@pytest.fixture
def results():
    return made_up_results()


def test_throughput_is_the_median_round(results) -> None:
    arguments = (results, SECOND, "ingest", "passages", summary.texts_per_second)
    assert summary.median(*arguments) == 40
    assert summary.ratio(*arguments) == 4


def test_a_slow_round_does_not_change_a_ratio(results) -> None:
    for record in results["runs"]:
        if record["figure"] == "ingest" and record["round"] == 1:
            record["seconds"] *= 7
    assert summary.ratio(results, SECOND, "ingest", "chunks", summary.texts_per_second) == 4


def test_percentiles_are_of_all_rounds_together(results) -> None:
    assert summary.milliseconds(results, SECOND, "lone_query", 50) == pytest.approx(1)
    assert summary.milliseconds(results, FIRST, "lone_query", 50) == pytest.approx(2)
    assert summary.milliseconds(results, FIRST, "lone_query", 100) == pytest.approx(100)


def test_padding_and_the_share_of_the_matrix_rate(results) -> None:
    assert summary.median(results, FIRST, "ingest", "passages", summary.padding) == 0.5
    assert summary.median(results, SECOND, "ingest", "passages", summary.padding) == 0
    assert summary.share_of_matrix_rate(results, FIRST, "chunks") == 0.5
    assert summary.share_of_matrix_rate(results, SECOND, "chunks") == 1.0


def test_ingestion_kept_compares_with_the_same_round(results) -> None:
    assert summary.kept(results, FIRST) == pytest.approx(0.5)
    assert summary.kept(results, SECOND) == pytest.approx(0.25 / 0.4)


def test_the_report_has_a_row_for_everybody_and_says_who_failed(results) -> None:
    text = report.markdown(results)
    assert "2026-11-24, Abacus, 2 cores" in text
    assert "| millpond auto | 40.0 (4.00 ×) | 40.0 (4.00 ×) | 40.0 (4.00 ×) | 400 | 0% |" in text
    assert "| millpond auto | 1.0 (0.50 ×) |" in text
    assert "| millpond auto | 2.00 | 2.00 | 1,024 |" in text
    assert "- absent: `ModuleNotFoundError: no module`" in text
    assert f"- {FIRST}, mixed 0.5 × 20 requests/s: `busy`" in text
    assert f"| {FIRST} | – | – |" in text
    assert "torch 2.13.0" in text


def test_every_row_of_a_table_has_the_cells_of_its_heading(results) -> None:
    for title, body in report.sections(results):
        widths = {
            len(re.split(r"(?<!\\)\|", line)) for line in body.splitlines() if line.startswith("|")
        }
        assert len(widths) <= 1, title


def test_without_problems_the_report_says_so(results) -> None:
    results["failures"] = {}
    results["runs"] = [record for record in results["runs"] if "error" not in record]
    assert "## Not measured\n\nNone." in report.markdown(results)


def test_what_is_plotted(results) -> None:
    assert plots.by_length(results)[SECOND] == [(10, 400), (10, 400)]
    assert plots.by_callers(results)[FIRST] == [(8, 50), (64, 50)]
    assert plots.under_load(results) == {SECOND: [(10, 4), (40, 4)]}
    assert plots.waits(results)[SECOND][:2] == (5, 5)


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is in the benchmark's own environment only",
)
def test_plots_are_written_and_are_the_same_every_time(results, tmp_path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        plots.write(results, folder)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    wanted = ("by-length", "under-load", "callers", "during-ingestion")
    assert names == {f"{name}.{kind}" for name in wanted for kind in ("png", "svg")}
    for name in names:
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert one.stat().st_size > 2000
        assert one.read_bytes() == two.read_bytes()
