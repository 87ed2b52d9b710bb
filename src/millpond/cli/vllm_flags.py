"""`VllmFlags`: flags of `vllm serve`, so that its command lines work here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from ..config import EngineOptions, option

__all__ = ["VLLM_NAMES", "VllmFlags"]

_DTYPES: dict[str, Any] = {"float": "float32", "half": "float16"}
VLLM_NAMES = {
    "cache_dir": ("--download-dir",),
    "max_batch_tokens": ("--max-num-batched-tokens",),
    "max_length": ("--max-model-len",),
    "memory_utilization": ("--gpu-memory-utilization",),
    "tensor_parallel_size": ("-tp",),
}
"""Options of an engine that have a flag of vLLM's name, too."""
_IGNORED = ("max_num_seqs", "seed", "enforce_eager", "disable_log_requests", "disable_log_stats")


@dataclass(frozen=True, kw_only=True)
class VllmFlags:
    """Those that mean an option of an engine, those that say what is so anyway, and the ignored."""

    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8", "float", "half"] = (
        option("auto", "Precision of the transformer.")
    )
    enable_prefix_caching: bool | None = option(None, "vLLM's: --prefix-cache auto, or off.")
    task: Literal["auto", "embed", "embedding", "score", "classify"] = option(
        "auto", "vLLM's: the checkpoint says."
    )
    runner: Literal["auto", "pooling"] = option("auto", "vLLM's: no model generates.")
    convert: Literal["auto", "embed", "classify", "none"] = option(
        "auto", "vLLM's: the checkpoint says."
    )
    load_format: Literal["auto", "safetensors"] = option(
        "auto", "vLLM's: weights are read as they are."
    )
    max_num_seqs: int | None = option(None, "vLLM's, ignored: tokens bound a batch.")
    seed: int | None = option(None, "vLLM's, ignored: nothing here is random.")
    enforce_eager: bool = option(False, "vLLM's, ignored: CUDA graphs stay.")
    disable_log_requests: bool = option(False, "vLLM's, ignored: no text is ever logged.")
    disable_log_stats: bool = option(False, "vLLM's, ignored: no statistics are logged.")

    def engine_options(self, options: EngineOptions) -> EngineOptions:
        """Those of an engine, with what these flags say of them."""
        changed = {**options, "dtype": _DTYPES.get(self.dtype, self.dtype)}
        if self.enable_prefix_caching is not None:
            changed["prefix_cache"] = "auto" if self.enable_prefix_caching else "off"
        return cast(EngineOptions, changed)

    def ignored(self) -> list[str]:
        """The given flags that have no effect; `--help` says why."""
        return [f"--{name.replace('_', '-')}" for name in _IGNORED if getattr(self, name)]
