"""The routes of a checkpoint: every flat chain of modules that leads from text to a vector.

Flattens the Routers away, and checks that what is left can run in that order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpoint, InvalidOption, UnknownTask, UnsupportedModel
from .files import read_json_object
from .kinds.answer_rerankers import AnswerReranker, answer_reranker
from .kinds.multi_vector import multi_vector_modules
from .module_config import transformer_config, transformer_options
from .modules import Chain, Module, chain_for, routers_of

__all__ = [
    "Route",
    "default_chain",
    "read_multi_vector_routes",
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


# What a model's class is called that scores, and what transformers loads it for.
_SCORING_TASKS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
}


_OF_SPARSE = frozenset({"SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding"})


# What a model's class is called that does neither, and what it gives instead.
_OTHER_TASKS = {
    "ForQuestionAnswering": "the place of an answer",
    "ForMultipleChoice": "a score for each of several choices",
    "ForNextSentencePrediction": "whether one sentence follows another",
}


def default_chain(root: Path, *, name: str = "", pooling: tuple[str, ...] | None = None) -> Chain:
    """What a folder without modules.json is run as: a transformer, then a pooling or its own head.

    The mean, or the last token of a model that was trained to predict the next one; where its
    tokenizer has a chat template, texts go through it. A model with a head for classes or scores
    keeps that, unless the user asks for a `pooling`; so does one that is known by its `name`.
    Raises `UnsupportedModel` for a folder that is no text model, or one for another task.
    """
    config = transformer_config(root)
    other = [name for name in ("vision_config", "audio_config") if config.get(name)]
    if other:
        raise UnsupportedModel(
            f"{root / 'config.json'} has a {other[0]}, and there is no modules.json that says "
            "how it embeds text"
        )
    architectures = config.get("architectures") or [""]
    if pooling is None and (scoring := _scoring_transformer(root, name, config)) is not None:
        return (scoring,)
    for task, gives in _OTHER_TASKS.items() if pooling is None else ():
        if str(architectures[0]).endswith(task):
            raise UnsupportedModel(
                f"{root / 'config.json'} is of a {architectures[0]}, which gives {gives}, and no "
                "embeddings; name an embedding model, or embed with its encoder all the same by "
                'pooling="mean"'
            )
    is_causal = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    modes = ("lasttoken" if is_causal else "mean",)
    return transformer_of_folder(root), _pooling_module(root, modes)


def transformer_of_folder(root: Path) -> Module:
    """The transformer of a folder without modules.json."""
    options = transformer_options({}, path=root / "config.json", whole=True)
    return Module(kind="Transformer", path=root, options=options, class_name="Transformer")


def _scoring_transformer(root: Path, name: str, config: Mapping[str, Any]) -> Module | None:
    """The one module of a folder whose model scores or classifies; None for any other."""
    architecture = str((config.get("architectures") or [""])[0])
    endings = [ending for ending in _SCORING_TASKS if architecture.endswith(ending)]
    answers = answer_reranker(name, config)
    if not endings and answers is None:
        return None
    task = _SCORING_TASKS[endings[0]] if endings else "text-generation"
    path = root / "config.json"
    options = transformer_options({"transformer_task": task}, path=path, whole=True)
    if answers is not None:
        options["chat"] = _answer_chat(answers)
        if not endings:
            options["answer_ids"] = answers.token_ids(root)
    return Module(kind="Transformer", path=root, options=options, class_name="Transformer")


def _answer_chat(answers: AnswerReranker) -> dict[str, Any]:
    arguments = {"chat_template": answers.template}
    return {"format": "flat", "arguments": arguments, "restore_suffix": True, "required": True}


def _pooling_module(root: Path, modes: tuple[str, ...]) -> Module:
    options = {"modes": modes, "include_prompt": True}
    return Module(kind="Pooling", path=root, options=options, class_name="Pooling")


def read_routes(
    chain: Chain, root: Path, *, pooling: tuple[str, ...] | None, include_prompt: bool | None
) -> tuple[tuple[Route, ...], dict[str | None, str], str | None]:
    """The routes, the route name of every task that can be told apart, and of all the others.

    `pooling` and `include_prompt` go over what the checkpoint's Pooling modules say, unless
    None. Raises `InvalidCheckpoint`, `UnsupportedModel`, or `InvalidOption` for a `pooling`
    that has nothing to act on.
    """

    def finished(task: str | None) -> tuple[tuple[str, ...], tuple[Module, ...]]:
        names, modules = chain_for(chain, task)
        return names, _finished(modules, root, pooling, include_prompt)

    return read_task_routes(chain, root, finished)


def read_task_routes(
    chain: Chain,
    root: Path,
    finished: Callable[[str | None], tuple[tuple[str, ...], tuple[Module, ...]]],
) -> tuple[tuple[Route, ...], dict[str | None, str], str | None]:
    """The same by what gives the names and modules of a task's route, or raises `UnknownTask`."""
    routes: list[Route] = []
    task_routes: dict[str | None, str] = {}
    for task in _all_tasks(chain):
        try:
            names, modules = finished(task)
        except UnknownTask:
            continue
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
    return tuple(routes), task_routes, other_route


def read_multi_vector_routes(
    chain: Chain, root: Path
) -> tuple[tuple[Route, ...], dict[str | None, str], str | None]:
    """The same of a model that gives token vectors: one for queries and one for documents.

    They are one route where they do not differ. A text without a task is a document.
    """
    found = {task: multi_vector_modules(chain, task, root) for task in ("query", "document")}
    if found["query"] == found["document"]:
        route = Route(name="default", modules=found["document"])
        return (route,), dict.fromkeys(found, "default"), "default"
    routes = tuple(Route(name=task, modules=modules) for task, modules in found.items())
    return routes, {task: task for task in found}, "document"


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
        rest.insert(0, _pooling_module(root, pooling))
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
