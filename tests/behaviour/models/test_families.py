"""Law 3 over architectures: an engine's vectors are those of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import VISIBLE, agree
from checkpoints import TEXTS, reference
from families import FAMILIES, MAX_LENGTH, Family

from millpond import Engine, UnsupportedModel

# Law 1 does not reach them: products of three numbers take another path in another row, and an
# expert's products have as many rows as tokens came to it.
WITHOUT_SAME_BITS = ("convbert", "qwen3_moe")

pytestmark = pytest.mark.usefixtures("one_thread")


def distance(one: Any, other: Any) -> float:
    """The largest difference of an element."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_family(family: Family, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(family.name)
    official = reference(folder)
    expected = official.encode(list(TEXTS), batch_size=family.reference_batch)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        info = engine.info()
        result = engine.submit(TEXTS).result()
        alone = np.stack([engine.embed(text) for text in TEXTS])
    assert info.execution == family.execution, info.reason
    agree(result.vectors, expected)
    if info.routes[0].batch_invariant:
        assert np.array_equal(alone, result.vectors)
    else:
        assert family.name in WITHOUT_SAME_BITS
    assert result.truncated.any()
    assert result.token_counts.max() == info.max_length == MAX_LENGTH

    # The comparison means something: texts are told apart, the order of their words matters,
    # and what a token becomes depends on the others.
    rows = {text: expected[i] for i, text in enumerate(TEXTS)}
    for one, other in combinations(rows, 2):
        assert distance(rows[one], rows[other]) > VISIBLE, (one, other)
    one, other = official.encode(
        ["stone mill", "grain mill"], batch_size=1, output_value="token_embeddings"
    )
    assert distance(one[-1], other[-1]) > VISIBLE


def test_most_families_run_without_padding() -> None:
    """Each of them is held to its execution above."""
    executions = [family.execution for family in FAMILIES]
    assert len(executions) >= 25
    assert executions.count("packed") >= 20
    assert executions.count("padded") >= 5
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("name", ["fnet", "xlnet"])
def test_a_model_that_cannot_run_in_bfloat16(checkpoint: Callable[[str], Path], name: str) -> None:
    with pytest.raises(UnsupportedModel, match="bfloat16"):
        Engine(checkpoint(name), device="cpu", dtype="bfloat16")
    with Engine(checkpoint(name), device="cpu", dtype="auto") as engine:
        assert engine.info().dtype == "float32"
