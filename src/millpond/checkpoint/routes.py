"""The routes of a checkpoint: every flat chain of modules that leads from text to a vector.

Flattens the Routers away, and checks that what is left can run in that order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidCheckpoint, InvalidOption, UnknownTask, UnsupportedModel
from .files import read_json_object
from .module_config import transformer_options
from .modules import Chain, Module, chain_for, routers_of

__all__ = [
    "Route",
    "Routes",
    "pooling_module",
    "read_routes",
    "read_task_routes",
    "transformer_of_folder",
]

logger = logging.getLogger(__name__)

_ANY_OTHER_TASK = "\0"  # no task is called that, so it finds the route of every unnamed task


@dataclass(frozen=True, kw_only=True)
class Route:
    """One chain of modules from text to vector."""

    name: str
    """`default`, or what the checkpoint's Router calls it."""
    modules: tuple[Module, ...]
    """The first one is a Transformer or a StaticEmbedding. A Transformer with a head of its own,
    for scores or classes, is alone."""

    @cached_property
    def encoder(self) -> Module:
        """The module that reads the tokens."""
        return self.modules[0]

    @property
    def head(self) -> tuple[Module, ...]:
        """What follows it."""
        return self.modules[1:]


class Routes(NamedTuple):
    """Those of a checkpoint, and which texts take which."""

    routes: tuple[Route, ...]
    task_routes: dict[str | None, str]
    """The name of the route of every task that can be told apart."""
    other_route: str | None
    """That of all the others; None where there is none for them."""


_OF_SPARSE = frozenset({"SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding"})


def transformer_of_folder(root: Path, task: str = "feature-extraction") -> Module:
    """The transformer of a folder without modules.json, for a task as transformers calls it."""
    saved, path = {"transformer_task": task}, root / "config.json"
    return Module.of("Transformer", root, **transformer_options(saved, path=path, whole=True))


def pooling_module(root: Path, modes: tuple[str, ...]) -> Module:
    """A Pooling that no file describes."""
    return Module.of("Pooling", root, modes=modes, include_prompt=True)


def read_routes(
    chain: Chain, root: Path, *, pooling: tuple[str, ...] | None, include_prompt: bool | None
) -> Routes:
    """Read them.

    `pooling` and `include_prompt` go over what the checkpoint's Pooling modules say, unless
    None. Raises `InvalidCheckpoint`, `UnsupportedModel`, or `InvalidOption` for a `pooling`
    that has nothing to act on.
    """

    return read_task_routes(
        chain, root, lambda modules: _finished(modules, root, pooling, include_prompt)
    )


def read_task_routes(
    chain: Chain,
    root: Path,
    finished: Callable[[tuple[Module, ...]], tuple[Module, ...]],
) -> Routes:
    """The same by what makes a whole route of the modules of a task."""
    routes: list[Route] = []
    task_routes: dict[str | None, str] = {}
    for task in _all_tasks(chain):
        try:
            names, listed = chain_for(chain, task)
        except UnknownTask:
            continue
        modules = finished(listed)
        route = next((route for route in routes if route.modules == modules), None)
        if route is None:
            route = Route(name=_free_name("/".join(names) or "default", routes), modules=modules)
            routes.append(route)
        task_routes[task] = route.name
    other_route = task_routes.pop(_ANY_OTHER_TASK, None)
    if not routes:
        raise InvalidCheckpoint(f"{root}: no task leads through its Routers")
    if len(routes) == 1:
        task_routes = dict.fromkeys(task_routes, "default")
        other_route = other_route and "default"
        routes = [replace(routes[0], name="default")]
    return Routes(tuple(routes), task_routes, other_route)


def _all_tasks(chain: Chain) -> Iterable[str | None]:
    tasks: dict[str | None, None] = {}
    for router in routers_of(chain):
        tasks |= dict.fromkeys(name for name in router.chains if name in router.tasks())
        tasks |= dict.fromkeys(sorted(router.tasks()))
    return (*tasks, None, _ANY_OTHER_TASK)


def _free_name(name: str, routes: list[Route]) -> str:
    taken = {route.name for route in routes}
    return name if name not in taken else f"{name}/{len(routes)}"


def _finished(
    modules: tuple[Module, ...],
    root: Path,
    pooling: tuple[str, ...] | None,
    include_prompt: bool | None,
) -> tuple[Module, ...]:
    """A whole route: with the user's pooling, and checked to lead from text to its result."""
    first, *rest = modules or (None,)
    if first is None or first.kind not in ("Transformer", "StaticEmbedding"):
        kind = "nothing" if first is None else first.class_name
        raise UnsupportedModel(
            f"{root}: begins with {kind}; only Transformer and StaticEmbedding can read text"
        )
    of_sparse = [m for m in modules if m.kind in _OF_SPARSE or m.options.get("task") == "fill-mask"]
    if of_sparse:
        raise UnsupportedModel(
            f"{root}: {of_sparse[0].class_name} belongs to a model saved as a SparseEncoder"
        )
    of_tokens = [m for m in rest if m.kind in ("MultiVectorMask", "HierarchicalTokenPooling")]
    if of_tokens or first.options.get("query_expansion") is not None:
        what = of_tokens[0].class_name if of_tokens else "query_expansion"
        raise UnsupportedModel(f"{root}: {what} belongs to a model saved as a MultiVectorEncoder")
    second_encoder = next((m for m in rest if m.kind in ("Transformer", "StaticEmbedding")), None)
    if second_encoder is not None:
        raise UnsupportedModel(f"{root}: {second_encoder.class_name} comes after another encoder")
    if first.kind == "StaticEmbedding":
        return _static_route(first, rest, root, pooling)
    if first.options["task"] != "feature-extraction":
        if pooling is not None:
            raise InvalidOption(
                f"pooling={pooling!r}: {root} gives scores by a head of its own; leave it out"
            )
        return _scoring_route(first, rest, root)
    rest = [module for module in rest if not _has_no_effect(module, first)]
    changes = {"modes": pooling, "include_prompt": include_prompt}
    changes = {key: value for key, value in changes.items() if value is not None}
    rest = [
        replace(module, options={**module.options, **changes})
        if module.kind == "Pooling"
        else module
        for module in rest
    ]
    if not any(module.kind in ("Pooling", "custom") for module in rest):
        if pooling is None:
            raise InvalidCheckpoint(
                f"{root}: no Pooling follows its Transformer; say pooling='mean', for example"
            )
        rest.insert(0, pooling_module(root, pooling))
    return (first, *rest)


def _scoring_route(first: Module, rest: list[Module], root: Path) -> tuple[Module, ...]:
    """A transformer with its own head, which needs no other module than a LogitScore."""
    rest = [module for module in rest if module.kind != "Dropout"]
    if first.options["task"] == "text-generation" and "answer_ids" not in first.options:
        if [module.kind for module in rest] != ["LogitScore"]:
            raise UnsupportedModel(
                f"{root}: a language model gives scores by one LogitScore module, and this one is "
                f"followed by {', '.join(module.class_name for module in rest) or 'nothing'}"
            )
        score = rest.pop().options
        ids = (score["true_token_id"], score["false_token_id"])
        answers = tuple(token for token in ids if token is not None)
        first = replace(first, options={**first.options, "answer_ids": answers})
    if rest:
        raise UnsupportedModel(
            f"{root}: {rest[0].class_name} follows a model that gives scores itself"
        )
    return (first,)


def _static_route(
    first: Module, rest: list[Module], root: Path, pooling: tuple[str, ...] | None
) -> tuple[Module, ...]:
    if any(module.kind in ("Pooling", "WeightedLayerPooling") for module in rest):
        raise InvalidCheckpoint(f"{root}: a StaticEmbedding has already pooled its tokens")
    if pooling not in (None, ("mean",)):
        raise InvalidOption(
            f"pooling={pooling!r}: {root} has a StaticEmbedding, which always takes the mean"
        )
    return (first, *rest)


def _has_no_effect(module: Module, transformer: Module) -> bool:
    """A WeightedLayerPooling whose transformer is not configured to show its layers.

    The reference then passes the last layer through, so the vectors are those of the last layer.
    """
    if module.kind != "WeightedLayerPooling":
        return False
    config = read_json_object(transformer.path / "config.json")
    config = {**config, **transformer.options["config_kwargs"]}
    shown = bool(config.get("output_hidden_states", False))
    if not shown:
        logger.warning(
            "%s has no effect: its transformer's config.json does not set output_hidden_states",
            module.path,
        )
    return not shown
