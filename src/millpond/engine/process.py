"""What belongs to the process: models that engines share, the threads exit waits for, and forks.

A thread that frees tensors, or is in the middle of a pass, while the interpreter finalises takes
the process down with it. Its caller may be gone by then: an engine without references finishes what
it accepted. And a fork leaves all threads but one behind.
"""

from __future__ import annotations

import atexit
import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..config import EngineConfig
from ..errors import EngineError
from ..locks import SteadyFuture, fork_safe

__all__ = ["Instance", "add_instance", "at_work", "ends", "register", "shared", "unshare"]


class Stoppable(Protocol):
    """What threads work for; they hold it while they run."""

    def close(self, *, drain: bool, wait: bool) -> None:
        """Have them come to their end."""


class Instance(Protocol):
    """A model that is served in this process."""

    def acquire_to_share(self) -> Any | None:
        """A handle for one more engine, or None where it serves no more."""

    def after_fork_in_child(self) -> None:
        """Its threads stayed behind."""


Loading = SteadyFuture["weakref.ref[Any]"]

# Under the lock: instances by configuration, in the making or made. Weakly: one
# without references is not kept by having been shared.
_shared: dict[EngineConfig, Loading] = {}
_shared_lock = fork_safe(threading.RLock())

# Changed by single operations alone, for a fork, an interrupt or a collection may come at any time.
_instances: weakref.WeakSet[Instance] = weakref.WeakSet()
_threads: dict[threading.Thread, weakref.ref[Stoppable]] = {}
at_work: set[threading.Lock] = set()
"""Each is held by a caller's thread while it runs native code; the exit waits for them."""
ends = threading.Event()
"""Set when the process ends: a caller's thread that is not at work begins nothing any more."""


# Shared instances.


def add_instance(instance: Instance) -> None:
    """Have it notified of a fork. It is not kept."""
    _instances.add(instance)


def shared(config: EngineConfig, load: Callable[[], Any]) -> Any:
    """A handle on the instance of a configuration, which the first to ask loads.

    `load` gives a handle, whose `instance` is remembered. Raises what it raises.
    """
    ours: Loading = SteadyFuture()
    try:
        while True:
            with _shared_lock:
                loading = _shared.setdefault(config, ours)
            if loading is ours:
                handle = load()
                ours.set_result(weakref.ref(handle.instance))
                return handle
            found = _loaded(loading)
            if found is not None and (held := found.acquire_to_share()) is not None:
                return held
            _remove(config, loading)
    except BaseException as error:
        if not ours.done():
            _remove(config, ours)
            interrupted = EngineError("loading the model was interrupted; try again")
            ours.set_exception(error if isinstance(error, Exception) else interrupted)
        raise


def unshare(config: EngineConfig, instance: Instance) -> None:
    """Give the instance to no further engine of its configuration."""
    with _shared_lock:
        loading = _shared.get(config)
    if loading is None or not loading.done() or loading.exception() is not None:
        return
    if loading.result()() is instance:
        _remove(config, loading)


def _loaded(loading: Loading) -> Any | None:
    """What another thread loads, waited for; None if it is gone again. Raises its error."""
    error = loading.exception()
    if error is None:
        return loading.result()()
    try:  # each thread its own: raising an object adds to its traceback
        again = copy.copy(error)
    except Exception:  # an error of another library's that does not copy
        again = error
    again.__cause__ = error.__cause__
    raise again


def _remove(config: EngineConfig, loading: Loading) -> None:
    with _shared_lock:
        if _shared.get(config) is loading:
            del _shared[config]


# Threads.


def register(owner: Stoppable, threads: Iterable[threading.Thread]) -> None:
    """Threads were started for `owner`, which is not kept."""
    for thread in list(_threads):
        if not thread.is_alive():
            _threads.pop(thread, None)
    _threads.update(dict.fromkeys(threads, weakref.ref(owner)))


# The end of the process, and its copies.


def _stop_all() -> None:
    """Close every owner, and wait until all the threads have ended."""
    ends.set()
    for found in list(_threads.values()):
        if (owner := found()) is not None:
            owner.close(drain=False, wait=False)
    for thread in list(_threads):
        thread.join()
    for held in list(at_work):
        held.acquire()  # by now its thread is through, or finds that the process ends


def _after_fork_in_child() -> None:
    """The threads stayed behind. `locks` has freed what they held."""
    _threads.clear()
    at_work.clear()
    ends.clear()
    for config, loading in list(_shared.items()):
        if not loading.is_done_in_child():  # its loading thread stayed behind
            del _shared[config]
    for instance in list(_instances):
        instance.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_stop_all)
