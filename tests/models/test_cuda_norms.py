"""RMS norms as one operator: the same numbers, and a layer that is something else stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from millpond.models.cuda_norms import fuse_rms_norms


class OddRMSNorm(LlamaRMSNorm):
    """Does more than its name says."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * 1.1


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
    assert fuse_rms_norms(model) == 1
    assert type(model[0]) is not norm
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model(rows), expected, rtol=tolerance, atol=tolerance)


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
