"""Which device and which dtype a model gets."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidOption
from ..layers.cuda.float8 import has_float8_products
from ..layers.cuda.kernels.packed import packed_kernels

__all__ = ["choose_device", "choose_dtype"]

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises `InvalidOption` for a device that is not there, listing those that are.
    """
    available = _available_devices()
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if kind in available)
    if name not in available:
        raise InvalidOption(
            f"device={name!r} is not there{_why_not(name)}; choose auto or one of "
            f"{', '.join(available)}"
        )
    if name == "cuda":
        # Asking would open a device in a process that may not use any itself.
        cuda: Any = torch.cuda
        return torch.device("cuda", cuda.current_device() if cuda.is_initialized() else 0)
    return torch.device(name)


def _why_not(name: str) -> str:
    """Where the installed torch is the reason, or what it finds is."""
    kind = name.partition(":")[0]
    build: Any = torch.version
    if kind == "cuda":
        if build.cuda is None and getattr(build, "hip", None) is None:
            return (
                f": the installed torch {torch.__version__} is built without CUDA; install a build "
                "with it, as https://pytorch.org/get-started/locally says"
            )
        if not torch.cuda.is_available():
            return f": torch {torch.__version__} finds no GPU; nvidia-smi tells of the driver"
    if kind == "mps":
        mps: Any = torch.backends.mps
        if not mps.is_built():
            return f": the installed torch {torch.__version__} is built without MPS"
        return ": torch finds none; MPS is a Mac's, with Apple silicon"
    return "" if kind in ("cpu", "auto") else ": Millpond runs on CPUs, CUDA and MPS"


def _available_devices() -> list[str]:
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    mps: Any = torch.backends.mps
    if mps.is_available():
        names.append("mps")
    return names


def choose_dtype(
    name: str, *, device: torch.device, checkpoint_dtype: torch.dtype | None
) -> torch.dtype:
    """The precision of the transformer, for `auto`, a precision, `int8` or `fp8`.

    `auto` on CUDA: the checkpoint's own half type, and float16 for any other checkpoint; on a
    CPU that computes in bfloat16: bfloat16; elsewhere float32. `int8` is what is between its linear
    layers: that of `auto`, on a CPU; `fp8` is bfloat16, which its products give.
    """
    if name not in ("auto", "int8", "fp8", *DTYPES):
        raise InvalidOption(f"dtype={name!r}: choose one of auto, int8, fp8, {', '.join(DTYPES)}")
    if name == "fp8":
        refuse_float8(device)
        return torch.bfloat16
    if name == "int8":
        if device.type != "cpu":
            raise InvalidOption(f"dtype='int8' is for CPUs and this is {device}; choose 'auto'")
        name = "auto"
    if name == "float16" and device.type == "cpu":
        logger.warning("float16 is several times slower than float32 on a CPU; use dtype='auto'")
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        keeps_own = checkpoint_dtype == torch.bfloat16 and has_bfloat16
        return torch.bfloat16 if keeps_own else torch.float16
    if device.type == "cpu" and _cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def refuse_float8(device: torch.device) -> None:
    """Raise `InvalidOption` where products in float8 cannot run."""
    if device.type != "cuda":
        raise InvalidOption(
            f"dtype='fp8' is for GPUs that multiply in float8 and this is {device}; choose 'auto'"
        )
    if not has_float8_products(device):
        raise InvalidOption(
            f"dtype='fp8': {torch.cuda.get_device_name(device)} has no products in float8 (those "
            "need compute capability 8.9), or the installed torch has none; choose 'auto'"
        )
    if packed_kernels(device, float8=True) is None:
        raise InvalidOption(
            "dtype='fp8' needs Triton and a C compiler for it, and its kernels could not be made "
            "here; install both or choose 'auto'"
        )


def _cpu_computes_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products of its own and torch's kernels use them."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    # torch asks the processor itself, but only by private names that come and go.
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        probe: Callable[[], bool] | None = getattr(torch.cpu, name, None)
        if probe is not None and probe():
            return True
    return platform.system() == "Linux" and _linux_lists_bfloat16(Path("/proc/cpuinfo"))


def _linux_lists_bfloat16(cpuinfo: Path) -> bool:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))
