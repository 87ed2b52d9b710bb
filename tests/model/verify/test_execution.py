"""The proof at load, on models made to pass or fail each part of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from millpond.attention.packed import PackedSequences
from millpond.model.transformer import Transformer
from millpond.model.verify.execution import (
    PAD_TO,
    ExecutionMode,
    disagreement,
    drop_unused_pooler,
    verify_execution,
)

PAD = 1
IDS = range(2, 40)


class MeanOfText(nn.Module):
    """A toy model whose every token sees its whole text, with a learned table of positions.

    `respects` says what keeps texts apart: boundaries, a padding mask, both or nothing.
    """

    def __init__(self, *, respects: set[str], first_position: int = 0, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(40, 8)
        self.positions = nn.Embedding(64, 8)
        self.config = SimpleNamespace(_attn_implementation="sdpa", max_position_embeddings=64)
        self.respects, self.first_position, self.fault = respects, first_position, fault
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def set_attn_implementation(self, name: str) -> None:
        if self.fault == "refuses":
            raise ValueError("this model has its own attention")
        self.config._attn_implementation = name

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        packed_sequences: PackedSequences | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> SimpleNamespace:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None] + self.first_position
        rows = self.tokens(input_ids) + self.positions(position_ids)
        if packed_sequences is not None and "boundaries" in self.respects:
            lengths = [n for _, count, n in packed_sequences.groups for _ in range(count)]
            parts = rows.split(lengths, dim=1)
            mixed = torch.cat([part + part.mean(dim=1, keepdim=True) for part in parts], dim=1)
        else:
            mask = torch.ones_like(input_ids)
            if attention_mask is not None and "mask" in self.respects:
                mask = attention_mask
            weight = mask.unsqueeze(-1) / mask.sum(dim=1)[:, None, None]
            mixed = rows + (rows * weight).sum(dim=1, keepdim=True)
        if self.fault == "overflows":
            mixed[0, 0, 0] = torch.inf
        return SimpleNamespace(last_hidden_state=mixed)


def prove(model: nn.Module) -> tuple[ExecutionMode, Transformer]:
    transformer = transformer_of(model)
    return verify_execution(transformer, token_ids=IDS, pad_id=PAD), transformer


def transformer_of(model: nn.Module) -> Transformer:
    loaded = SimpleNamespace(
        model=model,
        hidden_size=8,
        vocab_size=40,
        max_positions=64,
        needs_token_type_ids=False,
        head=None,
        vocabulary=None,
    )
    return Transformer(loaded)  # type: ignore[arg-type]


def test_a_model_that_keeps_packed_texts_apart_runs_packed() -> None:
    execution, transformer = prove(MeanOfText(respects={"boundaries", "mask"}))
    assert (execution.kind, execution.pad_to, execution.finite) == ("packed", None, True)
    assert transformer.position_offset == 0
    assert transformer.model.config._attn_implementation == "millpond"


def test_positions_may_begin_after_the_padding_id() -> None:
    execution, transformer = prove(MeanOfText(respects={"boundaries"}, first_position=PAD + 1))
    assert execution.kind == "packed"
    assert transformer.position_offset == PAD + 1


def test_a_model_that_mixes_packed_texts_runs_padded_and_says_why() -> None:
    execution, transformer = prove(MeanOfText(respects={"mask"}))
    assert (execution.kind, execution.pad_to) == ("padded", PAD_TO)
    assert "differ from the one-by-one run" in execution.reason
    assert transformer.model.config._attn_implementation == "sdpa"


def test_a_model_whose_padding_leaks_only_sees_equal_lengths() -> None:
    execution, _ = prove(MeanOfText(respects=set()))
    assert (execution.kind, execution.pad_to) == ("equal_length", 1)
    assert "not packed" in execution.reason
    assert "not padded" in execution.reason


def test_a_model_that_refuses_the_attention_runs_padded() -> None:
    execution, _ = prove(MeanOfText(respects={"mask"}, fault="refuses"))
    assert execution.kind == "padded"
    assert "ValueError: this model has its own attention" in execution.reason


def test_attention_in_chunks_is_not_packed_whatever_short_texts_show() -> None:
    model = MeanOfText(respects={"boundaries", "mask"})
    model.config.attention_chunk_size = 8192
    execution, _ = prove(model)
    assert execution.kind == "padded"
    assert "works in chunks" in execution.reason


def test_overflow_is_reported() -> None:
    execution, _ = prove(MeanOfText(respects={"boundaries", "mask"}, fault="overflows"))
    assert not execution.finite


def test_a_forward_that_takes_no_positions_is_not_asked() -> None:
    class Narrow(MeanOfText):
        def forward(  # type: ignore[override]
            self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
        ) -> SimpleNamespace:
            return super().forward(input_ids, attention_mask)

    execution, _ = prove(Narrow(respects={"mask"}))
    assert execution.kind == "padded"
    assert "takes no position ids" in execution.reason


class WithPooler(MeanOfText):
    """It pools for itself as well, and may not be able to do without."""

    def __init__(self, *, needs_it: bool) -> None:
        super().__init__(respects={"boundaries", "mask"})
        self.pooler: nn.Module | None = nn.Linear(8, 8)
        self.needs_it = needs_it

    def forward(self, *args: Any, **options: Any) -> SimpleNamespace:
        output = super().forward(*args, **options)
        if self.needs_it or self.pooler is not None:
            assert self.pooler is not None
            output.pooled = self.pooler(output.last_hidden_state[:, 0])
        return output


@pytest.mark.parametrize("needs_it", [True, False])
def test_a_pooler_that_nobody_reads_is_left_out_where_the_model_can_do_without(
    needs_it: bool,
) -> None:
    model = WithPooler(needs_it=needs_it)
    drop_unused_pooler(transformer_of(model), token_ids=IDS)
    assert (model.pooler is not None) == needs_it


@pytest.mark.parametrize(
    ("quantisation_error", "distance", "agrees"),
    [
        (0.0, 0.07, True),
        (0.0, 0.09, False),  # bfloat16's own rounding ends there
        (0.05, 0.15, True),  # the other codes of two runs in int8
        (0.05, 0.25, False),
        (0.9, 0.6, False),  # as far as a wrong position, however coarse int8 is
    ],
)
def test_runs_in_int8_may_be_as_far_apart_as_its_errors(
    quantisation_error: float, distance: float, agrees: bool
) -> None:
    expected = torch.eye(8, dtype=torch.bfloat16)
    rows = expected.clone()
    rows[3, 4] = distance
    reason = disagreement([rows], [expected], quantisation_error=quantisation_error)
    assert (reason is None) == agrees
