"""Many machines: the engine in Ray Data's actors and in Ray Serve's replicas.

    import ray
    from millpond.ray import embed

    ds = embed(ray.data.read_parquet("s3://bucket/texts"), "BAAI/bge-base-en-v1.5", actors=(1, 8))
    ds.write_parquet("s3://bucket/vectors")

Ray places the actors, moves the rows and starts anew what died; each actor holds one `Engine`.
Needs the extra `millpond[ray]`. The process that builds a dataset loads no model and no torch.
"""

import importlib
import typing
from importlib.util import find_spec

if find_spec("ray") is None:
    raise ModuleNotFoundError('ray is not installed: pip install "millpond[ray]"', name="ray")

if typing.TYPE_CHECKING:
    from .data import embed, embed_sparse, rank, score
    from .serve import deployment

__all__ = ["deployment", "embed", "embed_sparse", "rank", "score"]

_MODULES = {
    "deployment": "serve",
    "embed": "data",
    "embed_sparse": "data",
    "rank": "data",
    "score": "data",
}


def __getattr__(name: str) -> typing.Any:
    """An actor needs neither Serve nor a web framework, so they are imported when asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
