"""`TokenizerProcess`: texts of ingestion tokenised in another process, which has an interpreter's
lock of its own.

A GPU is fed by a few threads of Python, and a thread that tokenises takes the lock from them for
milliseconds at a time: queries wait, and so does the GPU. In another process it takes nothing.

It starts with the engine's threads. Until it is ready, and wherever it cannot answer, this
process's own tokenizer does: a text is never refused for want of the other.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..config import TokenizerOption
from ..locks import this_thread_pauses
from ..runner.host import host_processors
from ..runner.remote.channel import Port
from ..runner.remote.messages import ConnectionEnded
from ..runner.remote.process import ChildProcess, can_start_children
from ..tokenization.token_ids import TokenizedTexts
from .tokenizer import TokenIds, Tokenizer, call_tokenizer

__all__ = ["ENCODED", "RAISED", "READY", "TokenizerProcess"]

TOKENIZE = 1
"""What the parent asks for: a pickle of route, method, texts and the other arguments, as uint8."""
READY, ENCODED, RAISED = 1, 2, 3
"""What a child answers: first that it is ready, then ids, lengths and truncated; or nothing."""
PROGRAM = "millpond.engine.tokenizer_child"
FEWEST_CHARACTERS = 2048  # of a call that is worth the way there and back
PROCESSORS_EACH = 4  # of which one may be a child's
OF_A_GPU = 4  # a small model reads as many tokens as those make
OF_A_GPU_BESIDE_QUERIES = 2  # more threads would keep the interpreter from queries
OF_A_REPLICA = 2  # on a CPU

logger = logging.getLogger("millpond")


class TokenizerProcess:
    """A child and its tokenizers. One thread uses and closes it, which no interrupt comes to."""

    def __init__(
        self,
        tokenizers: Sequence[Tokenizer],
        readers: Sequence[Callable[[], Callable[[], Any]]],
        *,
        rests_beside_queries: bool = False,
    ) -> None:
        """`readers` give what makes tokenizers that encode the same; it pickles."""
        self.rests_beside_queries = rests_beside_queries
        self._readers = tuple(readers)
        self._tokenizers = tuple(tokenizers)
        self._child: ChildProcess | None = None
        self._port: Port | None = None  # once the child is ready
        self.texts = 0
        """That the child has tokenised."""

    @classmethod
    def several(
        cls, tokenizers: Sequence[Tokenizer], asked: TokenizerOption, *, devices: Sequence[str]
    ) -> list[TokenizerProcess]:
        """None where it is not to be, or where one of the tokenizers cannot be made again.

        By itself there are some for each of the devices, as far as there are processors for them,
        and none for a single CPU. While one tokenises, the texts of another are handed over.
        """
        on_gpus = any("cuda" in device for device in devices)
        is_fed = on_gpus or len(devices) > 1
        if asked == "off" or (asked == "auto" and not is_fed) or not can_start_children():
            return []
        readers = [getattr(tokenizer, "reader", None) for tokenizer in tokenizers]
        if None in readers:
            return []
        most = (OF_A_GPU if on_gpus else OF_A_REPLICA) * len(devices) if is_fed else 1
        steady = OF_A_GPU_BESIDE_QUERIES * len(devices) if on_gpus else most
        count = min(host_processors() // PROCESSORS_EACH, most)
        if asked == "on":
            count = max(count, 1)
        makes = [each for each in readers if each]
        return [
            cls(tokenizers, makes, rests_beside_queries=number >= steady) for number in range(count)
        ]

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Start the child, without waiting for it. It raises nothing."""
        try:
            self._child = ChildProcess(PROGRAM, [reader() for reader in self._readers])
        except Exception as error:  # the system lets no process be started
            self._lose(error)

    def call(
        self, route: int, method: str, texts: Sequence[Any], options: Mapping[str, Any]
    ) -> TokenIds:
        """What `method` of a route's tokenizer gives. Raises what it raises."""
        this_thread_pauses()
        answer = None
        if sum(map(len, texts)) >= FEWEST_CHARACTERS:
            try:
                answer = self._ask((route, method, list(texts), options))
            except Exception as error:
                self._lose(error)
        if answer is not None:
            self.texts += len(texts)
            return answer
        return call_tokenizer(self._tokenizers, route, method, texts, options)

    def _ask(self, call: Any) -> TokenizedTexts | None:
        """The child's answer; None where it is not there, not ready, or raised."""
        if self._child is not None:
            self._child.read_written()
            if self._port is None and self._child.has_said_more():
                self._port = Port([self._child.connection])
                self._port.receive()
        if self._port is None:
            return None
        try:
            data = pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:  # texts of a class that does not pickle
            return None
        self._port.send(TOKENIZE, [np.frombuffer(data, dtype=np.uint8)])
        kind, _, arrays = self._port.receive()
        if kind != ENCODED:
            return None
        ids, lengths, truncated = (array.copy() for array in arrays)
        return TokenizedTexts(ids, lengths, truncated)

    def _lose(self, error: Exception) -> None:
        child = self._child
        self.close()
        if child is not None and isinstance(error, ConnectionEnded):
            reason = f"the tokenizer's {child.how_it_ended()}"
        else:
            reason = f"the tokenizer's process: {error}"
        logger.warning("%s; texts are tokenised in this process from now on", reason)

    def close(self) -> None:
        """End the child, and wait for that."""
        child, port, self._child, self._port = self._child, self._port, None, None
        if child is not None:
            if port is None:  # it is not ready, and would not see the connection's end
                child.kill()
            child.wait()
            child.close()

    def __repr__(self) -> str:
        return f"TokenizerProcess(pid={self.pid}, texts={self.texts})"
