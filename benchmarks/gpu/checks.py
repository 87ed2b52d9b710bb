"""What has to be right before figures of a GPU mean anything: tests that need one, and vectors."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from millpond import Engine
from millpond.layers.cuda import fusion as cuda_fusion

from .report import Report

ROOT = Path(__file__).parents[2]
TESTS = (
    *("tests/layers/cuda/test_fusion.py", "tests/runner/cuda/test_graphs.py"),
    "tests/behaviour/test_gpu.py",
)
WORKERS = 4
LEAST_COSINE = {"float16": 0.999, "bfloat16": 0.99, "float32": 0.99999}
OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")


@dataclass
class RunningTests:
    """The tests that need a GPU, in a process of their own: what they break breaks nothing here."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    @classmethod
    def start(cls, folder: Path, tests: Sequence[str] = TESTS) -> RunningTests | None:
        """None where there is no pytest."""
        if importlib.util.find_spec("pytest") is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        output = (folder / "gpu_tests.txt").open("wb")
        several = importlib.util.find_spec("xdist") is not None
        command = [sys.executable, "-m", "pytest", *tests, "-v", "-m", "gpu"]
        command += ["--rootdir", str(ROOT), "-c", os.devnull, "--import-mode", "importlib"]
        command += ["-p", "no:cacheprovider", "--tb", "short", "--color", "no"]
        command += ["-n", str(WORKERS)] if several else []
        paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tests/support"))
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # its workers end with it
        )
        return cls(process, output)

    def end(self, report: Report, *, wait_s: float) -> None:
        """Wait that long and no longer, and report what has been tried by then."""
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            report.left_out.append(f"tests: those that were not done after {wait_s:.0f} s")
        self.output.close()
        text = Path(self.output.name).read_text(errors="replace")
        report_tests(report, text)


def report_tests(report: Report, text: str) -> None:
    """What `pytest -v` printed, in numbers; what did not pass by name."""
    lines = [line for line in text.splitlines() if "::" in line and OUTCOME.search(line)]
    seen = {_name(line): OUTCOME.findall(line)[0] for line in lines if " - " not in line}
    counts = Counter(seen.values())
    failed = [name for name, outcome in seen.items() if outcome in ("FAILED", "ERROR")]
    report.check("tests", "passed", counts["PASSED"], not failed and counts["PASSED"] > 0)
    report.check("tests", "skipped", counts["SKIPPED"], True)
    report.errors += [f"test failed: {name}" for name in failed]
    if not seen:
        report.errors.append(f"tests: none ran: {text[-300:]}")


def _name(line: str) -> str:
    """The test's, of a line that may begin or end with the outcome and the progress."""
    return OUTCOME.sub("", re.sub(r"\[[^\]]*\d%\]|^\[gw\d+\]", "", line)).strip()


def check_kernels(report: Report) -> None:
    """Whether decoders get Triton's kernels here."""
    found = cuda_fusion._kernels(torch.device("cuda", torch.cuda.current_device()))
    report.check("kernels", "Triton compiles them", float(found is not None), found is not None)


def least_cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def check_agreement(
    report: Report, name: str, engine: Engine, reference: SentenceTransformer, texts: list[str]
) -> None:
    """The vectors of the reference in float32."""
    expected = reference.encode(texts, batch_size=16, show_progress_bar=False)
    info = engine.info()
    for again in ("", ", replayed"):
        cosine = least_cosine(engine.embed(texts), expected)
        passed = cosine >= LEAST_COSINE[info.dtype]
        report.check(name, f"cosine to float32, {info.dtype}{again}", cosine, passed)
        engine.embed(texts)
    report.check(name, "runs packed", 1.0, info.execution == "packed")
    if info.execution != "packed":
        report.errors.append(f"{name}: {info.routes[0].reason}")


def check_same_bits(report: Report, name: str, engine: Engine, texts: list[str]) -> None:
    """With `batch_invariant=True`, a text has the same bits in every batch."""
    together = engine.embed(texts)
    in_reverse = engine.embed(texts[::-1])[::-1]
    halves = np.concatenate([engine.embed(part) for part in (texts[:7], texts[7:])])
    alone = np.stack([engine.embed(text) for text in texts])
    differing = sum(
        int((other != together).any(axis=1).sum()) for other in (in_reverse, halves, alone)
    )
    report.check(name, "batch_invariant: texts whose bits differ", differing, differing == 0)
