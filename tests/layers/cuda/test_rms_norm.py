"""RMS norms as one operator: the same numbers, and a layer that is something else stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from millpond.layers.cuda.rms_norm import fuse_rms_norms, rms_norm


class OddRMSNorm(LlamaRMSNorm):
    """Does more than its name says."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * 1.1


def in_float32(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """What the kernel does: one rounding, at the end."""
    return rms_norm(rows.float(), weight.float(), epsilon).to(rows.dtype)


def model_of(norm: nn.Module, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.add_(torch.randn(norm.weight.shape) * 0.3)
    return nn.Sequential(norm).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", [Qwen3RMSNorm, LlamaRMSNorm, Gemma3RMSNorm])
def test_rows_come_out_as_before(norm: type[nn.Module], dtype: torch.dtype) -> None:
    model = model_of(norm(48, eps=1e-5), dtype)
    rows = torch.randn(2, 9, 48).to(dtype)
    expected = model(rows)
    assert fuse_rms_norms(model, in_float32, mixed=True) == 1
    assert type(model[0]) is not norm
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(model(rows), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_more_than_a_weight_is_not_rounded(dtype: torch.dtype) -> None:
    model = model_of(Gemma3RMSNorm(48, eps=1e-5), dtype)
    rows = torch.randn(2, 9, 48).to(dtype)
    expected = model(rows)
    assert fuse_rms_norms(model) == 0, "torch's operator takes weights like its rows only"
    assert fuse_rms_norms(model, in_float32, mixed=True) == 1
    assert model[0].weight.dtype == torch.float32
    assert (model(rows) != expected).float().mean() < 0.01  # of the last bits


def failing(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    raise RuntimeError("no such device")


class TwoInputs(LlamaRMSNorm):
    """A norm that is called otherwise."""

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        return super().forward(hidden_states) * gate


def test_a_layer_or_a_kernel_that_objects_is_left_out() -> None:
    assert fuse_rms_norms(model_of(TwoInputs(48), torch.float32)) == 0
    assert fuse_rms_norms(model_of(LlamaRMSNorm(48), torch.float32), failing) == 0


@pytest.mark.parametrize("norm", [Qwen3RMSNorm, LlamaRMSNorm])
def test_torch_s_operator_does_it_where_there_is_no_kernel(norm: type[nn.Module]) -> None:
    model = model_of(norm(48, eps=1e-5), torch.bfloat16)
    rows = torch.randn(2, 9, 48).bfloat16()
    expected = model(rows)
    assert fuse_rms_norms(model) == 1
    torch.testing.assert_close(model(rows), expected, rtol=2e-2, atol=2e-2)


def test_the_weights_keep_their_memory() -> None:
    model = model_of(Qwen3RMSNorm(48), torch.float32)
    before = model[0].weight.data_ptr()
    fuse_rms_norms(model)
    assert model[0].weight.data_ptr() == before


@pytest.mark.parametrize("layer", [OddRMSNorm(48), nn.LayerNorm(48), nn.RMSNorm(48)], ids=repr)
def test_another_layer_stays(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    assert fuse_rms_norms(model) == 0
    assert model[0] is layer
