"""`EngineConfig`: the options of an engine, validated once and never written again.

This is where an option is declared: its name, type, default and description. The command line and
the adapters take them from here. It knows no model and no device: whether `device="cuda:3"`
exists is for the code that opens it to say.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, get_args

from .errors import InvalidOption

__all__ = [
    "DTypeName",
    "EngineConfig",
    "EngineOptions",
    "PoolingMode",
    "TokenizerOption",
    "is_count",
    "is_number",
    "option",
    "require",
    "require_bool",
]

DTypeName = Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8"]
TokenizerOption = Literal["auto", "on", "off"]
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

RENAMED = {
    "backend": "there is none: the model runs in PyTorch",
    "batch_size": "batches are sized in tokens; max_batch_tokens bounds them",
    "cache_folder": "it is called cache_dir",
    "compile": "it is gone",
    "deterministic": "it is called batch_invariant",
    "device_map": "device takes one or several",
    "devices": "device takes one or several",
    "dimensions": "it is an option of a call",
    "encode_kwargs": "they are options of a call",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "max_seq_length": "it is called max_length",
    "model_kwargs": "they are options of their own, such as device and dtype",
    "normalize": "it is an option of a call",
    "normalize_embeddings": "normalize is an option of a call",
    "token": "set HF_TOKEN",
    "torch_dtype": "it is called dtype",
    "truncate_dim": "dimensions is an option of a call",
}
"""What options that there are no more, or that sentence-transformers has, are called here."""

_COUNTS = {
    "max_length": "tokens",
    "max_batch_tokens": "tokens",
    "max_queue_tokens": "tokens",
    "replicas": "copies",
    "tensor_parallel_size": "devices",
    "memory_bytes": "bytes",
}
"""Options that are a whole number of something."""


def option(
    default: Any,
    about: str,
    *,
    flag: str | None = None,
    least: float | None = None,
    secret: bool = False,
) -> Any:
    """A field of options: its default, and what help and the command line say of it.

    `flag` is its name there where that is another, and `least` the smallest number it takes there.
    """
    metadata = {"help": about, "flag": flag, "least": least}
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The options of an `Engine`. Hashable, so equal configurations can share one engine.

    Raises `InvalidOption` when a value cannot be meant.
    """

    model: str
    device: str | Sequence[str] | None = option(
        "auto",
        "auto (CUDA, then MPS, then CPU), cpu, cuda (every GPU), cuda:N or mps; several of "
        "them each get a copy of the model in a process of its own, behind one queue.",
    )
    replicas: int | None = option(
        None,
        "Copies of the model on a CPU, each in a process of its own with its share of the "
        "threads, behind one queue. Without it one model on one device runs in this process; "
        "several GPUs have a process each anyway.",
    )
    tensor_parallel_size: int = option(
        1,
        "Devices that one model is split among, each with a part of its weights in a process "
        "of its own: for a model that one device cannot hold, or to answer a lone query "
        "sooner. For throughput, several copies are faster.",
    )
    dtype: DTypeName = option(
        "auto",
        "Precision of the transformer; pooling and what follows it run in float32. int8 is "
        "for CPUs with VNNI or AMX: linear layers in int8, the rest as with auto; fp8 for GPUs "
        "that multiply in float8.",
    )
    revision: str | None = option(None, "Branch, tag or commit of a model on the hub.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the checkpoint.")
    max_length: int | None = option(
        None, "Longest text in tokens, special tokens included, instead of the checkpoint's own."
    )
    pooling: PoolingMode | Sequence[PoolingMode] | None = option(
        None, "Pooling instead of the checkpoint's; the results of several are concatenated."
    )
    prompts: Mapping[str, str] | tuple[tuple[str, str], ...] | None = option(
        None, "Prompts by name, over those that the checkpoint saves. Kept as sorted pairs."
    )
    max_batch_tokens: int | Literal["auto"] = option("auto", "Most tokens in one forward pass.")
    max_queue_tokens: int = option(
        1_000_000, "Most tokens waiting at each priority before calls wait or are refused."
    )
    max_query_wait_ms: float = option(
        30.0, "Longest a query may wait behind ingestion, beside its own forward pass."
    )
    memory_utilization: float | None = option(
        None,
        "Share of the device's memory to fill, above 0 and at most 1, weights included. "
        "Without it, on CUDA batches take at most half of what is free at the start. On a "
        "CPU it limits the prefix cache alone.",
    )
    memory_bytes: int | None = option(None, "The same as a number of bytes, instead of a share.")
    prefix_cache: Literal["auto", "off"] = option(
        "auto",
        "Keep the keys and values of prefixes that texts share, where the model allows it: "
        "a decoder whose last token is the vector. Up to a tenth of the memory that is "
        "free, or up to half of what a limit of the memory leaves beside the weights.",
    )
    tokenizer_process: TokenizerOption = option(
        "auto",
        "Tokenise the texts of ingestion in a process of its own, so that queries and a GPU do not "
        "wait for Python meanwhile. auto: where the model runs on CUDA or in several processes, "
        "and this process may use four processors or more.",
    )
    warmup: bool = option(
        False,
        "Prepare while loading, not at the first call that needs it: for queries of each size on "
        "CUDA, for long texts on a CPU.",
    )
    batch_invariant: bool = option(
        False,
        "Vectors that do not depend on what else is in the batch, to the bit. On a CPU they "
        "do not anyway, save in bfloat16 on processors with matrix units (Intel's AMX); "
        "there and on CUDA it costs speed.",
    )
    cache_dir: str | None = option(
        None, "Where downloaded models are kept, instead of Hugging Face's own cache."
    )

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; normalising is part of its birth
        set_field(self, "model", _path_string("model", self.model))
        if self.cache_dir is not None:
            set_field(self, "cache_dir", _path_string("cache_dir", self.cache_dir))
        set_field(self, "device", _device(self.device))
        if isinstance(self.pooling, str):
            set_field(self, "pooling", (self.pooling,))
        elif self.pooling is not None:
            require(
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
        InvalidOption.require_known("an engine", options, EngineOptions.__annotations__, RENAMED)
        return cls(model=_path_string("model", model), **options)

    @property
    def device_names(self) -> tuple[str, ...]:
        """The one name in `device`, or the several."""
        return (self.device,) if isinstance(self.device, str) else tuple(self.device or ())

    def options(self) -> dict[str, Any]:
        """Those that are not the defaults, as keyword arguments and in types that JSON has."""
        kept: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "model" or value == each.default:
                continue
            kept[each.name] = list(value) if isinstance(value, tuple) else value
        return kept | ({"prompts": dict(kept["prompts"])} if "prompts" in kept else {})

    def _validate(self) -> None:
        require(bool(self.model), "model is empty; name a folder or a model on the hub")
        require(
            self.dtype in get_args(DTypeName),
            f"dtype={self.dtype!r}: choose one of {', '.join(get_args(DTypeName))}",
        )
        for mode in self.pooling or ():
            require(
                mode in get_args(PoolingMode),
                f"pooling={mode!r}: choose among {', '.join(get_args(PoolingMode))}",
            )
        require(self.pooling != (), "pooling is empty; leave it out for the checkpoint's own")
        for name, unit in _COUNTS.items():
            value, default = getattr(self, name), getattr(type(self), name)
            require(
                is_count(value) or (value == default and isinstance(default, str | None)),
                f"{name}={value!r}: it must be a whole number of {unit}, at least 1",
            )
        wait = self.max_query_wait_ms
        require(
            is_number(wait) and 0 < wait < float("inf"),
            f"max_query_wait_ms={wait!r}: it must be a number of milliseconds above 0",
        )
        self._validate_memory()
        for name, choices in (
            ("prefix_cache", ("auto", "off")),
            ("tokenizer_process", get_args(TokenizerOption)),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name}={value!r}: choose {' or '.join(map(repr, choices))}")
        for name in ("trust_remote_code", "warmup", "batch_invariant"):
            require_bool(name, getattr(self, name))
        require(
            self.revision is None or (isinstance(self.revision, str) and bool(self.revision)),
            f"revision={self.revision!r}: it must be the name of a branch, a tag or a commit",
        )

    def _validate_memory(self) -> None:
        share, size = self.memory_utilization, self.memory_bytes
        require(
            share is None or (is_number(share) and 0 < share <= 1),
            f"memory_utilization={share!r}: it must be a share above 0 and at most 1",
        )
        require(
            share is None or size is None,
            "memory_utilization and memory_bytes both limit the memory; give one of them",
        )


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig` but the model, as keyword arguments."""

    device: str | Sequence[str] | None
    replicas: int | None
    tensor_parallel_size: int
    dtype: DTypeName
    revision: str | None
    trust_remote_code: bool
    max_length: int | None
    pooling: PoolingMode | Sequence[PoolingMode] | None
    prompts: Mapping[str, str] | tuple[tuple[str, str], ...] | None
    max_batch_tokens: int | Literal["auto"]
    max_queue_tokens: int
    max_query_wait_ms: float
    memory_utilization: float | None
    memory_bytes: int | None
    prefix_cache: Literal["auto", "off"]
    tokenizer_process: TokenizerOption
    warmup: bool
    batch_invariant: bool
    cache_dir: str | None


def _option_lines() -> Iterable[str]:
    for option in fields(EngineConfig):
        about = option.metadata.get("help", "A folder, or a model's name on the Hugging Face hub.")
        default = "" if option.name == "model" else f" = {option.default!r}"
        yield f"    {option.name}: {option.type}{default}"
        yield textwrap.indent(textwrap.fill(about, 88), 8 * " ")


EngineConfig.__doc__ = "\n".join([EngineConfig.__doc__ or "", "    Options:", *_option_lines()])


def _device(device: Any) -> str | tuple[str, ...]:
    """One name, or several; one in a list is that one."""
    if device is None:
        return "auto"
    names = (device,) if isinstance(device, str) else device
    require(
        isinstance(names, Sequence)
        and len(names) > 0
        and all(isinstance(name, str) and name for name in names),
        f"device={device!r}: choose auto, cpu, cuda, cuda:N or mps, or a list of them",
    )
    return names[0] if len(names) == 1 else tuple(names)


def _frozen_prompts(prompts: Any) -> tuple[tuple[str, str], ...]:
    try:
        frozen = dict(prompts)
    except (TypeError, ValueError):
        raise InvalidOption(f"prompts={prompts!r}: it must map names to texts") from None
    for name, text in frozen.items():
        require(
            isinstance(name, str) and isinstance(text, str),
            f"prompts[{name!r}]={text!r}: names and prompts must be strings",
        )
    return tuple(sorted(frozen.items()))


def require(condition: bool, message: str) -> None:
    """Raise `InvalidOption` unless the condition holds."""
    if not condition:
        raise InvalidOption(message)


def require_bool(name: str, value: object) -> None:
    """Raise `InvalidOption` for anything but True and False: "false" and 0 mean one of them."""
    require(isinstance(value, bool), f"{name}={value!r}: it must be True or False")


def is_number(value: object) -> bool:
    """Whether it is a number of Python's, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether it is a whole number of Python's, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _path_string(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):  # a path of bytes is none either
        raise InvalidOption(f"{name}={value!r}: it must be a string or a path")
    return path
