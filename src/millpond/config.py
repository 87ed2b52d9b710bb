"""`EngineConfig`: what the user asked for, validated once and never written again.

It knows no model and no device: whether `device="cuda:3"` exists is for the code
that opens it to say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from .errors import InvalidOption

__all__ = ["DTypeName", "EngineConfig", "EngineOptions", "PoolingMode", "require_bool"]

DTypeName = Literal["auto", "float32", "float16", "bfloat16", "int8"]
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The options of an `Engine`. Hashable, so equal configurations can share one engine.

    Raises `InvalidOption` when a value cannot be meant.
    """

    model: str
    """A folder, or the name of a model as the Hugging Face hub spells it."""
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda` (every GPU), `cuda:N` or `mps`."""
    devices: Sequence[str] | None = None
    """Several devices of this host, each with a copy of the model, behind one queue; instead of
    `device`."""
    dtype: DTypeName = "auto"
    """Precision of the transformer; what follows it always runs in float32. `int8` is for CPUs with
    VNNI or AMX: linear layers in int8, the rest as with `auto`."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    max_length: int | None = None
    """Longest text in tokens, special tokens included; None for the checkpoint's own."""
    pooling: PoolingMode | tuple[PoolingMode, ...] | None = None
    """Instead of the checkpoint's pooling; several are concatenated."""
    normalize: bool | None = None
    """L2-normalise every vector (True), never (False), or as the checkpoint says (None)."""
    prompts: Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    """Prompts by name, over those the checkpoint saves. Kept as sorted pairs."""
    max_batch_tokens: int | Literal["auto"] = "auto"
    """Most tokens in one forward pass."""
    max_queue_tokens: int = 1_000_000
    """Most tokens waiting at each priority before `submit` blocks or raises `QueueFull`."""
    max_query_wait_ms: float = 30.0
    """Longest a query may wait behind ingestion, beside its own forward pass."""
    memory_utilization: float | None = None
    """Share of the device's memory the engine may fill, above 0 and at most 1, weights included.
    None for a good guest's: on CUDA batches take at most half of what is free at the start. On a
    CPU it limits the prefix cache alone."""
    memory_bytes: int | None = None
    """The same as a number of bytes, instead of a share."""
    prefix_cache: Literal["auto", "off"] = "auto"
    """Keep the keys and values of beginnings that texts share, where the model allows it: a decoder
    whose last token is the vector. Up to a tenth of the memory that is free, or up to half of what
    `memory_bytes` or `memory_utilization` leaves beside the weights."""
    warmup: bool = False
    """On CUDA: prepare for queries while loading, not at the first of each size."""
    batch_invariant: bool = False
    """The same bits whatever else is in flight. On CPU this is always so, save in bfloat16 on
    processors with matrix units (Intel's AMX), where it costs speed."""
    cache_dir: str | None = None
    """Where downloaded models are kept; None for Hugging Face's own cache."""

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; normalising is part of its birth
        set_field(self, "model", _path_string("model", self.model))
        if self.cache_dir is not None:
            set_field(self, "cache_dir", _path_string("cache_dir", self.cache_dir))
        if self.devices is not None:
            set_field(self, "devices", _device_names(self.devices))
        if isinstance(self.pooling, str):
            set_field(self, "pooling", (self.pooling,))
        elif self.pooling is not None:
            _require(
                isinstance(self.pooling, Sequence),
                f"pooling={self.pooling!r}: it must be the name of a mode, or a list of them",
            )
            set_field(self, "pooling", tuple(self.pooling))
        if self.prompts is not None:
            set_field(self, "prompts", _frozen_prompts(self.prompts))
        self._validate()

    @classmethod
    def of(cls, model: str | os.PathLike[str], options: EngineOptions) -> EngineConfig:
        """From keyword arguments. Raises `InvalidOption` for one that is not known, too."""
        known = EngineOptions.__annotations__
        unknown = sorted(set(options) - set(known))
        _require(
            not unknown,
            f"unknown option {', '.join(unknown)}; an engine takes {', '.join(sorted(known))}",
        )
        return cls(model=_path_string("model", model), **options)

    def _validate(self) -> None:
        _require(bool(self.model), "model is empty; name a folder or a model on the hub")
        _require(
            self.dtype in get_args(DTypeName),
            f"dtype={self.dtype!r}: choose one of {', '.join(get_args(DTypeName))}",
        )
        _require(
            isinstance(self.device, str) and bool(self.device),
            f"device={self.device!r}: choose auto, cpu, cuda, cuda:N or mps",
        )
        for mode in self.pooling or ():
            _require(
                mode in get_args(PoolingMode),
                f"pooling={mode!r}: choose among {', '.join(get_args(PoolingMode))}",
            )
        _require(self.pooling != (), "pooling is empty; leave it out for the checkpoint's own")
        for name in ("max_length", "max_batch_tokens", "max_queue_tokens"):
            value = getattr(self, name)
            if value in (None, "auto") and name != "max_queue_tokens":
                continue
            _require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"{name}={value!r}: it must be a whole number of tokens, at least 1",
            )
        wait = self.max_query_wait_ms
        _require(
            _is_number(wait) and 0 < wait < float("inf"),
            f"max_query_wait_ms={wait!r}: it must be a number of milliseconds above 0",
        )
        self._validate_memory()
        _require(
            self.devices is None or self.device == "auto",
            "device and devices both say where to run; give one of them",
        )
        _require(
            self.prefix_cache in ("auto", "off"),
            f"prefix_cache={self.prefix_cache!r}: choose 'auto' or 'off'",
        )
        for name in ("trust_remote_code", "warmup", "batch_invariant"):
            require_bool(name, getattr(self, name))
        if self.normalize is not None:
            require_bool("normalize", self.normalize)
        _require(
            self.revision is None or (isinstance(self.revision, str) and bool(self.revision)),
            f"revision={self.revision!r}: it must be the name of a branch, a tag or a commit",
        )

    def _validate_memory(self) -> None:
        share, size = self.memory_utilization, self.memory_bytes
        _require(
            share is None or (_is_number(share) and 0 < share <= 1),
            f"memory_utilization={share!r}: it must be a share above 0 and at most 1",
        )
        _require(
            size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0),
            f"memory_bytes={size!r}: it must be a whole number of bytes above 0",
        )
        _require(
            share is None or size is None,
            "memory_utilization and memory_bytes both limit the memory; give one of them",
        )


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig` but the model, as keyword arguments."""

    device: str
    devices: Sequence[str] | None
    dtype: DTypeName
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    pooling: PoolingMode | tuple[PoolingMode, ...] | None
    normalize: bool | None
    prompts: Mapping[str, str] | None
    max_batch_tokens: int | Literal["auto"]
    max_queue_tokens: int
    max_query_wait_ms: float
    memory_utilization: float | None
    memory_bytes: int | None
    prefix_cache: Literal["auto", "off"]
    warmup: bool
    batch_invariant: bool
    cache_dir: str | None


def _device_names(devices: Any) -> tuple[str, ...]:
    is_list = isinstance(devices, Sequence) and not isinstance(devices, str)
    _require(
        is_list and len(devices) > 0 and all(isinstance(name, str) and name for name in devices),
        f"devices={devices!r}: it must be a list of devices, such as ['cuda:0', 'cuda:1']",
    )
    return tuple(devices)


def _frozen_prompts(prompts: Any) -> tuple[tuple[str, str], ...]:
    try:
        frozen = dict(prompts)
    except (TypeError, ValueError):
        raise InvalidOption(f"prompts={prompts!r}: it must map names to texts") from None
    for name, text in frozen.items():
        _require(
            isinstance(name, str) and isinstance(text, str),
            f"prompts[{name!r}]={text!r}: names and prompts must be strings",
        )
    return tuple(sorted(frozen.items()))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidOption(message)


def require_bool(name: str, value: object) -> None:
    """Raise `InvalidOption` for anything but True and False: "false" and 0 mean one of them."""
    _require(isinstance(value, bool), f"{name}={value!r}: it must be True or False")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path_string(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):  # a path of bytes is none either
        raise InvalidOption(f"{name}={value!r}: it must be a string or a path")
    return path
