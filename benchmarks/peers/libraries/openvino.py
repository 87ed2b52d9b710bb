"""OpenVINO driven by hand: sorted, token-budgeted, two batches side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.by_hand import ByHand, Inputs
from benchmarks.peers.peer import Peer


class OpenVINOPeer(ByHand):
    """Compiled twice, as its documentation says: once for latency, once for throughput."""

    def __init__(self, folder: Path, *, precision: str, batch_tokens: int = 1024) -> None:
        import openvino

        core = openvino.Core()
        compile_model = partial(core.compile_model, folder / "whole.onnx", "CPU")
        options = {"INFERENCE_PRECISION_HINT": precision}
        self._quick = compile_model({"PERFORMANCE_HINT": "LATENCY", **options})
        self._full = compile_model({"PERFORMANCE_HINT": "THROUGHPUT", **options})
        self._make_queue = openvino.AsyncInferQueue
        self._requests = threading.local()
        super().__init__(folder, self._all, self._one, batch_tokens=batch_tokens)

    def _all(self, batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        queue = self._make_queue(self._full)
        queue.set_callback(lambda request, number: found.update({number: _output(request)}))
        for number, batch in enumerate(batches):
            queue.start_async(batch, number)
        queue.wait_all()
        return (found[number] for number in range(len(found)))

    def _one(self, inputs: Inputs) -> np.ndarray:
        if not hasattr(self._requests, "mine"):  # an inference request serves one thread at a time
            self._requests.mine = self._quick.create_infer_request()
        self._requests.mine.infer(inputs)
        return _output(self._requests.mine)


def _output(request: Any) -> np.ndarray:
    return np.array(request.get_output_tensor(0).data)


PEERS = (
    Peer(
        "OpenVINO bfloat16 by hand",
        partial(OpenVINOPeer, precision="bf16"),
        "its own runtime; sorted, 1,024 padded tokens a batch, `AsyncInferQueue`",
        precision="bfloat16",
    ),
    Peer(
        "OpenVINO float32 by hand",
        partial(OpenVINOPeer, precision="f32"),
        "the same in float32",
    ),
)
