"""What `engine.info()` and the properties of an engine tell."""

from __future__ import annotations

import json

import pytest
from fakes import FakeRunner, scorer, start_engine


def test_it_is_printed_as_a_table_a_fact_a_line() -> None:
    with start_engine(FakeRunner(max_length=7)) as engine:
        lines = str(engine.info()).splitlines()
    facts = {line[:22].rstrip(): line[23:] for line in lines}
    assert facts["model"] == "fake/model"
    assert facts["dimensions"] == "8"
    assert facts["longest text"] == "7 tokens"
    assert facts["prompt query"] == '"ask: "'
    assert "None" not in facts.values()


def test_a_notebook_shows_the_same_facts_and_no_markup_of_theirs() -> None:
    prompts = {"query": "<b>&"}
    with start_engine(FakeRunner(), spec={"prompts": prompts}) as engine:
        info = engine.info()
    shown = info._repr_html_()
    assert shown.startswith("<table>")
    assert "<b>" not in shown
    assert "&lt;b&gt;&amp;" in shown
    assert shown.count("<tr>") == len(str(info).splitlines())


def test_its_facts_are_json() -> None:
    with start_engine(FakeRunner()) as engine:
        facts = engine.info().as_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["model"], facts["kind"]) == ("fake/model", "embed")
    assert facts["routes"][0]["dimension"] == 8


@pytest.mark.parametrize(("saved", "dimension"), [(None, 8), (5, 5), (50, 8)])
def test_an_engine_tells_how_wide_its_vectors_are(saved: int | None, dimension: int) -> None:
    with start_engine(FakeRunner(max_length=7), spec={"truncate_dim": saved}) as engine:
        assert engine.dimension == engine.embed("a").shape[-1] == dimension
        assert engine.max_length == 7


def test_a_reranker_has_as_many_dimensions_as_labels() -> None:
    with scorer(FakeRunner(), "no", "yes") as engine:
        assert engine.dimension == 2
        assert engine.max_length is None
