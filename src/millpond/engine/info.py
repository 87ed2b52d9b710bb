"""`EngineInfo`, what `engine.info()` tells: the model, how it runs and why, the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..checkpoint.kinds.scoring import Kind
from ..checkpoint.modules import Module
from ..checkpoint.spec import ModelSpec
from ..model.info import ExecutionKind, RouteInfo
from ..scheduler.prefix_cache import PrefixCacheConfig
from .info_table import Facts, html_table, text_table

__all__ = ["EngineInfo"]


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine serves and how. `print` shows it as a table, and so does a notebook."""

    model: ModelSpec
    device: str
    dtype: str
    routes: tuple[RouteInfo, ...]
    max_batch_tokens: int
    max_queue_tokens: int
    max_query_wait_ms: float
    prefix_cache: PrefixCacheConfig | None = None
    """Room for prefixes that texts share; None where they are not kept, see `prefix_reason`."""

    replicas: int = 1
    """Copies of the model that were loaded."""
    tensor_parallel_size: int = 1
    """Processes that each copy is split among."""
    processes: tuple[int, ...] = ()
    """The ids of the processes that run them; empty where that is this one."""
    tokenizer_processes: int = 0
    """Processes that tokenise texts of ingestion; 0 where this one does."""
    bulk_multiprocessors: int | None = None
    """How many of a GPU's bulk texts have while queries come in; None where they have all."""

    @property
    def kind(self) -> Kind:
        """What the model is for: `embed`, `score`, `classify`, `sparse` or `multi_vector`."""
        return self.model.kind

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The same, and what it gives besides.

        A masked language model without modules.json is `sparse` too; bge-m3 is that, and
        `multi_vector`.
        """
        sparse, multi_vector = self.model.sparse, self.model.multi_vector
        beside = None if sparse is None else sparse.route
        found: dict[Kind, None] = {self.kind: None}
        if beside is not None and any(route.name == beside for route in self.routes):
            found["sparse"] = None
        if multi_vector is not None:
            found["multi_vector"] = None
        return tuple(found)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its scores or classes; none of a model that embeds."""
        return () if self.model.scoring is None else self.model.scoring.labels

    @property
    def dimension(self) -> int:
        """Dimensions of a vector; labels of a model that scores or classifies."""
        return self.routes[0].dimension

    @property
    def execution(self) -> ExecutionKind:
        """How the first route runs."""
        return self.routes[0].execution

    @property
    def reason(self) -> str:
        """Why it runs that way."""
        return self.routes[0].reason

    @property
    def batch_invariant(self) -> bool:
        """Whether a text's vector is the same to the bit in every batch, by any route."""
        return all(route.batch_invariant for route in self.routes)

    @property
    def prefix_reason(self) -> str:
        """Why prefixes that texts share can be kept, or why not."""
        return self.routes[0].prefixes

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens."""
        return self.routes[0].max_length

    def as_dict(self) -> Facts:
        """The facts as `millpond info --json` prints them; `path` is a string."""
        model = self.model
        routes = zip(self.routes, model.routes, strict=True)
        return {
            "model": model.name,
            "source": model.source,
            "path": str(model.path),
            "revision": model.revision,
            "kind": model.kind,
            "labels": list(self.labels),
            "activation": None if model.scoring is None else model.scoring.activation,
            "similarity": _similarity(model),
            "truncate_dim": model.truncate_dim,
            "prompts": dict(model.prompts),
            "default_prompt_name": model.default_prompt_name,
            "routes": [
                {"modules": [_module(module) for module in chain.modules], **_fields(route)}
                for route, chain in routes
            ],
            **_fields(self, but=("model", "routes", "processes", "prefix_cache")),
            "processes": list(self.processes),
            "prefix_cache": None if self.prefix_cache is None else _fields(self.prefix_cache),
        }

    def __str__(self) -> str:
        return text_table(self.as_dict())

    def _repr_html_(self) -> str:  # IPython asks for it
        return html_table(self.as_dict())


def _similarity(model: ModelSpec) -> str | None:
    """How its vectors are compared; None for a model that gives none."""
    if model.kind == "multi_vector" and model.multi_vector is not None:
        return model.multi_vector.similarity
    return None if model.scoring is not None else model.similarity_fn_name or "cosine"


def _fields(value: Any, *, but: Sequence[str] = ()) -> Facts:
    """The fields of a dataclass."""
    return {
        field.name: getattr(value, field.name) for field in fields(value) if field.name not in but
    }


def _module(module: Module) -> str:
    modes = module.options.get("modes")
    return f"{module.kind}({', '.join(modes)})" if modes else module.kind
