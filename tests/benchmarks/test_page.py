"""The page of results: aims reached and missed, who is ahead of Millpond, and everything linked."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from made_up_results import FIRST, SECOND, made_up_results, run

from benchmarks.cpu.plan import FULL, QUICK, Sizes
from benchmarks.report import adapters as adapters_report
from benchmarks.report import aims, comparisons, page
from benchmarks.report.aims import Aim

RIVAL = "OpenVINO bfloat16 by hand"


@pytest.fixture
def results():
    return made_up_results()


def with_rival(results, times):
    """Another peer, which is `times` as fast as Millpond at ingestion."""
    results["peers"][RIVAL] = results["peers"][SECOND] | {"about": "by hand"}
    for record in list(results["runs"]):
        if (record["peer"], record["figure"]) == (SECOND, "ingest"):
            faster = {"peer": RIVAL, "seconds": record["seconds"] / times}
            results["runs"].append(record | faster)
    return results


def adapters_results():
    """Millpond is ten times as fast in every round, and its queries take a tenth of the time."""
    theirs, ours = "langchain-huggingface", "millpond in LangChain"
    runs = []
    for number in range(2):
        for peer, pace in ((theirs, 10), (ours, 1)):
            times = {"times": [0.01 * pace] * 50, "seconds": 0.5 * pace}
            runs.append(run(peer, "callers", "64", number, **times))
            calls = {"times": [0.002 * pace] * 50, "calls": [0.1 * pace], "texts": 10}
            runs.append(run(peer, "during_ingestion", "", number, **calls))
            runs.append(run(peer, "index", "", number, seconds=1.0 * pace, texts=20))
    entry = {"versions": {"torch": "2.13.0"}, "agreement": {"difference": 2e-7, "cosine": 1.0}}
    found = {"peers": {theirs: entry, ours: entry}, "same_best_hit": {theirs: 1.0, ours: 0.5}}
    amounts = {"rounds": 2, "queries": 256, "passages": 10, "chunks": 20}
    facts = made_up_results()["machine"]
    return {
        "machine": facts,
        "amounts": amounts,
        "tokens_of_a_chunk": 170.2,
        "langchain": found | {"runs": runs, "same_best_hit": {}},
        "llama_index": found | {"runs": runs},
    }


def test_an_aim_says_which_side_of_the_bound_is_good() -> None:
    assert (str(Aim(3)), Aim(3).judged(3.0), Aim(3).judged(2.9)) == (
        "≥ 3 ×",
        "reached",
        "**missed**",
    )
    most = Aim(0.3, at_most=True, unit="s")
    assert (str(most), most.judged(0.29), most.judged(0.31)) == ("≤ 0.3 s", "reached", "**missed**")
    assert (str(Aim(0.75, unit="%")), Aim(0.75, unit="%").written(0.8)) == ("≥ 75%", "80%")
    assert Aim(3).judged(None) == "not measured"


def test_aims_are_ratios_of_the_same_rounds(results) -> None:
    found = {reached.title: reached for reached in aims.reached(with_rival(results, 2))}
    assert found["passages, texts/s: over sentence-transformers"].value == 4
    assert found[f"passages, texts/s: over the best peer, {RIVAL}"].value == 0.5
    assert found["a lone query, p50: over sentence-transformers"].value == pytest.approx(0.5)
    assert found["first vector: over importing torch and reading weights"].value == 2
    assert (
        found["64 callers, queries/s: millpond in LangChain over langchain-huggingface"].value
        is None
    )


def test_who_is_ahead_is_listed_with_by_how_much(results) -> None:
    found = with_rival(results, 1.5)
    listed = {loss.title: loss for loss in comparisons.losses(found, SECOND, [FIRST, RIVAL])}
    loss = listed["ingestion, passages, texts/s"]
    assert (loss.rival, loss.theirs, loss.ours, loss.times) == (RIVAL, 60, 40, pytest.approx(1.5))
    assert "ingestion kept beside queries" not in listed
    assert "a lone query, p50 ms" not in listed


def test_a_rival_is_compared_by_the_rounds_that_it_took_part_in(results) -> None:
    found = with_rival(results, 1.5)
    absent = [r for r in found["runs"] if r["peer"] == RIVAL and r["round"] < 2]
    found["runs"] = [run for run in found["runs"] if run not in absent]
    [loss] = [x for x in comparisons.losses(found, SECOND, [RIVAL]) if "passages" in x.title]
    assert (loss.theirs, loss.ours) == (30, 20), "the machine was half as fast in the last round"


def test_where_less_is_better_less_is_ahead(results) -> None:
    for record in results["runs"]:
        if record["figure"] == "start" and record["peer"] == FIRST:
            record["seconds"] = 0.5
    [loss] = [
        x for x in comparisons.losses(results, SECOND, [FIRST]) if x.title.startswith("first")
    ]
    assert (loss.theirs, loss.ours, loss.times) == (0.5, 2.0, 4.0)


def test_without_a_rival_ahead_the_page_says_so(results) -> None:
    assert page._losses([]) == "Nowhere in these figures."


def test_float32_is_compared_with_float32(results) -> None:
    found = with_rival(results, 2)
    assert comparisons.rivals(found, precision="float32") == [FIRST]
    assert comparisons.rivals(found) == [FIRST, RIVAL]


def test_the_page_has_the_aims_the_losses_the_tables_and_the_notes(results, tmp_path) -> None:
    (tmp_path / "by-length.svg").touch()
    (tmp_path / "notes.md").write_text("## Why\n\nBecause.\n")
    text = page.page(with_rival(results, 2), adapters_results(), tmp_path)
    assert "| passages, texts/s: over sentence-transformers | ≥ 3 × | 4.00 × | reached |" in text
    assert f"| ingestion, passages, texts/s | {RIVAL} | 80.0 | 40.0 | 2.00 × |" in text
    assert "## Why\n\nBecause.\n\n## Ingestion\n\n![Throughput by length](" in text
    assert "callers.svg" not in text, "there is no such plot"
    assert "make bench ARGS='--rounds 3'" in text
    assert "| `VectorStoreIndex`, chunks/s | 2.0 (1.00 ×) | 20.0 (10.00 ×) | ≥ 2.5 × |" in text
    assert "Abacus, 2 cores, avx2; 2026-11-24" in text


@pytest.mark.parametrize(
    ("sizes", "arguments"),
    [(FULL, ""), (FULL.with_rounds(3), "--rounds 3"), (QUICK, "--quick")],
)
def test_the_command_on_the_page_measures_as_much_again(sizes: Sizes, arguments: str) -> None:
    assert page._arguments(asdict(sizes)) == arguments


def test_the_adapters_aims_are_of_millpond_at_its_defaults() -> None:
    found = adapters_report.reached(adapters_results())
    assert [reached.value for reached in found] == [
        pytest.approx(value) for value in (10, 0.1, 0.1, 0.1, 10, 10)
    ]
    assert {reached.aim.judged(reached.value) for reached in found} == {"reached"}
    text = adapters_report.markdown(adapters_results())
    assert "| their p99, ms, and over the incumbent's p50 | 100.0 (1.00 ×) |" in text
    assert "| the same best hit | 100% | 50% | 100% in float32 |" in text
