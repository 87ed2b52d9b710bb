"""`millpond similarity`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import reference
from command_line import refusal, run, with_settings

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["when can I buy bread?", "The bakery opens at six.", "It may rain."]


def test_the_real_model_finds_the_bakery() -> None:
    answer = json.loads(run("similarity", *TEXTS, "--json").stdout)
    scores = np.array(answer["scores"])
    assert answer["texts"] == TEXTS
    assert scores.shape == (3, 3)
    assert scores[0, 1] > scores[0, 2] + 0.2
    assert np.diag(scores) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("bert")


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "manhattan"])
def test_it_measures_as_the_model_says(measure: str, folder: Path, tmp_path: Path) -> None:
    model = with_settings(folder, tmp_path / measure, similarity_fn_name=measure)
    answer = json.loads(
        run("similarity", *TEXTS, "--model", model, "--dtype", "float32", "--json").stdout
    )
    expected = reference(model)
    vectors = expected.encode(TEXTS)
    assert answer["similarity"] == expected.similarity_fn_name == measure
    assert np.array(answer["scores"]) == pytest.approx(
        expected.similarity(vectors, vectors).numpy(), abs=1e-3
    )


def test_the_table_has_a_row_and_a_column_a_text(folder: Path) -> None:
    text = run("similarity", "a\nb", "x" * 100, "--model", folder).stdout
    head, first, second = text.splitlines()
    assert head.split() == ["1", "2"]
    assert first.split()[0:2] == ["1", "1.0000"]
    assert first.endswith("  a b")
    assert second.endswith("  " + "x" * 59 + "…")


def test_one_text_is_not_enough() -> None:
    assert "give two or more" in refusal("similarity", "alone")


def test_an_unknown_prompt_is_refused(folder: Path) -> None:
    line = refusal("similarity", "a", "b", "--model", folder, "--prompt-name", "nope")
    assert "there is no prompt called 'nope'" in line
