"""Millpond: an embedding engine that lives inside your Python process.

    from . import Engine

    with Engine("sentence-transformers/all-MiniLM-L6-v2") as engine:
        vectors = engine.embed(["one text", "another"])  # float32 [2, 384]

Only the public names are here. Those that need torch or numpy are imported when they are
first asked for, so `import millpond` is quick and touches no device.
"""

import importlib
import typing

from .config import EngineConfig
from .errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineError,
    EngineFailed,
    InvalidCheckpoint,
    InvalidDimensions,
    InvalidInput,
    InvalidOption,
    InvalidText,
    InvalidTokenIds,
    MillpondError,
    ModelError,
    ModelNotFound,
    NonFiniteVector,
    OutOfMemory,
    ProcessDied,
    QueueFull,
    TextFailed,
    TextsFailed,
    TextTooLong,
    UnknownPrompt,
    UnknownTask,
    UnsupportedCall,
    UnsupportedModel,
)
from .pair import Pair
from .stats import BatchStats, CallProgress, EngineStats, PrefixCacheStats, ProgressHook, StatsHook

if typing.TYPE_CHECKING:
    from .embeddings import Embeddings, quantize, similarity
    from .engine.calls.progress import ProgressBar, TruncationLog
    from .engine.engine import Engine
    from .engine.info import EngineInfo
    from .multi_vector.token_embeddings import TokenEmbeddings
    from .multi_vector.token_vectors import TokenVectors, maxsim
    from .scheduler.request import Priority
    from .scores import Label, Ranked, Scores
    from .sparse.embeddings import SparseEmbeddings
    from .sparse.vectors import SparseVector, SparseVectors

__version__ = "0.1.0"

__all__ = [
    "BatchStats",
    "CallProgress",
    "DeadlineExceeded",
    "Embeddings",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineError",
    "EngineFailed",
    "EngineInfo",
    "EngineStats",
    "InvalidCheckpoint",
    "InvalidDimensions",
    "InvalidInput",
    "InvalidOption",
    "InvalidText",
    "InvalidTokenIds",
    "Label",
    "MillpondError",
    "ModelError",
    "ModelNotFound",
    "NonFiniteVector",
    "OutOfMemory",
    "Pair",
    "PrefixCacheStats",
    "Priority",
    "ProcessDied",
    "ProgressBar",
    "ProgressHook",
    "QueueFull",
    "Ranked",
    "Scores",
    "SparseEmbeddings",
    "SparseVector",
    "SparseVectors",
    "StatsHook",
    "TextFailed",
    "TextTooLong",
    "TextsFailed",
    "TokenEmbeddings",
    "TokenVectors",
    "TruncationLog",
    "UnknownPrompt",
    "UnknownTask",
    "UnsupportedCall",
    "UnsupportedModel",
    "__version__",
    "maxsim",
    "quantize",
    "similarity",
]

_LAZY_NAMES = {
    name: f"{__name__}.{module}"
    for module, names in {
        "embeddings": ("Embeddings", "quantize", "similarity"),
        "engine.calls.progress": ("ProgressBar", "TruncationLog"),
        "engine.engine": ("Engine",),
        "engine.info": ("EngineInfo",),
        "multi_vector.token_embeddings": ("TokenEmbeddings",),
        "multi_vector.token_vectors": ("TokenVectors", "maxsim"),
        "scheduler.request": ("Priority",),
        "scores": ("Label", "Ranked", "Scores"),
        "sparse.embeddings": ("SparseEmbeddings",),
        "sparse.vectors": ("SparseVector", "SparseVectors"),
    }.items()
    for name in names
}


def __getattr__(name: str) -> typing.Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
