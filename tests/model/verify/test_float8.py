"""Which parts of a model run in float8, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch

from millpond import Engine, InvalidOption
from millpond.layers.cuda.packed.layer_stack import Part
from millpond.model import device as devices
from millpond.model.device import choose_dtype
from millpond.model.verify.float8 import MOST_LOSS, choose_parts

CUDA = torch.device("cuda", 0)


class Layers:
    """Layers whose parts lose what they are told, each by itself."""

    def __init__(self, losses: list[tuple[float, float]]) -> None:
        self.losses = {
            Part(i, name): MOST_LOSS * loss
            for i, pair in enumerate(losses)
            for name, loss in zip(("attention", "feed_forward"), pair, strict=True)
        }
        self.chosen: set[Part] = set()

    def parts(self) -> dict[Part, int]:
        return dict.fromkeys(self.losses, 1)

    def use_float8(self, parts: Any) -> None:
        self.chosen = set(parts)

    def loss(self) -> float:
        return sum(self.losses[part] for part in self.chosen)


@pytest.mark.parametrize(
    ("pair", "chosen"),
    [
        ((0.3, 0.6), {"attention", "feed_forward"}),
        ((0.6, 0.6), {"attention"}),
        ((0.7, 0.6), {"feed_forward"}),
        ((0.3, 5), {"attention"}),
        ((2, 5), set()),
        ((float("nan"), 0.5), {"feed_forward"}),
    ],
)
def test_of_a_layer_that_loses_too_much_the_worst_part_stays(
    pair: tuple[float, float], chosen: set[str]
) -> None:
    layers: Any = Layers([(0.1, 0.1), pair])
    found = choose_parts(layers, layers.loss)
    assert found == layers.chosen
    assert {part.name for part in found if part.layer == 0} == {"attention", "feed_forward"}
    assert {part.name for part in found if part.layer == 1} == chosen


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
