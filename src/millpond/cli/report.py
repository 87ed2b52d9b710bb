"""`Report`: how a run of `millpond embed` goes, counted and put into words."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from ..engine.progress import ProgressBar
from ..stats import CallProgress
from .files.partial_output import PartialOutput
from .files.run import FileRun
from .files.streams import StreamOutput

__all__ = ["Report"]


class Report:
    """Hears of batches from the engine's threads, and of rows that are safe from the run's own."""

    def __init__(
        self, run: FileRun, output: PartialOutput | StreamOutput, *, longest_tokens: int | None
    ) -> None:
        self._run = run
        self._output = output
        self._longest_tokens = longest_tokens
        self._before = output.rows
        self._started_s = time.monotonic()
        self._lock = threading.Lock()
        self._truncated = 0  # under the lock
        self._bar: ProgressBar | None = None  # set before anything runs

    def bar(self, *, show: bool) -> ProgressBar:
        """The bar that `ran` and `saved` move, to be entered before they are called."""
        facts = self._run.facts
        self._bar = ProgressBar(
            desc=self._run.output.name,
            total=None if facts is None else facts.rows,
            initial=self._before,
            disable=not show,
        )
        return self._bar

    def ran(self, progress: CallProgress) -> None:
        """Count a batch."""
        with self._lock:
            self._truncated += progress.truncated
        if self._bar is not None:
            self._bar.advance(replace(progress, share=progress.share * self._share_of_chunk))

    @property
    def _share_of_chunk(self) -> float:
        facts = self._run.facts
        left = 0 if facts is None else facts.rows - self._before
        return min(1.0, self._run.chunk_rows / left) if left else 0.0

    def saved(self, rows: int) -> None:
        """Rows are on the disk, or written."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._output.rows:,} {self._safe}")

    def interruption(self) -> str:
        """What is left of a run that the user interrupted."""
        facts, rows = self._run.facts, self._output.rows
        if isinstance(self._output, StreamOutput):
            return f"interrupted; {rows:,} rows were written"
        if facts is None or not rows:
            return "interrupted; nothing was kept"
        return (
            f"interrupted; {rows:,} of {facts.rows:,} rows are safe, and the same command "
            "with --resume goes on from there"
        )

    def summary(self) -> str:
        """What a run that came to its end has done."""
        texts = self._output.rows - self._before
        noun = "text" if texts == 1 else "texts"
        seconds = time.monotonic() - self._started_s
        summary = f"{texts:,} {noun} in {seconds:.1f} s → {self._name}"
        if self._before:
            summary += f", with {self._before:,} from before"
        if self._truncated:
            tokens = self._longest_tokens
            limit = "the model reads" if tokens is None else f"the {tokens} tokens the model reads"
            verb = "was" if self._truncated == 1 else "were"
            summary += (
                f"; {self._truncated:,} of them {verb} longer than {limit} and lost a part: split "
                "such texts before, or try a higher --max-length"
            )
        return summary

    @property
    def _name(self) -> str:
        return "standard output" if str(self._run.output) == "-" else str(self._run.output)

    @property
    def _safe(self) -> str:
        return "written" if isinstance(self._output, StreamOutput) else "safe"
