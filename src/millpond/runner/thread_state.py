"""Whether torch's operators run on the calling thread as they do on any other.

A thread may have autocast on, a default device, inference mode, or a mode that sees every operator.
What a caller set for its own work is not to change a model that it loads, nor its vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

__all__ = ["is_plain_thread", "on_plain_thread"]

Result = TypeVar("Result")


def is_plain_thread() -> bool:
    """Whether the thread has nothing set that changes operators; False if unknown."""
    try:
        modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    except AttributeError:  # private names
        return False
    autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps"))
    return modes == 0 and not autocast and not torch.is_inference_mode_enabled()


def on_plain_thread(work: Callable[[], Result]) -> Result:
    """What `work` gives, computed on the calling thread if it is plain, or else on a new one."""
    if is_plain_thread():
        return work()
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # No daemon: where the caller is interrupted, the interpreter's exit waits for it.
    threading.Thread(target=run, name="millpond-load").start()
    return done.result()
