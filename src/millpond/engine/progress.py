"""A progress bar over the texts of one call, or of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from ..errors import InvalidOption
from ..stats import CallProgress, ProgressHook
from .params import TextsInput

__all__ = ["ProgressBar", "progress_hook"]

# tqdm's own, with the time that is left told by the work and not by the number of texts.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{time_left}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):  # type: ignore[misc]
    """tqdm's, without its thread, for texts that are embedded longest first.

    ```python
    with ProgressBar(total=len(texts)) as bar:
        vectors = engine.embed(texts, progress=bar.advance)
    ```

    The first texts take the longest, so the time that is left is told by the share of the work
    that is done. `options` are tqdm's.
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


@contextmanager
def progress_hook(
    texts: TextsInput, progress: bool | ProgressHook
) -> Iterator[ProgressHook | None]:
    """A function to tell of finished texts: the caller's, that of a bar, or None.

    Raises `InvalidOption` for what is neither a truth value nor a function.
    """
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise InvalidOption(f"progress={progress!r}: it must be True, False or a function")
    if not progress:
        yield None
        return
    try:
        total = 1 if isinstance(texts, str) else len(texts)
    except TypeError:  # no texts at all, as the call is about to say
        total = 0
    with ProgressBar(total=total) as bar:
        yield bar.advance
