"""`SharedMemory`: memory that two processes see, and arrays in it.

It has no name: a process that holds its descriptor has it, and when both processes are gone,
however they ended, so is the memory. Nothing is left in /dev/shm, and a container's limit of that
does not apply. Pages are taken as they are first written to.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SharedMemory", "array_bytes"]

Array = npt.NDArray[Any]

SMALLEST_BYTES = 1 << 16
ALIGNMENT = 8
DTYPES = tuple(map(np.dtype, ("int64", "int32", "float32", "uint8", "bool")))


class SharedMemory:
    """Bytes that hold one list of arrays at a time. Unmapped when nothing refers to it."""

    def __init__(self, descriptor: int) -> None:
        """Map all that is behind a descriptor, which is closed."""
        try:
            self.bytes = os.fstat(descriptor).st_size
            self._map = mmap.mmap(descriptor, self.bytes)
        finally:
            os.close(descriptor)

    @classmethod
    def create(cls, least_bytes: int) -> tuple[SharedMemory, int]:
        """Memory for that many bytes or more, and a descriptor to hand over and close."""
        size = max(SMALLEST_BYTES, 1 << (least_bytes - 1).bit_length())
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, size)
            return cls(os.dup(descriptor)), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def write(self, arrays: Sequence[Array]) -> None:
        """Copy arrays of one dimension to the beginning. They fit: see `array_bytes`."""
        table = np.array([[DTYPES.index(a.dtype), len(a)] for a in arrays], dtype=np.int64)
        head = np.frombuffer(self._map, np.int64, 1 + table.size)
        head[0] = len(arrays)
        head[1:] = table.ravel()
        start = head.nbytes
        for array in arrays:
            np.frombuffer(self._map, array.dtype, len(array), start)[:] = array
            start += _aligned(array.nbytes)

    def read(self) -> list[Array]:
        """The arrays, as they lie there: they change with the next `write` of any process."""
        count = int(np.frombuffer(self._map, np.int64, 1)[0])
        table = np.frombuffer(self._map, np.int64, 2 * count, ALIGNMENT).reshape(count, 2)
        start = ALIGNMENT + table.nbytes
        arrays = []
        for kind, length in table.tolist():
            array = np.frombuffer(self._map, DTYPES[kind], length, start)
            arrays.append(array)
            start += _aligned(array.nbytes)
        return arrays

    def __repr__(self) -> str:
        return f"SharedMemory({self.bytes:,} bytes)"


def array_bytes(arrays: Sequence[Array]) -> int:
    """Bytes that a list of arrays takes."""
    return ALIGNMENT * (1 + 2 * len(arrays)) + sum(_aligned(array.nbytes) for array in arrays)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("millpond")
    descriptor, path = tempfile.mkstemp(prefix="millpond-")
    os.unlink(path)
    return descriptor
