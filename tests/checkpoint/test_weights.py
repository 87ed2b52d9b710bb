"""Weights that are NaN or infinite are found, in every dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from millpond.checkpoint.weights import non_finite, read_weights
from millpond.errors import InvalidCheckpoint


def test_a_module_after_the_transformer_is_looked_at_too(tmp_path: Path) -> None:
    save_file({"linear.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"linear\.weight holds NaN or infinity"):
        read_weights(tmp_path)


def test_what_has_no_extremes_is_not_looked_at() -> None:
    tensors = {
        "ids": torch.arange(3),
        "none": torch.empty(0),
        "eight bits": torch.ones(3).to(torch.float8_e4m3fn),
        "fine": torch.ones(3, dtype=torch.bfloat16),
    }
    assert non_finite(tensors.items()) is None
    tensors["bad"] = torch.tensor([1.0, float("nan")])
    assert non_finite(tensors.items()) == "bad"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_extremes_of_a_dtype_are_numbers(dtype: torch.dtype) -> None:
    about = torch.finfo(dtype)
    fine = torch.tensor([0.0, -0.0, about.max, about.min, about.tiny, -about.tiny], dtype=dtype)
    assert non_finite([("fine", fine)]) is None
    nan = float("nan")
    for value in (nan, float("inf"), float("-inf"), -torch.tensor(nan, dtype=dtype)):
        bad = torch.cat([fine, torch.as_tensor(value, dtype=dtype)[None]])
        assert non_finite([("fine", fine), ("bad", bad)]) == "bad"
    assert non_finite([("bad", torch.full((3, 4), nan, dtype=dtype).t())]) == "bad"
