"""A model on packed rows without its own forward, on a CPU: the same numbers, or its own layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES
from reference_kernels import REFERENCE
from torch import Tensor, nn

from millpond.attention.implementations import register_attention
from millpond.attention.packed import ATTENTION_NAME, AttentionOptions, PackedSequences
from millpond.layers.cuda.float8 import Float8Product, Float8Rows, quantise_rows
from millpond.layers.cuda.fusion import fuse_for_cuda
from millpond.layers.cuda.packed import parts as packed_parts
from millpond.layers.cuda.packed.layer_stack import Part
from millpond.layers.cuda.packed.model import PackedDecoder, PackedEncoder, packed_forward
from millpond.layers.cuda.packed.parts import (
    InputNorm,
    largest_output,
)
from millpond.layers.split import RowSplitLinear

BY_NAME = {family.name: family for family in FAMILIES}
LENGTHS = np.array([9, 9, 5, 1])
IDS = torch.randint(1, 100, (24,), generator=torch.Generator().manual_seed(1))
POSITIONS = torch.from_numpy(np.concatenate([*map(np.arange, LENGTHS)]))
SEQUENCES = PackedSequences.of(LENGTHS)
ENCODERS = [
    name
    for name in ("bert", "roberta", "xlm_roberta", "camembert", "electra", "ernie", "distilbert")
    if name in BY_NAME
]
DECODERS = [
    *("qwen2", "qwen3", "llama", "mistral"),
    *(name for name in ("ministral", "smollm3", "granite", "eurobert") if name in BY_NAME),
]


class Recorded:
    """What layers ask their attention for."""

    def __init__(self) -> None:
        self.asked: list[AttentionOptions] = []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        self.asked.append(options)
        return SEQUENCES.attend(query, key, value, options)


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    family = BY_NAME[name]
    made = getattr(transformers, family.model)
    config = {"vocab_size": 100, "pad_token_id": 0, **family.config}
    model = made(made.config_class(**config)).eval().requires_grad_(False).to(dtype)
    fuse_for_cuda(model)
    register_attention()
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def run(model: Any, sequences: Any = SEQUENCES) -> Tensor:
    positions = (POSITIONS + 1)[None]  # RoBERTa's begin after the padding id
    output = model(input_ids=IDS[None], position_ids=positions, packed_sequences=sequences)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def packed(model: Any, **options: Any) -> PackedEncoder | PackedDecoder:
    recorded = Recorded()
    run(model, recorded)
    types = any(name.endswith("token_type_embeddings") for name, _ in model.named_modules())
    return packed_forward(model, REFERENCE, recorded.asked, needs_token_type_ids=types, **options)


def run_packed(forward: PackedEncoder | PackedDecoder) -> Tensor:
    return forward(IDS, POSITIONS + 1, SEQUENCES)


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_the_vectors_are_those_of_the_model(name: str) -> None:
    model = model_of(name)
    expected = run(model)
    forward = packed(model)
    assert isinstance(forward, PackedEncoder if name in ENCODERS else PackedDecoder)
    assert forward.layers.packed == len(forward.layers.current)
    torch.testing.assert_close(run_packed(forward), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run(model), expected)  # the model's own forward is what it was


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_tokens_have_their_types(name: str) -> None:
    model = model_of(name)
    types = torch.arange(len(IDS)) % 2
    inputs = {"position_ids": POSITIONS[None], "token_type_ids": types[None]}
    output = model(input_ids=IDS[None], packed_sequences=SEQUENCES, **inputs)
    found = packed(model)(IDS, POSITIONS, SEQUENCES, types)
    torch.testing.assert_close(found, output.last_hidden_state[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_half_precision_is_as_close_to_float32_as_the_model(name: str) -> None:
    exact = run(model_of(name))
    model = model_of(name, torch.bfloat16)
    before = (run(model).float() - exact).norm()
    forward = packed(model)
    assert forward.layers.packed == 2
    # Rounding is as good as random: by the processor a tenth more or less.
    assert (run_packed(forward).float() - exact).norm() <= 1.3 * before


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_weights_are_held_once(name: str) -> None:
    model = model_of(name)
    forward = packed(model)
    layer: Any = forward.layers.current[0]
    joined = layer.attention.joined.weight
    query = next(m for n, m in model.named_modules() if n.endswith(("q_proj", "self.query")))
    assert query.weight.data_ptr() == joined.data_ptr()
    assert torch.equal(query.weight, joined[: len(query.weight)])


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_a_layer_that_is_another_runs_as_it_is(name: str) -> None:
    model = model_of(name)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    own = layers[0].forward
    layers[0].forward = lambda *args, **options: 2 * own(*args, **options)
    expected = run(model)
    forward = packed(model)
    assert forward.layers.packed == 1
    torch.testing.assert_close(run_packed(forward), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_a_layer_whose_weights_others_read_runs_as_it_is(name: str) -> None:
    model = model_of(name)
    keep = {
        module for name, module in model.named_modules() if name.endswith(("1.mlp", "1.output"))
    }
    forward = packed(model, keep=keep)
    assert forward.layers.packed == 1
    torch.testing.assert_close(run_packed(forward), run(model), rtol=1e-4, atol=1e-4)


def test_a_kernel_that_is_wrong_is_not_used() -> None:
    wrong = replace(REFERENCE, add_layer_norm=lambda rows, *_, **__: (rows, None))
    recorded = Recorded()
    model = model_of("bert")
    run(model, recorded)
    with pytest.raises(ValueError, match="none of its layers"):
        packed_forward(model, wrong, recorded.asked, needs_token_type_ids=True)


@pytest.mark.parametrize("name", [n for n in ("gemma2", "gpt2", "albert", "t5") if n in BY_NAME])
def test_models_of_other_kinds_are_refused(name: str) -> None:
    model = model_of(name)
    asked = [AttentionOptions(None, None, causal=True, layer=i) for i in range(2)]
    with pytest.raises(ValueError, match=r"of a known kind|other parts|several lists|another norm"):
        packed_forward(model, REFERENCE, asked, needs_token_type_ids=False)


# Float8. A CPU has no such product, so that one in float32 stands for it.


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(product: Float8Product, rows: Float8Rows) -> Tensor:
        assert isinstance(rows, Float8Rows)
        out = (rows.values.float() * rows.scales) @ product.values.float() * product.scales
        return (out if product.bias is None else out + product.bias).to(torch.bfloat16)

    monkeypatch.setattr(Float8Product, "of", of)


@pytest.mark.parametrize("name", ["bert", "distilbert", "electra", "qwen3", "llama"])
@pytest.mark.usefixtures("products")
def test_in_float8_it_is_nearly_the_same(name: str) -> None:
    forward = packed(model_of(name, torch.bfloat16))
    half = run_packed(forward).float()
    parts = forward.layers.parts()
    assert len(parts) == 4
    forward.layers.use_float8(parts)
    assert forward.layers.in_float8 == 4
    error = (run_packed(forward).float() - half).norm() / half.norm()
    assert 0.01 < error < 0.4
    forward.layers.use_float8({Part(1, "feed_forward")})
    less = (run_packed(forward).float() - half).norm() / half.norm()
    assert 0 < less < error
    forward.layers.use_float8(())
    assert torch.equal(run_packed(forward).float(), half)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
@pytest.mark.usefixtures("products")
def test_half_precision_weights_of_what_is_in_float8_are_let_go(name: str) -> None:
    model = model_of(name, torch.bfloat16)
    forward = packed(model)
    chosen = {Part(0, "attention"), Part(1, "feed_forward")}
    forward.layers.use_float8(chosen)
    expected = run_packed(forward)
    forward.layers.release()
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    linears = [m for m in layers.modules() if isinstance(m, nn.Linear)]
    in_float8 = [m for m in linears if m.weight.dtype == torch.float8_e4m3fn]
    assert len(in_float8) == len(linears) // 2
    assert all(len(m.weight) == m.out_features for m in linears)
    assert torch.equal(run_packed(forward), expected)


def test_no_row_is_above_the_largest_output() -> None:
    torch.manual_seed(0)
    norm = InputNorm(torch.randn(64), torch.randn(64))
    weight, bias = torch.randn(32, 64), torch.randn(32)
    most = largest_output(norm, weight, bias)
    sharpest = weight * norm.weight  # the rows that a channel answers most to
    rows = torch.cat([torch.randn(500, 64), sharpest, -sharpest])
    normed = nn.functional.layer_norm(rows, (64,), norm.weight, norm.bias)
    found = (normed @ weight.t() + bias).abs().max()
    assert 0.5 * most / packed_parts.ROUNDING < found < most / packed_parts.ROUNDING


def test_rows_keep_three_bits_of_mantissa() -> None:
    rows = torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None]
    quantised = quantise_rows(rows)
    assert quantised.values.dtype == torch.float8_e4m3fn
    error = (quantised.values.float() * quantised.scales - rows).norm(dim=1) / rows.norm(dim=1)
    assert error.max() < 0.04
    assert torch.equal(quantise_rows(torch.zeros(2, 8)).values.float(), torch.zeros(2, 8))


class OneRank:
    """Ranks of which the others hold nothing."""

    def __init__(self) -> None:
        self.sums = 0

    def add_up(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        self.sums += 1
        return part.to(dtype)


@pytest.mark.parametrize("name", ["bert", "distilbert", "qwen3", "llama"])
def test_layers_of_a_split_model_add_up_twice(name: str) -> None:
    model, ranks = model_of(name), OneRank()
    expected = run(model)
    ends = ("o_proj", "down_proj", "output.dense", "out_lin", "lin2")
    for path, linear in list(model.named_modules()):
        if path.endswith(ends):
            parent, _, last = path.rpartition(".")
            split = RowSplitLinear(linear.weight, linear.bias, ranks)
            setattr(model.get_submodule(parent), last, split)
    forward = packed(model)
    layers = forward.layers.current
    assert forward.layers.packed == len(layers)
    assert all(isinstance(layer.attention.out, RowSplitLinear) for layer in layers)
    ranks.sums = 0
    torch.testing.assert_close(run_packed(forward), expected, rtol=1e-4, atol=1e-5)
    assert ranks.sums == 2 * len(layers)
