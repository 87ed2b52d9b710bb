"""The thread count of the calling thread: OpenMP's and MKL's, for one pass."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from . import team

__all__ = [
    "has_room_for",
    "limited_threads",
    "may_use_several",
    "multiplied_parameters",
    "products_are_whole",
    "threads_for_check",
]

QUERY_OPERATIONS_PER_THREAD = 1.5e9


def may_use_several() -> bool:
    """Whether a caller's thread may take several: the main one, so one team is all that is made."""
    return threading.current_thread() is threading.main_thread()


def has_room_for(count: int) -> bool:
    """Whether short passes of the calling thread gain from `count` threads (see `team`)."""
    return openmp_library() is not None and team.has_room(openmp_library(), count)


def threads_for_check(model: nn.Module, tokens: int) -> contextlib.AbstractContextManager[None]:
    """Give the calling thread no more threads than a few passes of that many `tokens` use.

    On a busy processor a small model waits longer for a second thread than it computes. The
    caller's own count is back afterwards.
    """
    operations = 2 * multiplied_parameters(model) * tokens
    most = torch.get_num_threads()
    return limited_threads(clamped(1, operations / QUERY_OPERATIONS_PER_THREAD, most))


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Give the calling thread `count` OpenMP threads, and MKL only the calling one.

    Both counts are its own again afterwards; other threads keep theirs. Without an OpenMP to ask
    nothing changes.
    """
    if openmp_library() is None:
        yield
        return
    before, set_mkl_threads = torch.get_num_threads(), _mkl_threads()
    mkl_before = 0 if set_mkl_threads is None else set_mkl_threads(1)
    try:
        _set_own_threads(count)
        if count == 1:
            yield
        else:
            with team.apart(openmp_library(), count):
                yield
    finally:
        _set_own_threads(before)
        if set_mkl_threads is not None:
            set_mkl_threads(mkl_before)


def products_are_whole() -> bool:
    """Whether a product that torch gives to MKL is computed by one thread during a pass."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return True
    return torch.get_num_threads() == 1 or (
        openmp_library() is not None and _mkl_threads() is not None
    )


def clamped(least: int, wanted: float, most: int) -> int:
    return max(least, min(most, round(wanted)))


def multiplied_parameters(model: nn.Module) -> int:
    """The weights every token is multiplied with: all but tables of embeddings."""
    looked_up = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    }
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in looked_up)


def _set_own_threads(count: int) -> None:
    # The count is a variable of the calling thread, by the OpenMP specification (nthreads-var).
    # torch sets it once itself, at its first use in a thread, so that has to come before.
    torch.get_num_threads()
    openmp = openmp_library()
    assert openmp is not None
    openmp.omp_set_num_threads(count)


@cache
def _mkl_threads() -> Callable[[int], int] | None:
    """Sets how many threads MKL takes when the calling thread calls it, or None without an MKL.

    0 stands for what is set for the process. It gives what was set before, as Intel documents
    `mkl_set_num_threads_local`.
    """
    for library in _torch_libraries():
        try:
            set_threads, threads = library.MKL_Set_Num_Threads_Local, library.MKL_Get_Max_Threads
        except AttributeError:
            continue
        before = set_threads(1)
        works = threads() == 1
        set_threads(before)
        if works:
            return cast(Callable[[int], int], set_threads)
    return None


def _torch_libraries() -> Iterator[ctypes.CDLL]:
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        with contextlib.suppress(OSError):
            yield ctypes.CDLL(str(path))


@cache
def openmp_library() -> Any:
    """The OpenMP library that torch's own kernels use, or None."""
    for library in _torch_libraries():
        try:
            known = library.omp_set_num_threads, library.omp_get_max_threads
        except AttributeError:
            continue
        if all(known) and library.omp_get_max_threads() == torch.get_num_threads():
            return library
    return None


def _end_team() -> None:
    """Before a fork, on the thread that alone comes along: OpenMP in the child would wait for the
    rest of its team for ever, as soon as torch there uses several threads.

    It looks for no library: which one it is shows on the threads that use it."""
    if openmp_library.cache_info().currsize and (openmp := openmp_library()) is not None:
        team.end(openmp)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_team)
