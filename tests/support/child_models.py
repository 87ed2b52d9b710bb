"""What tests load in child processes: fakes that need no torch.

Their faults are words of texts, as those of a `FakeRunner` are.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fakes import FakeRunner, FakeTokenizer, _texts_of, fake_spec, token

from millpond.config import EngineConfig
from millpond.engine.engine import Engine
from millpond.engine.instance import ModelInstance
from millpond.outputs import RaggedRows
from millpond.runner.remote.runner import RemoteRunner
from millpond.runner.remote.task import ChildTask, Loaded, Rank
from millpond.scheduler.batch import Batch

FAULTS = {
    "raises_on": ["bad"],
    "memory_error_on": ["huge"],
    "not_finite_on": ["nan"],
    "fatal_on": ["fatal"],
}


COLUMNS = np.arange(1, 9)


class ChildRunner(FakeRunner):
    """Gives each text the vector of its ids.

    A text with the word "die" kills the process, one with "hang" never comes home; before that its
    process writes its id into the file `hanging` of a folder.
    """

    folder: str = ""

    def _record(self, batch: Batch) -> None:
        return

    def collect(self, handle: Any) -> npt.NDArray[np.float32]:
        words = {one for ids in _texts_of(handle.batch) for one in ids.tolist()}
        if token("die") in words:
            print("the last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if token("hang") in words:
            Path(self.folder, "hanging").write_text(str(os.getpid()))
            threading.Event().wait()
        return super().collect(handle)


class TokenizerToSend(FakeTokenizer):
    """What its `reader` makes dies of the word "die", and raises for the word "unlike"."""

    def __init__(self, *, most_tokens: int = 8, is_again: bool = False) -> None:
        super().__init__(FakeRunner(max_length=most_tokens))
        self.reader: Any = lambda: partial(TokenizerToSend, most_tokens=most_tokens, is_again=True)
        self.texts = 0
        self._is_again = is_again

    def encode(self, texts: Any, **options: Any) -> Any:
        self.texts += len(texts)
        if self._is_again and "die" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is_again and "unlike" in texts:
            raise ValueError("the other process cannot read it")
        return super().encode(texts, **options)


def fails_to_load() -> Any:
    """In the place of what loads a tokenizer."""
    raise FileNotFoundError("the checkpoint is gone")


class RaggedRunner(ChildRunner):
    """Gives each text a row for each of its tokens."""

    def collect(self, handle: Any) -> Any:
        rows = [
            np.outer(ids, np.arange(1, 9)).astype(np.float32) for ids in _texts_of(handle.batch)
        ]
        return RaggedRows.of(rows, 8)


class NotedRunner(ChildRunner):
    """Notes the batches that it launches in a file of its rank."""

    rank = 0

    def launch(self, batch: Batch) -> Any:
        with Path(self.folder, f"launched-{self.rank}").open("a") as file:
            print(*[ids.tolist() for ids in _texts_of(batch)], file=file)
        return super().launch(batch)


def load(
    *, rank: Rank, folder: str = "", kind: str = "one", logs: str | None = None, **options: Any
) -> Loaded:
    """A fake, in a child."""
    kinds = {"one": ChildRunner, "ragged": RaggedRunner, "noted": NotedRunner}
    runner = kinds[kind](**FAULTS | options)
    runner.folder = folder
    if isinstance(runner, NotedRunner):
        runner.rank = rank.rank
    if logs is not None:
        logging.getLogger("millpond.somewhere").info(logs)
    return Loaded(runner, extra=os.getpid())


def load_with(options: dict[str, Any], *, rank: Rank) -> Loaded:
    """The same, with options as a task has them."""
    return load(rank=rank, **options)


def raise_at_load(error: Exception, *, rank: Rank) -> Loaded:
    """No model."""
    raise error


def die_at_load(*, rank: Rank) -> Loaded:
    """Neither."""
    print("no room for the weights", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hang_at_load(folder: str, *, rank: Rank) -> Loaded:
    """A load that takes for ever, and has begun when there is the file `hanging`."""
    Path(folder, "hanging").write_text(str(os.getpid()))
    threading.Event().wait()
    raise AssertionError


def task(loader: str = "load_with", *arguments: Any, **options: Any) -> ChildTask:
    """A child of one of these loaders."""
    given = arguments or (() if loader != "load_with" else (options,))
    return ChildTask(loader=f"child_models:{loader}", arguments=given)


def engine_of(*tasks: ChildTask) -> Engine:
    """An engine on fakes in processes of their own, which are the engine's to end."""
    renew = partial(RemoteRunner.load_several, [[each] for each in tasks])
    here = FakeRunner()
    config = EngineConfig(model="fake/model")
    instance = ModelInstance(fake_spec(here), renew(), [FakeTokenizer(here)], config, renew=renew)
    return Engine._on(instance.acquire())
