"""The entry of a child: `python -m millpond.runner.remote.child DESCRIPTOR`.

It loads what its parent says and runs batches, a thread for each that may run at a time.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import traceback
from typing import Any

from ..base import ModelRunner
from .batch_codec import batch_of, row_arrays
from .channel import Message, Port
from .errors import error_array, packed_error
from .messages import ConnectionEnded, receive_message, send_message
from .program import or_exit, run_as_child
from .task import ChildTask, RunnerFacts

__all__ = ["FREE_MEMORY", "GAVE_ROWS", "RAISED", "RUN"]

RUN, FREE_MEMORY = 1, 2
"""What a parent asks for."""
GAVE_ROWS, RAISED, DID = 1, 2, 3
"""What a child answers."""


class Turns:
    """Lets threads through in the order of the numbers they come with.

    The ranks of a model launch the same batches in the same order.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0  # under the condition

    def wait(self, number: int) -> None:
        """Wait for the turn of a number."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)

    def end(self) -> None:
        """The turn is over."""
        with self._changed:
            self._next += 1
            self._changed.notify_all()


class SlotServer:
    """Carries out what comes through one port, one thing after the other."""

    def __init__(self, port: Port, runner: ModelRunner, turns: Turns | None, *, answers: bool):
        self._port = port
        self._runner = runner
        self._turns = turns
        self._answers = answers

    def run(self) -> None:
        """Until the connection ends, and with it the process."""
        while True:
            command = self._port.receive()
            kind, arrays = self._carry_out(command)
            if self._answers:
                self._port.send(kind, arrays)
            else:
                self._port.acknowledge(kind)

    def _carry_out(self, command: Message) -> tuple[int, list[Any]]:
        is_launched = False
        if self._turns is not None:
            self._turns.wait(command.number)
        try:
            if command.kind == FREE_MEMORY:
                self._runner.free_memory()
                return DID, []
            handle = self._runner.launch(batch_of(command.arrays))
            if self._turns is not None:
                self._turns.end()
            is_launched = True
            rows = self._runner.collect(handle)
            return GAVE_ROWS, list(row_arrays(rows, padded_tokens=handle.padded_tokens))
        except Exception as error:
            if not self._answers:
                traceback.print_exc()  # the first rank's error is the one that is told
            memory = self._runner.is_out_of_memory(error)
            fatal = self._runner.is_fatal(error)
            return RAISED, list(error_array(error, is_out_of_memory=memory, is_fatal=fatal))
        finally:
            if self._turns is not None and not is_launched:
                self._turns.end()


class ParentHandler(logging.Handler):
    """Hands log records to the parent."""

    def __init__(self, connection: socket.socket, lock: threading.Lock) -> None:
        super().__init__()
        self._connection = connection
        self._lock = lock

    def emit(self, record: logging.LogRecord) -> None:
        """Called by any thread."""
        told = (record.name, record.levelno, record.getMessage())
        try:
            with self._lock:
                send_message(self._connection, ("log", told))
        except ConnectionEnded:  # and so does this process
            return


class Child:
    """The process: a connection to the parent, and what it has loaded."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sends = threading.Lock()
        self._orders: queue.SimpleQueue[tuple[Any, list[int]]] = queue.SimpleQueue()

    def run(self) -> None:
        """Load, say so, and serve for as long as there is a parent."""
        (task, level), _ = receive_message(self._connection)
        self._log_to_parent(level)
        threading.Thread(target=or_exit, args=(self._listen,), daemon=True).start()
        loaded = self._load(task)
        if loaded is None:
            return
        runner, answers = loaded
        (_, is_ordered), descriptors = self._orders.get()
        turns = Turns() if is_ordered else None
        ports = [Port([socket.socket(fileno=descriptor)]) for descriptor in descriptors]
        servers = [SlotServer(port, runner, turns, answers=answers) for port in ports]
        threads = [
            threading.Thread(target=or_exit, args=(server.run,), name=f"millpond-slot-{number}")
            for number, server in enumerate(servers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _load(self, task: ChildTask) -> tuple[ModelRunner, bool] | None:
        try:
            loaded = task.load()
            facts = RunnerFacts.of(loaded, task)
        except Exception as error:
            self._send("failed", packed_error(error))
            return None
        self._send("loaded", facts)
        return loaded.runner, task.rank.rank == 0

    def _send(self, what: str, value: Any) -> None:
        with self._sends:
            send_message(self._connection, (what, value))

    def _listen(self) -> None:
        while True:
            self._orders.put(receive_message(self._connection))

    def _log_to_parent(self, level: int) -> None:
        logger = logging.getLogger("millpond")
        logger.setLevel(level)
        logger.addHandler(ParentHandler(self._connection, self._sends))
        logger.propagate = False


if __name__ == "__main__":
    run_as_child(lambda connection: Child(connection).run())
