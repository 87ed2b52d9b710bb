"""From process start to first vector, every time in a new process; files are in the system's cache.

Millpond is held to the floor beside it: what importing torch and the model's class and reading the
weights take by themselves. Without the model's class it is the floor of a plain BERT, which needs
none of transformers.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from . import environments
from .peer import Peer
from .workers import Worker, WorkerFailed

PROGRAMS = {
    "torch, BertModel and the weights": """
import sys
import torch
from safetensors.torch import load_file
from transformers import BertModel
load_file(sys.argv[1] + "/model.safetensors")
""",
    "torch and the weights": """
import sys
import torch
from safetensors.torch import load_file
load_file(sys.argv[1] + "/model.safetensors")
""",
    "import millpond": "import millpond",
    "import torch": "import torch",
}


def measure(
    peers: dict[str, tuple[Peer, Path]], model: Path, texts: Path, rounds: int
) -> list[dict[str, Any]]:
    """Seconds of every peer and program, once a round."""
    records = []
    for number in range(rounds):
        for name, program in PROGRAMS.items():
            seconds = _run(program, model)
            records.append(_record(None, number, setting=name, seconds=seconds))
        for name, (entry, path) in peers.items():
            try:
                with Worker(entry, path, model, texts) as worker:
                    records.append(_record(name, number, seconds=worker.start_s))
            except WorkerFailed as error:
                records.append(_record(name, number, error=str(error)))
    return records


def _record(peer: str | None, number: int, **values: Any) -> dict[str, Any]:
    return {"peer": peer, "figure": "start", "round": number, "setting": "", **values}


def _run(program: str, model: Path) -> float:
    command = [str(environments.python(environments.COMMON)), "-c", program, str(model)]
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - started
