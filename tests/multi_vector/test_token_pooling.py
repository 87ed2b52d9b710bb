"""Token pooling is sentence-transformers' `HierarchicalTokenPooling`."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from millpond import InvalidOption
from millpond.multi_vector.token_pooling import TokenPooling
from millpond.outputs import RaggedRows


def texts(*counts: int) -> list[np.ndarray]:
    random = np.random.default_rng(11)
    found = [random.normal(size=(count, 16)).astype(np.float32) for count in counts]
    return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in found]


@pytest.mark.parametrize("factor", [1, 1.5, 2, 3, 7.25, 500])
@pytest.mark.parametrize("protected", [0, 1, 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_the_reference_s(factor: float, protected: int, normalize: bool) -> None:
    given = texts(1, 2, 3, 40, 5, 130)
    reference = HierarchicalTokenPooling(
        factor, num_protected_tokens=protected, normalize_embeddings=normalize
    )
    expected = reference.pool([torch.from_numpy(each) for each in given])
    pooling = TokenPooling(factor=factor, protected=protected, normalize=normalize)
    found = pooling(RaggedRows.of(given, 16))
    assert [len(each) for each in found] == [len(each) for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)


def test_what_is_not_finite_stays_so_and_spoils_no_other() -> None:
    given = texts(9, 12)
    spoiled = [given[0], given[1].copy()]
    spoiled[1][3] = np.nan
    found = TokenPooling(factor=2)(RaggedRows.of(spoiled, 16))
    assert np.array_equal(found[0], TokenPooling(factor=2)(RaggedRows.of(given, 16))[0])
    assert np.isnan(found[1]).any()


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InvalidOption, match="pip install"):
        TokenPooling(factor=2)(RaggedRows.of(texts(9), 16))
