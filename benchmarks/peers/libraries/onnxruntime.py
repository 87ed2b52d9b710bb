"""ONNX Runtime driven by hand: sorted, token-budgeted, batches side by side on a thread each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.by_hand import ByHand, Inputs
from benchmarks.peers.peer import Peer


class ONNXRuntimePeer(ByHand):
    """Two sessions with all graph optimisations: every core on a query, one core on a batch."""

    def __init__(self, folder: Path, *, batch_tokens: int = 1024) -> None:
        import onnxruntime

        alone = onnxruntime.SessionOptions()
        alone.intra_op_num_threads = 1
        path, providers = str(folder / "whole.onnx"), ["CPUExecutionProvider"]
        self._quick = onnxruntime.InferenceSession(path, providers=providers)
        self._full = onnxruntime.InferenceSession(path, alone, providers=providers)
        self._threads = ThreadPoolExecutor(os.cpu_count())
        super().__init__(folder, self._all, self._one, batch_tokens=batch_tokens)

    def _all(self, batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        return self._threads.map(lambda inputs: _vectors(self._full, inputs), batches)

    def _one(self, inputs: Inputs) -> np.ndarray:
        return _vectors(self._quick, inputs)


def _vectors(session: Any, inputs: Inputs) -> np.ndarray:
    ids, mask = inputs
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


PEERS = (
    Peer(
        "ONNX Runtime by hand",
        ONNXRuntimePeer,
        "its own runtime; sorted, 1,024 padded tokens a batch, a batch on each core",
    ),
)
