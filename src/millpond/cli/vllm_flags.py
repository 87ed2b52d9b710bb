"""`VllmFlags`: flags of `vllm serve`, so that its command lines work here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import typer

from ..config import EngineOptions

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

    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8", "float", "half"],
        typer.Option(help="Precision of the transformer."),
    ] = "auto"
    enable_prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="vLLM's: --prefix-cache auto, or off.",
            show_default=False,
        ),
    ] = None
    task: Annotated[
        Literal["auto", "embed", "embedding", "score", "classify"],
        typer.Option(help="vLLM's: the checkpoint says."),
    ] = "auto"
    runner: Annotated[
        Literal["auto", "pooling"], typer.Option(help="vLLM's: no model generates.")
    ] = "auto"
    convert: Annotated[
        Literal["auto", "embed", "classify", "none"],
        typer.Option(help="vLLM's: the checkpoint says."),
    ] = "auto"
    load_format: Annotated[
        Literal["auto", "safetensors"],
        typer.Option(help="vLLM's: weights are read as they are."),
    ] = "auto"
    max_num_seqs: Annotated[
        int | None, typer.Option(help="vLLM's, ignored: tokens bound a batch.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="vLLM's, ignored: nothing here is random.")] = (
        None
    )
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="vLLM's, ignored: CUDA graphs stay.")
    ] = False
    disable_log_requests: Annotated[
        bool,
        typer.Option("--disable-log-requests", help="vLLM's, ignored: no text is ever logged."),
    ] = False
    disable_log_stats: Annotated[
        bool, typer.Option("--disable-log-stats", help="vLLM's, ignored: no statistics are logged.")
    ] = False

    def engine_options(self, options: EngineOptions) -> EngineOptions:
        """Those of an engine, with what these flags say of them."""
        changed = {**options, "dtype": _DTYPES.get(self.dtype, self.dtype)}
        if self.enable_prefix_caching is not None:
            changed["prefix_cache"] = "auto" if self.enable_prefix_caching else "off"
        return cast(EngineOptions, changed)

    def ignored(self) -> list[str]:
        """The given flags that have no effect; `--help` says why."""
        return [f"--{name.replace('_', '-')}" for name in _IGNORED if getattr(self, name)]
