"""What reads first tokens alone has its last layer run for those, where the bits are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TEXTS
from int8 import needs_int8
from rerankers import PAIRS, save_reranker
from torch import Tensor

from millpond import Engine
from millpond.layers.cpu.encoder import FusedEncoder
from millpond.layers.cpu.encoder_layer import FusedLayer
from millpond.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")
MANY = [(query, f"{document} {i}") for i, (query, document) in enumerate(PAIRS * 3)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each pass, whether its last layer ran for first tokens alone."""
    seen: list[bool] = []
    firsts = FusedEncoder.firsts

    def watched(*arguments: Any) -> Tensor | None:
        found = firsts(*arguments)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(FusedEncoder, "firsts", watched)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)])
def test_scores_have_the_bits_that_all_tokens_give(
    dtype: Any, tmp_path: Path, runs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_reranker("bert", tmp_path)
    with Engine(folder, device="cpu", dtype=dtype) as engine:
        found = engine.score(MANY)
        alone = engine.score(MANY[7])
        # Matrix units round by the number of rows, and then first tokens come near alone.
        most = 0.0 if engine.info().batch_invariant else 0.02
    if dtype == "bfloat16" and not any(runs):
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    assert any(runs)
    assert abs(alone - found[7]) <= most
    monkeypatch.setattr(Transformer, "firsts", lambda *_: None)
    with Engine(folder, device="cpu", dtype=dtype) as engine:
        assert np.abs(engine.score(MANY) - found).max() <= most


@pytest.mark.parametrize("name", ["firsts", "attend_firsts"])
def test_where_bits_differ_all_tokens_run(
    name: str, tmp_path: Path, runs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_reranker("bert", tmp_path, max_position_embeddings=1024)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.score(MANY)
    assert any(runs)
    runs.clear()
    right = getattr(FusedLayer, name)

    def other(layer: Any, rows: Tensor, sequences: Any, places: Tensor) -> Tensor:
        found: Tensor = right(layer, rows, sequences, places)
        # In attention only where a text is long, which rows of noise after it do not show.
        differs = name == "firsts" or sequences.longest == 800
        return torch.nextafter(found, found + 1) if differs else found

    monkeypatch.setattr(FusedLayer, name, other)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        assert np.array_equal(engine.score(MANY), expected)
    assert not runs


def test_a_mean_of_tokens_needs_them_all(
    checkpoint: Callable[[str], Path], runs: list[bool]
) -> None:
    with Engine(checkpoint("bert"), device="cpu", dtype="float32") as engine:
        engine.embed(TEXTS)
    assert not runs
