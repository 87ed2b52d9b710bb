"""What a caller set on its own thread does not reach the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from families import ENCODER
from torch.utils._python_dispatch import TorchDispatchMode

from millpond import Engine


class Seen(TorchDispatchMode):
    """Counts the operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def test_what_a_caller_set_for_its_own_work_does_not_change_its_vectors(tmp_path: Path) -> None:
    folder = checkpoints.save_transformer(tmp_path / "bert", config=ENCODER)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed("which one")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert np.array_equal(engine.embed("which one"), expected)
        with torch.device("meta"):
            assert np.array_equal(engine.embed("which one"), expected)
        with Seen() as seen:
            assert np.array_equal(engine.embed("which one"), expected)
        assert seen.operators == 0
