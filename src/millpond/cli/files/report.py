"""`Report`: the progress bar and the summary of `millpond embed`."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from ...engine.calls.progress import ProgressBar
from ...stats import CallProgress
from .partial_output import PartialOutput
from .run import FileRun
from .streams import StreamOutput

__all__ = ["Report"]


class Report:
    """`ran` is called on the engine's threads, the others on the main thread."""

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
        self._bar: ProgressBar | None = None  # set before any batch

    def bar(self, *, show: bool) -> ProgressBar:
        """The progress bar; to be entered before `ran` and `saved` are called."""
        input_info = self._run.input_info
        self._bar = ProgressBar(
            desc=self._run.output.name,
            total=None if input_info is None else input_info.rows,
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
        input_info = self._run.input_info
        left = 0 if input_info is None else input_info.rows - self._before
        return min(1.0, self._run.chunk_rows / left) if left else 0.0

    def saved(self, rows: int) -> None:
        """Show the rows that are on disk, or written to the stream."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._output.rows:,} {self._saved_as}")

    def interruption(self) -> str:
        """The message after Ctrl-C."""
        input_info, rows = self._run.input_info, self._output.rows
        if isinstance(self._output, StreamOutput):
            return f"interrupted; {rows:,} rows were written"
        if input_info is None or not rows:
            return "interrupted; nothing was kept"
        return (
            f"interrupted; {rows:,} of {input_info.rows:,} rows are on disk; the same command "
            "with --resume continues"
        )

    def summary(self) -> str:
        """The message after a complete run."""
        texts = self._output.rows - self._before
        noun = "text" if texts == 1 else "texts"
        seconds = time.monotonic() - self._started_s
        summary = f"{texts:,} {noun} in {seconds:.1f} s → {self._name}"
        if self._before:
            summary += f", with {self._before:,} from an earlier run"
        if self._truncated:
            tokens = self._longest_tokens
            limit = "the model reads" if tokens is None else f"the {tokens} tokens the model reads"
            verb = "was" if self._truncated == 1 else "were"
            summary += (
                f"; {self._truncated:,} {verb} longer than {limit} and truncated: split such texts "
                "before, or try a higher --max-length"
            )
        return summary

    @property
    def _name(self) -> str:
        return "standard output" if str(self._run.output) == "-" else str(self._run.output)

    @property
    def _saved_as(self) -> str:
        return "written" if isinstance(self._output, StreamOutput) else "on disk"
