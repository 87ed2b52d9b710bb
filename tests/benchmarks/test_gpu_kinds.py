"""The GPU benchmark of kinds runs from end to end, with tiny models on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import kinds
from benchmarks.gpu.models.kinds import KINDS, TINY_KINDS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", ["ColBERT, BERT-base"])
def test_a_rehearsal_checks_and_measures(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--device", "cpu", "--share", "0.001", "--rounds", "1", "--no-tests")
    monkeypatch.setattr(sys, "argv", ["kinds", str(tmp_path), *options, "--models", model])
    monkeypatch.setattr(kinds, "STARTED", None)
    monkeypatch.setattr(kinds, "WARM_ROUNDS", 1)
    kinds.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["errors"]
    assert not found["left_out"]
    assert found["checks"]
    assert all(check["passed"] for check in found["checks"])
    assert [figure["aim"] for figure in found["figures"]] == ["≥ 3", "≥ 3"]


def test_every_model_has_a_tiny_one_for_a_rehearsal_and_a_place_in_the_order() -> None:
    assert set(KINDS) == set(TINY_KINDS) == set(kinds.MODELS)
