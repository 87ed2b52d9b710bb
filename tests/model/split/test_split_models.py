"""A model that is split between two ranks gives what it gives in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import TOLERANCE, off
from child_ranks import load_pair, rows_and_facts
from families import FAMILIES
from rerankers import save_answering, save_reranker

from millpond.pair import Pair

pytest.importorskip("accelerate", reason="the extra tensor-parallel")

TEXTS = [f"text number {number} of the pond" + " mill" * (number % 9) for number in range(9)]
PAIRS = [Pair(f"what is {number}", text) for number, text in enumerate(TEXTS)]
NAMES = (
    *("bert", "roberta", "xlm_roberta", "camembert", "modernbert", "eurobert"),
    *("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text"),
    *("gemma3_text_bidirectional", "granite", "smollm3"),
)
DECODERS = {"qwen3", "mistral", "gemma3_text"}
Found = tuple[np.ndarray, dict[str, Any]]


@pytest.fixture(scope="module")
def names() -> Sequence[str]:
    known = {family.name for family in FAMILIES}
    return [name for name in NAMES if name in known]


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rerankers")
    return {
        "bert's scores": save_reranker("bert", folder / "bert"),
        "modernbert's scores": save_reranker("modernbert", folder / "modernbert"),
        "qwen3's scores": save_reranker("qwen3", folder / "qwen3"),
        "qwen3's answers": save_answering(folder / "answers"),
    }


@pytest.fixture(scope="module")
def split(
    names: Sequence[str], checkpoint: Callable[[str], Path], rerankers: dict[str, Path]
) -> dict[str, Found]:
    """What rank 0 has, by the model's name; `half` is BERT in bfloat16."""
    models = [(str(checkpoint(name)), TEXTS, {}) for name in names]
    models.append((str(checkpoint("bert")), TEXTS, {"dtype": "bfloat16"}))
    models += [(str(folder), PAIRS, {}) for folder in rerankers.values()]
    pair = load_pair("load_each", models)
    found = dict(zip([*names, "half", *rerankers], pair.facts.extra, strict=True))
    pair.close()
    return found


@pytest.mark.slow
def test_every_family_gives_the_vectors_of_one_process(
    names: Sequence[str], checkpoint: Callable[[str], Path], split: dict[str, Found]
) -> None:
    assert {"bert", "roberta", "xlm_roberta", "modernbert", "eurobert"} <= set(names)
    assert {"qwen3", "llama", "mistral", "gemma3_text"} <= set(names)
    for name in names:
        expected, here = rows_and_facts(str(checkpoint(name)), TEXTS, {})
        rows, there = split[name]
        assert off(rows, expected) <= TOLERANCE, name
        assert there["routes"][0].execution == here["routes"][0].execution, name
        assert there["workers"] == 1, "passes of a split model run one after the other"
        if here["cached"] is not None:
            assert there["cached"] * 2 == here["cached"], "a rank has its own heads of keys"
    assert all(split[name][1]["cached"] for name in DECODERS)


@pytest.mark.slow
def test_rerankers_give_the_scores_of_one_process(
    rerankers: dict[str, Path], split: dict[str, Found]
) -> None:
    for name, folder in rerankers.items():
        expected, _ = rows_and_facts(str(folder), PAIRS, {})
        np.testing.assert_allclose(split[name][0], expected, atol=1e-4, rtol=0, err_msg=name)
        assert np.ptp(expected) > 0.01, name


@pytest.mark.slow
def test_a_rank_holds_its_part_of_the_weights(
    checkpoint: Callable[[str], Path], split: dict[str, Found]
) -> None:
    for name in ("bert", "modernbert", "qwen3"):
        _, here = rows_and_facts(str(checkpoint(name)), TEXTS, {})
        _, there = split[name]
        assert there["weights"] < 0.75 * here["weights"], name


@pytest.mark.slow
def test_half_precision_is_as_close_as_half_precision_is(
    checkpoint: Callable[[str], Path], split: dict[str, Found]
) -> None:
    expected, _ = rows_and_facts(str(checkpoint("bert")), TEXTS, {})
    rows, _ = split["half"]
    cosines = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1)
    assert (cosines / np.linalg.norm(expected, axis=1)).min() > 0.99
