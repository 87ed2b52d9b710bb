"""Texts that are long enough for the attention that Numba compiles, in models of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_checkpoint, save_transformer
from families import FAMILIES, WIDTH
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from millpond import Engine
from millpond.attention import compiled, packed
from millpond.attention.compiled import can_be_compiled
from millpond.layers.cpu import attention

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(
    not can_be_compiled(torch.bfloat16, 32), reason="torch attends on this processor"
)

WORDS = ("the", "stone", "grinds", "grain", "mill", "water", "pond", "falls", "full")
LENGTHS = (3, 200, 46, 70, 45, 400, 1, 90)
TEXTS = [" ".join(WORDS[(i * n) % len(WORDS)] for i in range(n)) for n in LENGTHS]
KINDS = {"bert": "mean", "roberta": "cls", "modernbert": "cls", "nomic_bert": "mean"}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with heads of 32 elements."""
    family = next(family for family in FAMILIES if family.name == request.param)
    sizes = {"num_attention_heads": 2, "max_position_embeddings": 600}
    made = tmp_path_factory.mktemp(family.name)
    bare = save_transformer(
        made / "bare",
        model=family.model,
        tokenizer=family.tokenizer,
        config={**family.config, **sizes},
    )
    encoder = Transformer(str(bare), max_seq_length=512)
    return save_checkpoint(made / "saved", [encoder, Pooling(WIDTH, KINDS[family.name])])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each call of the kernel had."""
    found: list[int] = []

    def attend(*given: Any, **options: Any) -> None:
        found.append(len(given[5].starts))
        compiled.attend_compiled(*given, **options)

    for module in (attention, packed):
        monkeypatch.setattr(module, "attend_compiled", attend)
    return found


def test_vectors_are_as_near_to_float32_as_by_torchs_kernel(
    folder: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(folder, device="cpu", dtype="float32") as engine:
        exact = engine.embed(TEXTS)
    assert not calls
    with Engine(folder, device="cpu", dtype="bfloat16") as engine:
        found = engine.embed(TEXTS)
    assert max(calls) > 1  # several in one pass
    monkeypatch.setattr(compiled, "_suits_processor", lambda: False)
    with Engine(folder, device="cpu", dtype="bfloat16") as engine:
        by_torch = engine.embed(TEXTS)
    errors = [np.linalg.norm(vectors - exact, axis=1) for vectors in (found, by_torch)]
    assert errors[0].max() <= 1.5 * errors[1].max()
    assert not np.array_equal(found, by_torch)


def test_a_text_has_the_same_bits_in_every_batch(folder: Path, calls: list[int]) -> None:
    with Engine(folder, device="cpu", dtype="bfloat16") as engine:
        assert engine.info().batch_invariant
        together = engine.embed(TEXTS)
        for text, vector in zip(TEXTS, together, strict=True):
            assert np.array_equal(engine.embed(text), vector)
    assert calls


@pytest.mark.parametrize("warmup", [False, True])
def test_warmup_reads_the_kernel_while_loading(
    folder: Path, warmup: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(compiled, "_found", found)
    with Engine(folder, device="cpu", dtype="bfloat16", warmup=warmup) as engine:
        assert len(found) == warmup
        engine.embed(TEXTS[0])
        assert len(found) == warmup
        engine.embed(TEXTS[1])
        assert len(found) == 1
