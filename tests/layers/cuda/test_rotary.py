"""The rotation for a GPU, on a CPU: the same vectors, and nothing touched but the layers."""

from __future__ import annotations

import pytest
import torch
import transformers
from families import FAMILIES, Family
from torch import nn

from millpond.layers.cuda import rotary as cuda_rotary
from millpond.layers.cuda.rotary import fuse_rotary, rotate

BY_NAME = {family.name: family for family in FAMILIES}
LAYERS = 2


def model_of(family: Family) -> nn.Module:
    torch.manual_seed(3)
    model_class = getattr(transformers, family.model)
    config = {"vocab_size": 100, "pad_token_id": 0, **family.config}
    model: nn.Module = model_class(model_class.config_class(**config)).eval()
    return model


def outputs(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 100, (1, 19), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).last_hidden_state
    return found


ROTARY = [
    name
    for name in ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text", "phi3", "eurobert")
    if name in BY_NAME
]


def test_the_usual_decoders_are_among_the_families() -> None:
    assert {"qwen3", "llama", "mistral"} <= set(ROTARY)


@pytest.mark.parametrize("name", ROTARY)
def test_every_layer_gives_what_it_gave(name: str) -> None:
    model = model_of(BY_NAME[name])
    before = outputs(model)
    assert fuse_rotary(model) == LAYERS
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)
    assert fuse_rotary(model) == 0  # once is enough


def test_nothing_is_changed_but_the_model_s_own_layers() -> None:
    changed, other = model_of(BY_NAME["qwen3"]), model_of(BY_NAME["qwen3"])
    layer_class = type(changed.layers[0].self_attn)
    forward, names = layer_class.forward, {**layer_class.forward.__globals__}
    fuse_rotary(changed)
    assert layer_class.forward is forward
    assert forward.__globals__ == names
    assert "forward" not in vars(other.layers[0].self_attn)


@pytest.mark.parametrize("name", [name for name in ("cohere", "bert", "gpt2") if name in BY_NAME])
def test_layers_that_turn_otherwise_or_not_at_all_stay(name: str) -> None:
    model = model_of(BY_NAME[name])
    before = outputs(model)
    assert fuse_rotary(model) == 0
    assert torch.equal(outputs(model), before)


def test_a_function_that_turns_the_other_way_is_not_replaced() -> None:
    def other_way(q, k, cos, sin):  # type: ignore[no-untyped-def]
        return cuda_rotary._rotate_both(other_way, rotate, q, k, cos, -sin)

    assert cuda_rotary._fused(other_way, rotate, torch.device("cpu")) is None


def test_what_it_does_not_know_is_done_as_it_was() -> None:
    """A part of each head, other shapes and other precisions."""
    seen = []

    def known(q, k, cos, sin, unsqueeze_dim=1):  # type: ignore[no-untyped-def]
        seen.append((cos.shape[-1], cos.dtype, unsqueeze_dim))
        return q, k

    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8)
    angles = torch.randn(1, 3, 8)
    cuda_rotary._rotate_both(known, rotate, query, key, angles[..., :4], angles[..., :4])
    cuda_rotary._rotate_both(known, rotate, query, key, angles, angles, unsqueeze_dim=2)
    cuda_rotary._rotate_both(known, rotate, query.bfloat16(), key.bfloat16(), angles, angles)
    assert seen == [(4, torch.float32, 1), (8, torch.float32, 2), (8, torch.float32, 1)]


def test_half_precision_is_as_close_to_float32_as_before() -> None:
    model = model_of(BY_NAME["qwen3"])
    exact = outputs(model)
    model.to(torch.bfloat16)
    before = (outputs(model).float() - exact).norm()
    fuse_rotary(model)
    # Rounding is as good as random: by the processor a tenth more or less.
    assert (outputs(model).float() - exact).norm() <= 1.3 * before
