"""`InlineRun`: a lone query run by the thread that waits for it, which spares it two switches.

The thread is somebody else's and may be interrupted anywhere, so nothing that others depend on is
in its hands: the text is in no queue, and nobody follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..runner.base import ModelRunner
from ..scheduler.batch import Batch, Segment
from ..scheduler.deduplication import Duplicate
from ..scheduler.request import Request
from ..scheduler.request_future import OwnThreads, this_thread
from ..scheduler.token_chunk import TokenChunk
from ..stats import BatchStats
from .executor import NO_FOLLOWERS, BatchExecutor

__all__ = ["InlineRun"]


class InlineRun:
    """Runs jobs of one text. It is the `Listener` of its own executor.

    `ran` is told of the batch and `completed` of the job. While they run, the calling thread is
    counted among `threads`.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        threads: OwnThreads,
        clock: Callable[[], float],
        ran: Callable[[Batch, BatchStats], None],
        completed: Callable[[Request], None],
    ) -> None:
        self._runner = runner
        self._threads = threads
        self._clock = clock
        self.batch_ran = ran
        self.job_completed = completed

    def run(self, job: Request, chunk: TokenChunk) -> None:
        """Run the job's one text. Raises what no batch can survive."""
        shape = self._runner.shapes[job.route]
        padded_length = shape.padded_length(int(chunk.lengths[0]))
        batch = Batch(job.route, (Segment(job, chunk, 0, 1),), padded_length)
        executor = BatchExecutor(self._runner, self, clock=self._clock)
        before = this_thread.works_for
        try:
            this_thread.works_for = self._threads
            executor.launch(batch)
            executor.finish_oldest()
        finally:
            this_thread.works_for = before

    def out_of_memory(self, batch: Batch) -> None:
        """Nothing: one text is not divided."""

    def batch_landed(self, batch: Batch, *, keep: bool) -> Mapping[int, Sequence[Duplicate]]:
        """Nobody waits for its text."""
        return NO_FOLLOWERS

    def batch_failed(self, batch: Batch) -> None:
        """Nothing: nobody goes on from it."""

    def texts_dropped(self, segments: Sequence[Segment]) -> None:
        """Nothing: nobody waits for it."""
