"""Whether torch's operators run on the calling thread as they do on any other.

A thread may have autocast on, a default device, or a mode that sees every operator. What a caller
set for its own work is not to change its vectors.
"""

from __future__ import annotations

import torch

__all__ = ["is_plain_thread"]


def is_plain_thread() -> bool:
    """Whether the thread has nothing set that changes operators on the CPU; False if unknown."""
    try:
        modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    except AttributeError:  # private names
        return False
    return modes == 0 and not torch.is_autocast_enabled("cpu")
