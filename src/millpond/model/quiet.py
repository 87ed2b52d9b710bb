"""Keeping transformers from writing to the terminal while a model is loaded.

It puts everything back as it was; other threads keep their bars and messages.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

from ..checkpoint.hub import DisabledProgressBar
from ..locks import fork_safe

__all__ = ["quiet_transformers"]

# Held while transformers' setting for progress bars is ours.
_LOCK = fork_safe(threading.Lock())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and load report from this thread off the terminal.

    Other threads of the process may be loading models of their own and keep theirs. What was
    in place before is put back.
    """
    thread = threading.get_ident()
    previous: Any = None

    def drop(record: logging.LogRecord) -> bool:
        return record.thread != thread

    def make_bar(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() == thread:
            return DisabledProgressBar(*args, **kwargs)
        return previous(factory, args, kwargs) if previous else factory(*args, **kwargs)

    library = logging.getLogger("transformers")
    # A logger's filters see only its own records, a handler's those of all loggers below it.
    places: list[logging.Filterer] = [logging.getLogger("transformers.modeling_utils")]
    places += library.handlers
    for place in places:
        place.addFilter(drop)
    try:
        # Two at once would put each other's setting back in the wrong order.
        with _LOCK:
            previous = transformers_logging.set_tqdm_hook(make_bar)
            try:
                yield
            finally:
                transformers_logging.set_tqdm_hook(previous)
    finally:
        for place in places:
            place.removeFilter(drop)
