"""What every program of a child is run in: signals, standard streams, and how it ends.

A child lives as long as the connection to its parent: when that ends, because the engine is closed
or the parent is gone, however that ended, the child ends at once, in the middle of a pass too. No
signal that a terminal or a supervisor sends to a whole group ends it before its parent.

It is a program of its own and no `multiprocessing` child: that would import the user's main module
again, which has effects where it is not guarded, and which a notebook does not have.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from .messages import ConnectionEnded

__all__ = ["or_exit", "run_as_child"]

FAILED = 70  # the exit status where a thread ends that is not to


def run_as_child(work: Callable[[socket.socket], object]) -> None:
    """Do `work` with the connection whose descriptor is the program's argument, and exit."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    faulthandler.enable()
    os.dup2(2, 1)  # what is printed does not go among what the parent's program prints
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    or_exit(lambda: work(connection))
    sys.stderr.flush()
    os._exit(0)


def or_exit(work: Callable[[], object]) -> None:
    """Do what ends the process if it raises, or if its connection has ended."""
    try:
        work()
    except ConnectionEnded:
        os._exit(0)  # now: a pass may be running, and nothing is to be kept
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
