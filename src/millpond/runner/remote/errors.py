"""Errors that come from a child: the same object where it can be, else one that says as much."""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["ArrivedError", "ChildTraceback", "arrived", "arrived_of", "error_array", "packed_error"]

OUT_OF_MEMORY, FATAL = 1, 2


class ChildTraceback(Exception):
    """The cause of an error that came from a child: where it was raised there."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class ArrivedError(NamedTuple):
    """An error of a batch, and what the runner that raised it says of it."""

    error: Exception
    is_out_of_memory: bool
    is_fatal: bool


def packed_error(error: BaseException) -> bytes:
    """An error as bytes: pickled where that works, and what it says where it does not."""
    lines = "".join(traceback.format_exception(error))
    kind = type(error)
    told = kind.__module__, kind.__qualname__, str(error), lines
    try:
        pickled = pickle.dumps(error)
    except Exception:  # whatever its class does
        pickled = b""
    return pickle.dumps((pickled, *told))


def arrived(data: bytes) -> Exception:
    """The error of those bytes, caused by a `ChildTraceback`.

    One of a module that this process has not imported, or that does not pickle, is a class of its
    own with the same name and message: the parent is not to import torch for it.
    """
    pickled, module, name, message, lines = pickle.loads(data)
    error: Exception | None = None
    if pickled and module in sys.modules:
        try:
            found = pickle.loads(pickled)
        except Exception:  # a class that takes other arguments than it keeps
            found = None
        error = found if isinstance(found, Exception) else None
    if error is None:
        error = type(name.rpartition(".")[2], (RuntimeError,), {"__module__": module})(message)
    error.__cause__ = ChildTraceback(lines)
    return error


def error_array(
    error: Exception, *, is_out_of_memory: bool, is_fatal: bool
) -> list[npt.NDArray[np.uint8]]:
    """An error of a batch, to go through a port."""
    flags = is_out_of_memory * OUT_OF_MEMORY | is_fatal * FATAL
    return [np.frombuffer(bytes([flags]) + packed_error(error), dtype=np.uint8)]


def arrived_of(array: npt.NDArray[np.uint8]) -> ArrivedError:
    """What `error_array` packed."""
    flags, data = int(array[0]), array[1:].tobytes()
    return ArrivedError(arrived(data), bool(flags & OUT_OF_MEMORY), bool(flags & FATAL))
