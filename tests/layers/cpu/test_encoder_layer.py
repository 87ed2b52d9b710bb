"""Fused layers give what the layers gave, in every batch; others stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from millpond import Engine
from millpond.attention.implementations import register_attention
from millpond.attention.packed import ATTENTION_NAME, PackedSequences
from millpond.attention.verify import AttentionShape, attention_is_invariant
from millpond.cpu import scripted
from millpond.cpu.openmp import limited_threads
from millpond.cpu.preemption import Preemption, here
from millpond.cpu.row_buckets import whole_rows
from millpond.layers.cpu import encoder_functions, onednn
from millpond.layers.cpu.encoder import FusedEncoder
from millpond.layers.cpu.encoder_layer import fuse_layers
from millpond.layers.cpu.linear import has_invariant_products, prepack_linears

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
SIZE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
LENGTHS = np.array([9, 9, 5, 1])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-2}


def bert(dtype: torch.dtype = torch.float32, **options: Any) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(intermediate_size=96, vocab_size=50, **{**SIZE, **options})
    return BertModel(config, add_pooling_layer=False).to(dtype).eval().requires_grad_(False)


def distilbert(dtype: torch.dtype = torch.float32) -> DistilBertModel:
    torch.manual_seed(0)
    config = DistilBertConfig(dim=64, hidden_dim=96, n_layers=2, n_heads=4, vocab_size=50)
    return DistilBertModel(config).to(dtype).eval().requires_grad_(False)


def packed(lengths: Any = LENGTHS, rows: int | None = None) -> tuple[Tensor, Tensor, Any]:
    """Ids, positions, and sequences; `rows` in all, the last of which belong to no sequence."""
    total = int(np.sum(lengths))
    random = np.random.default_rng(0)
    ids = np.concatenate([random.integers(1, 50, total), np.zeros((rows or total) - total, int)])
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(len(ids) - total, int)])
    return torch.from_numpy(ids), torch.from_numpy(positions), PackedSequences.of(lengths)


def run(model: Any, ids: Tensor, positions: Tensor, sequences: PackedSequences) -> Tensor:
    register_attention()
    model.set_attn_implementation(ATTENTION_NAME)
    hidden = model(
        input_ids=ids[None], position_ids=positions[None], packed_sequences=sequences
    ).last_hidden_state[0]
    model.set_attn_implementation("sdpa")
    return hidden  # type: ignore[no-any-return]


def fused_encoder(model: Any) -> FusedEncoder:
    return FusedEncoder(model, needs_token_type_ids=isinstance(model, BertModel))


@pytest.mark.parametrize("make", [bert, distilbert])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_give_what_the_layers_gave(make: Any, dtype: torch.dtype) -> None:
    model, texts = make(dtype), packed()
    if dtype == torch.bfloat16 and not prepack_linears(nn.Sequential(make(dtype))):
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    ids, mask = texts[0][:18].view(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    in_a_row = run(model, *texts)
    padded = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert fuse_layers(model) == 2
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(run(model, *texts), in_a_row, **close)
    found = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask > 0], padded[mask > 0], **close)


@pytest.mark.parametrize("make", [bert, distilbert])
def test_an_encoder_of_fused_layers_gives_the_bits_of_the_model(make: Any) -> None:
    model, texts = make(), packed()
    fuse_layers(model)
    assert torch.equal(fused_encoder(model)(*texts), run(model, *texts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    model = bert(dtype)
    if not fuse_layers(model, batch_invariant=True):
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    encoder = fused_encoder(model)
    ids, positions, sequences = packed()
    together = encoder(ids, positions, sequences)
    start = 0
    for length in LENGTHS.tolist():
        stop = start + length
        missing = torch.zeros(16 - length, dtype=torch.int64)
        alone = encoder(
            torch.cat([ids[start:stop], missing]),
            torch.cat([positions[start:stop], missing]),
            PackedSequences.of(np.array([length])),
        )
        assert torch.equal(alone[:length], together[start:stop])
        start = stop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [24, 32, 48])
def test_queries_and_ingestion_have_the_same_bits(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(dtype)
    if not fuse_layers(model):
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    encoder, texts = fused_encoder(model), packed(rows=rows)
    in_one_call = encoder(*texts)
    monkeypatch.setattr(here, "yields_to", Preemption())  # operator by operator
    assert torch.equal(encoder(*texts), in_one_call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[9, 9, 5, 1], [12], [40, 40, 12, 12, 3]])
def test_torchscript_and_python_have_the_same_bits(
    dtype: torch.dtype, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(dtype)
    if not fuse_layers(model):
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    encoder, texts = fused_encoder(model), packed(np.array(lengths), whole_rows(sum(lengths)))
    assert scripted.is_compiled(encoder_functions)
    found = encoder(*texts)
    monkeypatch.setattr(scripted, "_compiled", lambda _: None)
    assert not scripted.is_compiled(encoder_functions)
    assert torch.equal(encoder(*texts), found)


def test_torchscript_changes_no_setting_of_its_thread() -> None:
    model = bert()
    fuse_layers(model)
    before = torch._C._get_graph_executor_optimize()
    fused_encoder(model)(*packed())
    assert torch._C._get_graph_executor_optimize() is before


def test_rows_that_belong_to_no_sequence_change_no_text() -> None:
    model = bert()
    fuse_layers(model)
    encoder = fused_encoder(model)
    more = encoder(*packed(rows=40))
    assert more.isfinite().all()
    assert torch.equal(more[:24], encoder(*packed()))


def test_the_weights_are_held_once() -> None:
    model = bert()
    before = sum(weight.numel() for weight in model.parameters())
    fuse_layers(model)
    assert sum(weight.numel() for weight in model.parameters()) == before
    kept = [name for name, weight in model.named_parameters() if weight.device.type != "meta"]
    assert not any(name.endswith("dense.weight") for name in kept)


def test_hidden_states_of_every_layer_are_still_there() -> None:
    model, (ids, *_) = bert(), packed()
    fuse_layers(model)
    states = model(input_ids=ids[None], output_hidden_states=True).hidden_states
    assert len(states) == 3


def changed(change: str) -> BertModel:
    model = bert(hidden_act="gelu_new" if change == "activation" else "gelu")
    layer = model.encoder.layer[1]
    if change == "another part":
        layer.attention.output.extra = nn.Linear(64, 64)
    if change == "another kind of norm":
        layer.output.LayerNorm = nn.RMSNorm(64)
    if change == "another forward":
        layer.forward = layer.forward
    if change == "another order":
        feed_forward = layer.feed_forward_chunk
        layer.feed_forward_chunk = lambda rows: 2 * feed_forward(rows)
    if change == "a norm that is skipped":
        layer.output.forward = lambda rows, others: layer.output.dense(rows) + others
    return model


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        ("activation", 0),
        ("another part", 1),
        ("another kind of norm", 1),
        ("another forward", 1),
        ("another order", 1),
        ("a norm that is skipped", 1),
    ],
)
def test_a_layer_of_another_kind_stays_as_it_was(change: str, fused: int) -> None:
    model, texts = changed(change), packed()
    expected = run(model, *texts)
    assert fuse_layers(model) == fused
    torch.testing.assert_close(run(model, *texts), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="fused"):
        fused_encoder(model)


def test_a_layer_stays_where_the_operators_fail_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Operators:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    monkeypatch.setattr(onednn, "OPERATORS", Operators())
    assert fuse_layers(bert()) == 0


@pytest.mark.parametrize(
    ("name", "forwards"),
    [
        ("bert", 0),
        ("distilbert", 0),
        ("electra", 1),  # what its embeddings give is made wider first
        ("albert", 1),  # another kind of layer
    ],
)
def test_the_models_own_forward_is_left_out_where_fused_layers_are_all_of_it(
    checkpoint: Callable[[str], Path], name: str, forwards: int
) -> None:
    with Engine(checkpoint(name), device="cpu", dtype="float32") as engine:
        encoder: Any = engine._instance.runners[0].models[0].encoder  # type: ignore[attr-defined]
        calls = []
        encoder.model.register_forward_hook(lambda *_: calls.append(1))
        engine.embed("a mill")
        assert len(calls) == forwards


def test_hidden_states_of_all_layers_come_from_the_models_own_forward(
    checkpoint: Callable[[str], Path],
) -> None:
    with Engine(checkpoint("bert"), device="cpu", dtype="float32") as engine:
        encoder: Any = engine._instance.runners[0].models[0].encoder  # type: ignore[attr-defined]
        ids, positions, sequences = packed()
        last = encoder.packed(ids, positions, sequences)
        encoder.all_layers = True
        states = encoder.packed(ids, positions, sequences)
        assert len(states) == 3
        assert torch.equal(states[-1], last)


# The last layer for first tokens alone.

WITH_MANY_ROWS = ([64], [40, 40, 12, 12, 3], [70, 23, 16, 9, 1], [25] * 9 + [7] * 9)


class ProductRows(TorchDispatchMode):
    """How many rows each prepacked product has."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_linear_pointwise" in str(func):
            self.counts.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def starts_of(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.cumsum(lengths) - lengths)


@pytest.mark.parametrize("make", [bert, distilbert])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", WITH_MANY_ROWS)
def test_first_tokens_alone_have_the_bits_they_have_among_all(
    make: Any, dtype: torch.dtype, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(dtype)
    if not fuse_layers(model, batch_invariant=True):
        pytest.skip("no products in bfloat16 here whose bits do not depend on the rows")
    encoder = fused_encoder(model)
    texts, starts = packed(np.array(lengths), whole_rows(sum(lengths))), starts_of(lengths)
    expected = encoder(*texts)[starts]
    found = encoder.firsts(*texts, starts)
    assert found is not None
    assert torch.equal(found, expected)
    monkeypatch.setattr(here, "yields_to", Preemption())  # operator by operator
    found = encoder.firsts(*texts, starts)
    assert found is not None
    assert torch.equal(found, expected)


def test_for_first_tokens_three_products_of_the_last_layer_have_few_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = bert()
    fuse_layers(model)
    encoder, lengths = fused_encoder(model), [40] * 20
    monkeypatch.setattr(here, "yields_to", Preemption())  # operator by operator
    with ProductRows() as ran:
        encoder.firsts(*packed(np.array(lengths)), starts_of(lengths))
    assert ran.counts == [800] * 5 + [whole_rows(20)] * 3


@pytest.mark.parametrize("lengths", [[63], [9, 9, 5, 1], [3] * 40])
def test_a_pass_of_which_they_are_many_runs_for_all_tokens(lengths: list[int]) -> None:
    model = bert()
    fuse_layers(model)
    texts = packed(np.array(lengths))
    assert fused_encoder(model).firsts(*texts, starts_of(lengths)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ingestion_gives_the_same_bits_in_blocks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = np.array([70, 70, 70, 70, 70, 33, 33, 20, 1])
    model = bert(dtype)
    ids, positions, sequences = packed(lengths, rows=whole_rows(int(lengths.sum())))
    if not fuse_layers(model, batch_invariant=True) or not has_invariant_products(model):
        pytest.skip("no products here whose bits do not depend on the rows")
    shape = AttentionShape(4, 4, 16, causal=False)
    if not attention_is_invariant([shape], dtype, longest=int(lengths.max()), threads=(1,)):
        pytest.skip("attention whose bits depend on the texts beside it")
    encoder = FusedEncoder(model, needs_token_type_ids=False)
    with limited_threads(1):
        whole = encoder(ids, positions, sequences)
    passes = Preemption()
    with passes.query():  # from now on it expects more
        pass
    monkeypatch.setattr(here, "yields_to", passes)
    for rows in (128, 64, 16):
        for layer in encoder.layers:
            object.__setattr__(layer, "block_rows", rows)
        assert len(sequences.in_blocks(rows)) > 1
        with limited_threads(1):
            assert torch.equal(encoder(ids, positions, sequences), whole)
