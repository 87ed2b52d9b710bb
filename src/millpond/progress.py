"""A progress bar over the texts of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from .request import TextsInput

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar(tqdm):  # type: ignore[misc]
    """tqdm's, without its thread."""

    monitor_interval = 0  # tqdm's own thread would outlive the engine


@contextmanager
def progress_bar(texts: TextsInput, *, show: bool) -> Iterator[Callable[[int], object] | None]:
    """A function to tell of finished texts, or None where no bar is to be shown."""
    if not show:
        yield None
        return
    try:
        total = 1 if isinstance(texts, str) else len(texts)
    except TypeError:  # no texts at all, as the call is about to say
        total = 0
    with ProgressBar(total=total, unit="text", smoothing=0.1) as bar:
        yield bar.update
