"""The entry of a child: `python -m millpond.runner.remote.child DESCRIPTOR`.

It loads what its parent says and runs batches, a thread for each that may run at a time. It lives
as long as the connection to its parent: when that ends, because the engine is closed or the parent
is gone, however that ended, the child ends at once, in the middle of a pass too. No signal that
a terminal or a supervisor sends to a whole group ends it before its parent.

It is a program of its own and no `multiprocessing` child: that would import the user's main module
again, which has effects where it is not guarded, and which a notebook does not have.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from ..base import ModelRunner
from .batch_codec import batch_of, row_arrays
from .channel import Message, Port
from .errors import error_array, packed_error
from .messages import ConnectionEnded, receive_message, send_message
from .task import ChildTask, RunnerFacts

__all__ = ["FREE_MEMORY", "GAVE_ROWS", "RAISED", "RUN", "main"]

RUN, FREE_MEMORY = 1, 2
"""What a parent asks for."""
GAVE_ROWS, RAISED, DID = 1, 2, 3
"""What a child answers."""
FAILED = 70  # the exit status where a thread ends that is not to


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
        threading.Thread(target=_or_exit, args=(self._listen,), daemon=True).start()
        loaded = self._load(task)
        if loaded is None:
            return
        runner, answers = loaded
        (_, is_ordered), descriptors = self._orders.get()
        turns = Turns() if is_ordered else None
        ports = [Port([socket.socket(fileno=descriptor)]) for descriptor in descriptors]
        servers = [SlotServer(port, runner, turns, answers=answers) for port in ports]
        threads = [
            threading.Thread(target=_or_exit, args=(server.run,), name=f"millpond-slot-{number}")
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


def _or_exit(work: Any) -> None:
    """Do what never ends but with the process."""
    try:
        work()
    except ConnectionEnded:
        os._exit(0)  # now: a pass may be running, and nothing is to be kept
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)


def main() -> None:
    """Be a child of the process at the other end of the descriptor."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    faulthandler.enable()
    os.dup2(2, 1)  # what is printed does not go among what the parent's program prints
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _or_exit(Child(connection).run)
    sys.stderr.flush()
    os._exit(0)  # where the model did not load


if __name__ == "__main__":
    main()
