"""Numbers, tables and plots from made-up runs, where every result can be worked out by hand."""

from __future__ import annotations

import copy
import importlib.util
import json
import re

import plots
import pytest
import report
import summary

FIRST, SECOND = "sentence-transformers", "millpond auto"


def run(peer, figure, setting="", number=0, **values):
    return {"peer": peer, "figure": figure, "setting": setting, "round": number, **values}


def ingested(peer, workload, number, seconds, computed=200):
    values = {"seconds": seconds, "texts": 10, "tokens": 100, "computed_tokens": computed}
    return run(peer, "ingest", workload, number, **values)


def made_up_runs():
    """Two peers and three rounds; the machine is half as fast in the last round."""
    found = []
    for number, slowness in enumerate((1, 1, 2)):
        found.append(run(None, "matrix_rate", "float32", number, per_second=1000 / slowness))
        found.append(run(None, "matrix_rate", "bfloat16", number, per_second=2000 / slowness))
        for workload in ("queries", "passages", "chunks", "length 64", "length 512"):
            found.append(ingested(FIRST, workload, number, 1.0 * slowness))
            found.append(ingested(SECOND, workload, number, 0.25 * slowness, computed=100))
        for peer, pace in ((FIRST, 2), (SECOND, 1)):
            times = [0.001 * pace] * 99 + [0.1]
            found.append(run(peer, "lone_query", "", number, times=times))
            for callers in ("8", "64"):
                values = {"times": [0.01] * 50, "seconds": 0.5 * pace}
                found.append(run(peer, "callers", callers, number, **values))
            calls = [2.0 * slowness * (1 if peer == FIRST else 0.2)]
            values = {"times": [0.005] * 10, "calls": calls, "texts": 10}
            found.append(run(peer, "during_ingestion", "", number, **values))
            found.append(run(peer, "start", "", number, seconds=2.0 * pace))
        for load in ("0.5 × 20 requests/s", "2 × 20 requests/s"):
            found.append(run(SECOND, "mixed", load, number, queries=[0.004], jobs=[], seconds=3))
        found.append(run(FIRST, "mixed", "0.5 × 20 requests/s", number, error="busy"))
        found.append(run(None, "start", report.FLOOR, number, seconds=1.0))
    return [*found, *(run(peer, "memory", peak_bytes=2**30) for peer in (FIRST, SECOND))]


@pytest.fixture
def results():
    workloads = ("queries", "passages", "chunks", "length 64", "length 512")
    of_texts = {"texts": 10, "tokens": 100, "median": 9, "operations": 500.0}
    entry = {"environment": "common", "versions": {"torch": "2.13.0"}}
    agreement = {"cosine": 0.9999, "difference": 1e-3}
    made = {
        "machine": {
            "date": "2026-11-24",
            "processor": "Abacus",
            "cores": 2,
            "extensions": ["avx2"],
            "system": "Linux",
            "python": "3.11.7",
        },
        "sizes": {"rounds": 3, "texts": {"queries": 10, "passages": 10, "chunks": 10}},
        "load_average_after_each_round": [0.5, 0.6, 0.7],
        "peers": {
            FIRST: entry | {"about": "one", "precision": "float32", "agreement": agreement},
            SECOND: entry | {"about": "two", "precision": "bfloat16", "agreement": agreement},
            "absent": entry | {"about": "three", "precision": "float32", "agreement": None},
        },
        "failures": {"absent": "ModuleNotFoundError:\n no module"},
        "texts": {name: dict(of_texts) for name in workloads},
        "runs": made_up_runs(),
    }
    return copy.deepcopy(json.loads(json.dumps(made)))


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
