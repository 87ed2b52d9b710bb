"""The program of a `TokenizerProcess`: `python -m millpond.engine.tokenizer_child DESCRIPTOR`.

It makes tokenizers and answers calls, one after the other, for as long as there is a parent.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runner.remote.channel import Message, Port
from ..runner.remote.messages import receive_message
from ..runner.remote.program import run_as_child
from ..tokenization.backends.words import keep_to_words
from .tokenizer_process import ENCODED, RAISED, READY

__all__ = ["serve"]


def serve(connection: socket.socket) -> None:
    """Make the tokenizers that the parent sends and answer until the connection ends."""
    (readers, _), _ = receive_message(connection)
    keep_to_words()
    tokenizers = [make() for make in readers]
    port = Port([connection])
    port.send(READY)
    while True:
        port.send(*_answer(tokenizers, port.receive()))


def _answer(tokenizers: Sequence[Any], call: Message) -> tuple[int, Sequence[Any]]:
    try:
        route, method, texts, options = pickle.loads(call.arrays[0].tobytes())
        found = getattr(tokenizers[route], method)(texts, **options)
    except Exception:  # the parent finds out for itself which text it is
        return RAISED, ()
    return ENCODED, (
        np.ascontiguousarray(found.ids, dtype=np.int32),
        np.ascontiguousarray(found.lengths, dtype=np.int32),
        np.ascontiguousarray(found.truncated, dtype=np.bool_),
    )


if __name__ == "__main__":
    run_as_child(serve)
