"""Which parts of a model run in float8, and where it is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch

from millpond import Engine, InvalidOption
from millpond.layers.cuda.packed.layer_stack import Part
from millpond.model import device as devices
from millpond.model.device import choose_dtype
from millpond.model.verify.float8 import (
    LOSS_OF_A_LAYER,
    MOST_LOSS,
    _vectors,
    choose_parts,
    most_loss,
)
from millpond.model.verify.varied import varied_texts

CUDA = torch.device("cuda", 0)


WEIGHTS = {"attention": 100, "feed_forward": 200}


class Layers:
    """Layers whose parts lose what they are told, in shares of the most, and it adds up."""

    def __init__(self, losses: list[tuple[float, float]]) -> None:
        self.losses = {
            Part(i, name): LOSS_OF_A_LAYER * len(losses) * loss
            for i, pair in enumerate(losses)
            for name, loss in zip(WEIGHTS, pair, strict=True)
        }
        self.chosen: set[Part] = set()

    def parts(self) -> dict[Part, int]:
        return {part: WEIGHTS[part.name] for part in self.losses}

    def use_float8(self, parts: Any) -> None:
        self.chosen = set(parts)

    def loss(self) -> float:
        return sum(self.losses[part] for part in self.chosen)


NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ([(0.1, 0.2), (0.1, 0.5)], "0a 0f 1a 1f"),
        ([(0.1, 0.2), (0.1, 0.8)], "0a 0f 1a"),
        ([(0.4, 0.5), (0.4, 0.5)], "0f 1f"),  # less loss for the time, though more of it
        ([(0.1, 0.9), (0.1, 0.9)], "0a 1a"),
        ([(0.3, NAN), (2.0, 0.3)], "0a 1f"),
        ([(2.0, 5.0), (NAN, NAN)], ""),
    ],
)
def test_as_many_parts_as_the_worst_text_bears_the_cheapest_first(
    losses: list[tuple[float, float]], chosen: str
) -> None:
    layers: Any = Layers(losses)
    found = choose_parts(layers, layers.loss)
    assert found == layers.chosen
    assert {f"{part.layer}{part.name[0]}" for part in found} == set(chosen.split())
    assert layers.loss() <= most_loss(layers)


def test_all_parts_count_together_also_where_their_losses_do_not_add_up() -> None:
    layers: Any = Layers([(0.1, 0.1)] * 4)
    loss = partial(lambda: 3 * layers.loss())
    found = choose_parts(layers, loss)
    assert len(found) == 3
    assert loss() <= most_loss(layers)


@pytest.mark.parametrize(("count", "most"), [(6, 0.0018), (24, 0.0072), (80, MOST_LOSS)])
def test_every_layer_may_lose_its_share(count: int, most: float) -> None:
    layers: Any = Layers([(0.1, 0.1)] * count)
    assert most_loss(layers) == pytest.approx(most)


@pytest.mark.parametrize(
    ("reads", "expected"),
    [("first", [[0.0, 1.0], [4.0, 5.0]]), ("last", [[2.0, 3.0], [8.0, 9.0]]), ("mean", None)],
)
def test_a_texts_vector_comes_of_the_tokens_that_its_head_reads(reads: Any, expected: Any) -> None:
    rows, lengths = torch.arange(10.0).view(5, 2), torch.tensor([2, 3])
    means = torch.stack([rows[:2].mean(0), rows[2:].mean(0)])
    found = _vectors(rows, lengths, reads)
    assert torch.allclose(found, means if expected is None else torch.tensor(expected))


def test_checked_texts_are_many_and_single_words_are_among_them(tmp_path: Path) -> None:
    folder = checkpoints.save_transformer(tmp_path / "bert")
    with Engine(folder, device="cpu") as engine:
        texts = varied_texts(engine._instance.inputs._tokenizers[0])
        longest = engine.info().max_length
    assert len(texts) > 500
    assert min(map(len, texts)) == 3
    assert max(map(len, texts)) == longest


def test_a_cpu_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.save_transformer(tmp_path / "bert")
    with pytest.raises(InvalidOption, match=r"GPUs that multiply in float8 and this is cpu"):
        Engine(folder, device="cpu", dtype="fp8")


def test_an_older_card_or_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.raises(InvalidOption, match=r"Tesla V100 has no products in float8"):
        choose_dtype("fp8", device=CUDA, checkpoint_dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.delattr(torch, "_scaled_mm")
    with pytest.raises(InvalidOption, match=r"has no products in float8"):
        choose_dtype("fp8", device=CUDA, checkpoint_dtype=torch.float16)


def test_it_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_float8_products", lambda _: True)
    monkeypatch.setattr(devices, "packed_kernels", lambda *_, **__: None)
    with pytest.raises(InvalidOption, match=r"needs Triton"):
        choose_dtype("fp8", device=CUDA, checkpoint_dtype=torch.float16)
    monkeypatch.setattr(devices, "packed_kernels", lambda *_, **__: object())
    dtype = choose_dtype("fp8", device=CUDA, checkpoint_dtype=torch.float16)
    assert dtype == torch.bfloat16
