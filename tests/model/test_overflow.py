"""Weights that are no numbers, and weights whose products are none, are found while loading."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import save_transformer
from families import ENCODER
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from millpond import Engine
from millpond.errors import InvalidCheckpoint
from millpond.model.overflow import DoesNotFit, refuse_overflow

pytestmark = pytest.mark.usefixtures("one_thread")

QUERY = "encoder.layer.0.attention.self.query.weight"
KEY = "encoder.layer.0.attention.self.key.weight"


def changed(folder: Path, into: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    weights = load_file(into / "model.safetensors")
    change(weights)
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    return into


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", [QUERY, KEY, "embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"]
)
def test_a_weight_that_is_no_number_is_refused_by_name(
    bare_bert: Path, tmp_path: Path, name: str, value: float
) -> None:
    folder = changed(bare_bert, tmp_path, lambda weights: weights[name].view(-1)[7:8].fill_(value))
    with pytest.raises(InvalidCheckpoint, match=f"{name} holds NaN or infinity"):
        Engine(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("factor", [1e18, 1e30])
def test_scores_that_overflow_are_refused(bare_bert: Path, tmp_path: Path, factor: float) -> None:
    def scale(weights: dict[str, Tensor]) -> None:
        weights[QUERY] *= factor
        weights[KEY] *= factor

    folder = changed(bare_bert, tmp_path, scale)
    with pytest.raises(InvalidCheckpoint, match=r"encoder\.layer\.0\.attention\.self\.query"):
        Engine(folder, device="cpu", dtype="float32")


def test_norms_that_overflow_are_refused(tmp_path: Path) -> None:
    bare = save_transformer(
        tmp_path / "bare",
        model="LlamaModel",
        tokenizer="decoder",
        config={**ENCODER, "num_key_value_heads": 2},
    )
    for name in ("layers.0.self_attn.o_proj.weight", "norm.weight"):
        folder = changed(bare, tmp_path / "changed", lambda weights: weights[name].mul_(1e25))  # noqa: B023
        with pytest.raises(InvalidCheckpoint, match="overflow"):
            Engine(folder, device="cpu", dtype="float32")


class Scaled(nn.Module):
    """A layer in a precision, times a factor."""

    def __init__(self, dtype: torch.dtype, factor: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=dtype)
        nn.init.constant_(self.layer.weight, factor)

    def forward(self) -> Tensor:
        hidden: Tensor = self.layer(torch.ones(2, 4, dtype=self.layer.weight.dtype))
        return hidden


def test_an_overflow_that_is_float16s_alone_says_so(tmp_path: Path) -> None:
    model = Scaled(torch.float16, 30_000.0)
    with pytest.raises(DoesNotFit, match="layer overflow in float16; use dtype='bfloat16'"):
        refuse_overflow(model, model, folder=tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        model = Scaled(dtype, 30_000.0)
        refuse_overflow(model, model, folder=tmp_path)


def test_masks_are_no_overflow(tmp_path: Path) -> None:
    model = Scaled(torch.float32, 1.0)
    mask = torch.full((2, 4), float("-inf")).tril(-1)

    def run() -> Tensor:
        scores = torch.baddbmm(mask[None], torch.ones(1, 2, 3), torch.ones(1, 3, 4))
        hidden: Tensor = model() + scores.softmax(-1)[0]
        return hidden

    refuse_overflow(model, run, folder=tmp_path)


def test_hooks_are_gone_afterwards(tmp_path: Path) -> None:
    model = Scaled(torch.float32, 1.0)
    refuse_overflow(model, model, folder=tmp_path)
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks
