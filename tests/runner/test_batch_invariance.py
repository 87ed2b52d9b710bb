"""What a check at load says of bits: so for every batch that it looks at, and no more than that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from millpond import Engine
from millpond.attention import verify as attention_check
from millpond.cpu import openmp
from millpond.model import pooling_model
from millpond.model.pooling_model import PoolingModel
from millpond.runner.batch_invariance import LENGTHS, is_batch_invariant
from millpond.runner.input_batch import InputBatch, PrefixInputBatch
from millpond.scheduler.batch import Batch, BatchShape
from millpond.scheduler.prefix_cache import PrefixCacheConfig

Vectors = npt.NDArray[np.float32]
BUDGET = PrefixCacheConfig(blocks=40, block_tokens=16, bytes_per_token=1)
RANDOM = np.random.default_rng(3)
TEXTS = [RANDOM.integers(0, 2**20, length).astype(np.int32) for length in LENGTHS]


class Device:
    """Computes a vector from a text's ids, and says which batches it was given."""

    def __init__(self, spoil: Callable[[Batch, int | None], float] = lambda *_: 0.0) -> None:
        self.batches: list[tuple[Batch, int | None]] = []
        self._spoil = spoil

    def run(self, batch: Batch, threads: int | None) -> Vectors:
        self.batches.append((batch, threads))
        texts = [segment.chunk.ids_of(segment.start) for segment in batch.segments]
        spoilt = np.float32(self._spoil(batch, threads))
        return np.array([[ids.sum() + spoilt] for ids in texts], dtype=np.float32)

    def is_invariant(self, **options: Any) -> bool:
        asked: dict[str, Any] = {"route": 0, "shape": BatchShape(), "threads": (1, 2, 3)}
        return is_batch_invariant(self.run, TEXTS, **{**asked, "prefixes": BUDGET, **options})


def test_texts_run_alone_together_and_after_a_prefix_on_every_number_of_threads() -> None:
    device = Device()
    assert device.is_invariant()
    plain = [(b, n) for b, n in device.batches if not b.uses_prefixes]
    assert [n for b, n in plain if b.texts == len(TEXTS)] == [1, 2, 3]
    assert sum(b.texts == 1 for b, _ in plain) == len(TEXTS)
    cached = [(b, n) for b, n in device.batches if b.cached_tokens]
    assert [n for _, n in cached] == [1, 2, 3]
    for batch, _ in cached:
        layout = PrefixInputBatch.of(batch, BUDGET.block_tokens)
        assert sorted(layout.prefixes.tolist()) == [16, 32, 32, 64, 128]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda batch, _: float(batch.texts > 1),
        lambda batch, threads: float(batch.texts > 1 and threads == 3),
        lambda batch, _: float(batch.cached_tokens > 0),
        lambda batch, threads: float(batch.cached_tokens > 0 and threads == 2),
    ],
    ids=["company", "threads", "prefix", "prefix on threads"],
)
def test_a_difference_is_found(spoil: Callable[[Batch, int | None], float]) -> None:
    assert not Device(spoil).is_invariant()


def test_texts_that_are_padded_meet_those_of_their_length_alone() -> None:
    device = Device()
    assert device.is_invariant(shape=BatchShape(pad_to=16), prefixes=None)
    lengths = [
        sorted(InputBatch.of(batch).lengths) for batch, _ in device.batches if batch.texts > 1
    ]
    assert lengths[0] == [40, 40]
    assert lengths[1] == [1, 3, 9, 9]


def test_the_engine_says_so_where_a_batch_changes_bits(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = PoolingModel.packed

    def changed(self: PoolingModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        return packed(self, ids, *rest) * (1 + len(ids) * 2e-7)

    monkeypatch.setattr(PoolingModel, "packed", changed)
    with Engine(checkpoint("bert"), device="cpu", dtype="float32") as engine:
        assert not engine.info().batch_invariant
        assert engine.embed("mill").shape


def test_nothing_is_promised_where_mkl_may_divide_products(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(openmp, "_mkl_threads", lambda: None)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    with Engine(checkpoint("bert"), device="cpu", dtype="float32") as engine:
        assert engine.info().batch_invariant == (threads == 1)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_within_long_texts_is_tried_too(
    monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    is_invariant = attention_check._is_invariant.__wrapped__
    shape = attention_check.AttentionShape(heads=4, key_heads=2, size=16, causal=causal)
    sizes = (shape, torch.float32, 200, (1, 2))
    assert is_invariant(*sizes)
    attend = attention_check.PackedSequences.attend

    def changed(self: Any, *rows: Any, **options: Any) -> torch.Tensor:
        return attend(self, *rows, **options) * (1 + len(self.places[0]) * 2e-7)

    monkeypatch.setattr(attention_check.PackedSequences, "attend", changed)
    assert not is_invariant(*sizes)


@pytest.mark.parametrize(("differs_up_to", "fewest"), [(0, 1), (1, 2), (2, None)])
def test_a_padded_batch_has_as_many_texts_as_its_products_need(
    monkeypatch: pytest.MonkeyPatch, differs_up_to: int, fewest: int | None
) -> None:
    found = attention_check.fewest_padded_texts.__wrapped__
    matmul = torch.matmul

    def by_halves(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """For up to that many texts the sums are those of two halves."""
        if len(left) > differs_up_to:
            return matmul(left.double(), right.double()).round(decimals=6)
        middle = left.shape[-1] // 2
        first = matmul(left[..., :middle], right[..., :middle, :])
        return (first + matmul(left[..., middle:], right[..., middle:, :])).double()

    monkeypatch.setattr(torch, "matmul", by_halves)
    assert found(torch.float32, (1, 2)) == fewest


@pytest.mark.parametrize(("fewest", "rows"), [(1, [1, 2]), (2, [2, 2]), (None, [1, 2])])
def test_a_padded_model_is_promised_what_its_products_keep(
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    fewest: int | None,
    rows: list[int],
) -> None:
    monkeypatch.setattr(pooling_model, "fewest_padded_texts", lambda *_: fewest)
    with Engine(checkpoint("mpnet"), device="cpu", dtype="float32") as engine:
        assert engine.info().execution == "padded"
        assert engine.info().batch_invariant == (fewest is not None)
        (runner,) = engine._instance.runners
        assert [runner._padded_rows(texts, 32) for texts in (1, 2)] == rows  # type: ignore[attr-defined]
