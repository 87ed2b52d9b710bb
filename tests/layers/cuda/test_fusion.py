"""What is fused for a GPU, on a CPU with plain functions in place of kernels; kernels on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES
from torch import Tensor, nn
from torch.nn.functional import silu

from millpond.layers.cuda import fusion as cuda_fusion
from millpond.layers.cuda.fusion import fuse_for_cuda
from millpond.layers.cuda.gated_mlp import fuse_gates
from millpond.layers.cuda.rms_norm import rms_norm
from millpond.layers.cuda.rotary import rotate

BY_NAME = {family.name: family for family in FAMILIES}
LAYERS = 2


def model_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    family = BY_NAME[name]
    model_class = getattr(transformers, family.model)
    config = {"vocab_size": 100, "pad_token_id": 0, **family.config}
    model: nn.Module = model_class(model_class.config_class(**config)).eval().to(dtype)
    return model


def outputs(model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.randint(0, 100, (1, 19), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids.to(device)).last_hidden_state
    return found


class Counting:
    """Plain functions that know how often they were called."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def silu_times(self, gate: Tensor, up: Tensor) -> Tensor:
        self._count("gate")
        return silu(gate) * up

    def rms_norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        self._count("norm")
        return rms_norm(rows, weight, epsilon)

    def rotate(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._count("rotate")
        return rotate(rows, cos, sin)


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_everything_a_decoder_does_is_fused_and_gives_what_it_gave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Counting()
    monkeypatch.setattr(cuda_fusion, "_kernels", lambda _: kernels)
    model = model_of(name)
    before = outputs(model)
    fuse_for_cuda(model)
    kernels.calls.clear()
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)
    norms = 2 * LAYERS + 1 + 2 * LAYERS * (name == "qwen3")  # of queries and keys, too
    assert kernels.calls == {"norm": norms, "gate": LAYERS, "rotate": 2 * LAYERS}


def test_without_triton_norms_and_rotations_are_fused_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_fusion, "_kernels", lambda _: None)
    model = model_of("qwen3")
    before = outputs(model)
    fuse_for_cuda(model)
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)
    attention = model.layers[0].self_attn  # type: ignore[union-attr, index]
    assert "forward" in vars(attention)


def test_where_triton_cannot_run_there_are_no_kernels() -> None:
    assert cuda_fusion._kernels(torch.device("meta")) is None


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "bert"])
def test_layers_with_another_gate_or_none_stay(name: str) -> None:
    model = model_of(name)
    before = outputs(model)
    assert fuse_gates(model, silu_times) == 0
    assert torch.equal(outputs(model), before)


def test_a_kernel_that_is_wrong_or_fails_is_not_used() -> None:
    def failing(gate: Tensor, up: Tensor) -> Tensor:
        raise RuntimeError("no such device")

    model = model_of("qwen3")
    assert fuse_gates(model, lambda gate, up: gate * up) == 0
    assert fuse_gates(model, failing) == 0
    assert fuse_gates(model, silu_times) == LAYERS
    assert fuse_gates(model, silu_times) == 0  # they are done


def test_layers_of_more_parts_are_not_touched() -> None:
    layer: Any = model_of("qwen3").layers[0].mlp  # type: ignore[union-attr, index]
    layer.extra = nn.Identity()
    assert fuse_gates(nn.ModuleList([layer]), silu_times) == 0


# The kernels themselves.

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def kernels() -> SimpleNamespace:
    found = cuda_fusion._kernels(torch.device("cuda:0"))
    assert found is not None
    return SimpleNamespace(norm=found.rms_norm, rotate=found.rotate, gate=found.silu_times)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [8, 96, 128, 1024, 4096])
def test_the_norm_is_torch_s(kernels: SimpleNamespace, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn(3, 41, width, device="cuda", generator=generator).to(dtype)
    weight = torch.randn(width, device="cuda", generator=generator).to(dtype)
    found, expected = kernels.norm(rows, weight, 1e-6), rms_norm(rows, weight, 1e-6)
    torch.testing.assert_close(found, expected)
    assert torch.equal(kernels.norm(rows[1:2, 7:9], weight, 1e-6), found[1:2, 7:9])


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "size"), [(16, 128), (8, 128), (1, 256), (3, 16), (5, 80)])
def test_the_rotation_is_that_of_torch_s_operators(
    kernels: SimpleNamespace, heads: int, size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn(1, 50, heads, size, device="cuda", generator=generator).to(dtype)
    rows = rows.transpose(1, 2)
    angles = torch.randn(1, 50, size // 2, device="cuda", generator=generator).repeat(1, 1, 2)
    found = kernels.rotate(rows, angles.cos().to(dtype), angles.sin().to(dtype))
    expected = rotate(
        rows.double(), angles.cos().to(dtype).double(), angles.sin().to(dtype).double()
    )
    torch.testing.assert_close(found, expected.to(dtype))
    assert found.stride() == rows.stride()


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 1000, 2048, 100_001])
def test_the_gate_is_that_of_torch_s_operators(
    kernels: SimpleNamespace, count: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    gate, up = (torch.randn(count, device="cuda", generator=generator).to(dtype) for _ in range(2))
    expected = silu_times(gate.double(), up.double())
    torch.testing.assert_close(kernels.gate(gate, up), expected.to(dtype))


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_a_decoder_on_a_gpu_gives_what_it_gave(name: str) -> None:
    model = model_of(name).cuda()
    before = outputs(model)
    fuse_for_cuda(model)
    assert fuse_gates(model, silu_times) == 0  # all of them are fused
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)
