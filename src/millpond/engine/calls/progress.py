"""Progress hooks: a bar over the texts of one call or several, and a log of those cut short."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tqdm.auto import tqdm

from ...errors import InvalidOption
from ...stats import CallProgress, ProgressHook
from ..params.embed import TextsInput

__all__ = ["NO_HOOK", "CallTotals", "ProgressBar", "TruncationLog", "progress_hook"]

logger = logging.getLogger("millpond")

# tqdm's own, with the time that is left computed from the work and not from the number of texts.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{time_left}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):  # type: ignore[misc]
    """tqdm's, without its thread, for texts that are embedded longest first.

    ```python
    with ProgressBar(total=len(texts)) as bar:
        vectors = engine.embed(texts, progress=bar.advance)
    ```

    The first texts take the longest, so the time that is left is computed from the share of the
    work that is done. `options` are tqdm's.
    """

    monitor_interval = 0  # tqdm's own thread would outlive the engine
    _done = 0.0  # share of the work; only advance changes it

    def __init__(self, **options: Any) -> None:
        bar = BAR if options.get("total") else None
        super().__init__(**{"unit": "text", "smoothing": 0.1, "bar_format": bar, **options})

    def advance(self, progress: CallProgress) -> None:
        """Count the texts of a batch, from any thread."""
        with self.get_lock():
            self._done += progress.share
            self.update(progress.texts)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What is shown, by the names in `BAR`."""
        shown: dict[str, Any] = super().format_dict
        left = "?"
        if self._done > 0:
            left = self.format_interval(shown["elapsed"] * max(0.0, 1 / self._done - 1))
        return {**shown, "time_left": left}


NO_HOOK: AbstractContextManager[ProgressHook | None] = nullcontext()


def progress_hook(
    texts: TextsInput, progress: bool | ProgressHook
) -> AbstractContextManager[ProgressHook | None]:
    """A function to call as texts end: the caller's, that of a bar, or None.

    Raises `InvalidOption` for what is neither a truth value nor a function.
    """
    if callable(progress):
        return nullcontext(progress)
    if not isinstance(progress, bool):
        raise InvalidOption(f"progress={progress!r}: it must be True, False or a function")
    return _bar(texts) if progress else NO_HOOK


@contextmanager
def _bar(texts: TextsInput) -> Iterator[ProgressHook]:
    try:
        total = 1 if isinstance(texts, str) else len(texts)
    except TypeError:  # no texts at all, as the call is about to say
        total = 0
    with ProgressBar(total=total) as bar:
        yield bar.advance


class CallTotals:
    """A progress hook that adds up what it is called with, and passes it on."""

    def __init__(self, then: ProgressHook | None = None) -> None:
        self.texts = self.truncated = 0  # under the lock: the engine's threads call it
        self._then = then
        self._lock = threading.Lock()

    def __call__(self, progress: CallProgress) -> None:
        with self._lock:
            self.texts += progress.texts
            self.truncated += progress.truncated
        if self._then is not None:
            self._then(progress)


class TruncationLog:
    """Logs that calls cut texts short, when such texts are twice as many as when it last did.

    `advice` says what to do about it where the model reads N tokens, None for no one limit.
    Without a lock: two calls that end at once may miscount, which a log line survives.
    """

    def __init__(self, advice: Callable[[int | None], str]) -> None:
        self.texts = self.truncated = self._logged = 0
        self._advice = advice

    @contextmanager
    def call(
        self, max_length: int | None, then: ProgressHook | None = None
    ) -> Iterator[CallTotals]:
        """The progress hook for a call, or for several in one; it calls `then` too."""
        totals = CallTotals(then)
        yield totals
        self.texts += totals.texts
        self.truncated += totals.truncated
        if totals.truncated and self.truncated >= 2 * self._logged:
            self._logged = self.truncated
            logger.warning(
                "%d of %d texts were longer than the %smodel reads and lost a part: %s",
                *(self.truncated, self.texts),
                "" if max_length is None else f"{max_length} tokens the ",
                self._advice(max_length),
            )

    def __repr__(self) -> str:
        return f"TruncationLog(texts={self.texts}, truncated={self.truncated})"
