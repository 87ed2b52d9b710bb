"""A model whose packed queries would not be its own with hidden tokens runs padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import TEXTS
from torch import Tensor

from millpond import Engine
from millpond.attention.filled import FilledSequences
from millpond.attention.packed import AttentionOptions
from multi_vector import encoded, save_multi_vector


def test_attention_that_shows_what_is_hidden_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_multi_vector(tmp_path)
    shows_all = FilledSequences._plain

    def attend(
        self: FilledSequences, q: Tensor, k: Tensor, v: Tensor, _: int, options: AttentionOptions
    ) -> Tensor:
        count, _heads, length, _size = q.shape
        q, k, v = (each.transpose(0, 1).flatten(1, 2) for each in (q, k, v))
        return shows_all(self, length, count).attend(q, k, v, options)

    monkeypatch.setattr(FilledSequences, "_masked", attend)
    with Engine(folder, dtype="float32", device="cpu") as engine:
        assert engine.info().execution == "padded"
        assert "hidden tokens" in engine.info().reason
        found = engine.embed_tokens(TEXTS, task="query")
    for ours, theirs in zip(found, encoded(folder, TEXTS, "query"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
