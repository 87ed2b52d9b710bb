"""`ModelSpec`: what the checkpoint on disk says, as facts.

Reads the JSON files of a checkpoint, old and new spellings alike, and refuses by name what
Millpond cannot run. It loads no weights and knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import (
    InvalidCheckpoint,
    InvalidOption,
    UnknownPrompt,
    UnknownTask,
    UnsupportedModel,
)
from .files import has_file, read_json, read_json_object, whole_number
from .kinds.bge_m3 import ALL, SPARSE, TOKENS, is_bge_m3, m3_chain, m3_routes
from .kinds.multi_vector import (
    MultiVectorSpec,
    is_pylate,
    is_stanford,
    pylate_chain,
    pylate_prompts,
    read_multi_vector,
    read_multi_vector_routes,
    stanford_chain,
)
from .kinds.no_modules import default_chain
from .kinds.scoring import Kind, ScoringSpec, read_scoring
from .kinds.sparse import (
    MODEL_TYPE,
    SparseSpec,
    masked_language_route,
    read_sparse,
    sparse_routes,
)
from .modules import Chain, read_chain
from .resolve import Checkpoint
from .routes import (
    Route,
    Routes,
    read_routes,
    transformer_of_folder,
)

__all__ = ["ModelSpec", "read_spec"]

_SAVED = "config_sentence_transformers.json"
_MODEL_TYPES = ("SentenceTransformer", "CrossEncoder")
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Their checkpoints do not say that the instruction stays out of the mean; their model cards do.
_INSTRUCTOR_MODELS = frozenset(f"hkunlp/instructor-{size}" for size in ("base", "large", "xl"))
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a checkpoint says about itself, with the user's prompts and pooling over it."""

    name: str
    path: Path
    source: str
    revision: str | None
    routes: tuple[Route, ...]
    """Exactly one unless the checkpoint has a Router."""
    prompts: Mapping[str, str]
    """Prompts by name: those saved in the checkpoint, with the user's over them."""
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    task_routes: Mapping[str | None, str] = field(default_factory=dict)
    """The route of each task the Router knows, and of None where a task may be left out."""
    other_route: str | None = "default"
    """The route of every other task; None when there is none for it."""
    scoring: ScoringSpec | None = None
    """How its logits become scores or classes; None for a model that embeds."""
    multi_vector: MultiVectorSpec | None = None
    """How its token vectors are compared; None for a model that gives none."""
    sparse: SparseSpec | None = None
    """How it gives sparse vectors; None for a model that gives none."""

    @cached_property
    def kind(self) -> Kind:
        """What it is for."""
        if self.multi_vector is not None and self.multi_vector.route is None:
            return "multi_vector"
        if self.sparse is not None and self.sparse.route is None:
            return "sparse"
        return "embed" if self.scoring is None else self.scoring.kind

    def route_for(self, task: str | None) -> Route:
        """The route that texts of this task take. Raises `UnknownTask` where there is none."""
        name = self.task_routes.get(task, self.other_route)
        for route in self.routes:
            if route.name == name:
                return route
        known = ", ".join(sorted(repr(known) for known in self.task_routes if known is not None))
        wanted = "a task has to be named" if task is None else f"there is no task {task!r}"
        raise UnknownTask(f"{self.name}: {wanted}; its tasks are {known}")

    def sparse_route_for(self, task: str | None) -> Route:
        """The same to a sparse vector."""
        if self.sparse is None or self.sparse.route is None:
            return self.route_for(task)
        return self.route_named(self.sparse.route)

    def token_route_for(self, task: str | None) -> Route:
        """The same to token vectors."""
        if self.multi_vector is None or self.multi_vector.route is None:
            return self.route_for(task)
        return self.route_named(self.multi_vector.route)

    def route_named(self, name: str) -> Route:
        """A route by its name, which it has."""
        return next(route for route in self.routes if route.name == name)

    def max_length_for(self, task: str | None) -> int | None:
        """The limit, in tokens, that the checkpoint sets for texts of this task only."""
        options = self.route_for(task).encoder.options
        if task in ("query", "document"):
            length = options.get(f"{task}_length")
        else:
            length = options.get("call_length")
        return None if length is None else int(length)

    def prompt_text(
        self, *, task: str | None = None, prompt: str | None = None, prompt_name: str | None = None
    ) -> str:
        """The text to put in front of every text of a call, often empty.

        `prompt` itself, else the prompt of that name, else the one of the task, else the
        default one. A query or document for which no prompt is saved gets none, not even
        the default one: a default is for texts that are neither.

        Raises `UnknownPrompt` when there is no prompt of that name.
        """
        if prompt is not None:
            return prompt
        if prompt_name is not None:
            return self._named_prompt(prompt_name)
        if task == "query":
            return self.prompts.get("query", "")
        if task == "document":
            found = (self.prompts[name] for name in _DOCUMENT_PROMPTS if name in self.prompts)
            return next(found, "")
        if self.default_prompt_name is not None:
            return self._named_prompt(self.default_prompt_name)
        return ""

    def _named_prompt(self, name: str) -> str:
        if name in self.prompts:
            return self.prompts[name]
        if name in ("query", "document"):
            return ""
        known = ", ".join(map(repr, sorted({*self.prompts, "query", "document"})))
        raise UnknownPrompt(
            f"there is no prompt called {name!r}; the prompts are {known}. "
            "Give the text itself as `prompt`, or name it in the engine's `prompts`"
        )


def read_spec(
    checkpoint: Checkpoint,
    *,
    pooling: tuple[str, ...] | None = None,
    prompts: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> ModelSpec:
    """Read the checkpoint's files.

    `pooling` replaces the modes of its Pooling modules; `prompts` go over its own. Raises
    `InvalidCheckpoint` for files that are missing, damaged or contradictory,
    `UnsupportedModel` for what cannot be run, and `InvalidOption` where `pooling` has
    nothing to act on.
    """
    root = checkpoint.path
    saved = read_json_object(root / _SAVED)
    late = _late_interaction(root, saved, trust_remote_code=trust_remote_code)
    if late is not None:
        _refuse_pooling(pooling, checkpoint, gives="a vector for each token")
        chain, own = late
        of_prompts = {"prompts": own, "default_prompt_name": saved.get("default_prompt_name")}
        spec = _spec(checkpoint, of_prompts, prompts, read_multi_vector_routes(chain, root))
        return replace(spec, multi_vector=read_multi_vector(saved))
    model_type = saved.get("model_type", "SentenceTransformer")
    if model_type == MODEL_TYPE and has_file(root / "modules.json"):
        _refuse_pooling(pooling, checkpoint, gives="sparse vectors")
        routes = sparse_routes(read_chain(root, trust_remote_code=trust_remote_code), root)
        sparse = read_sparse(saved, routes.routes, root)
        spec = _spec(checkpoint, {**saved, "truncate_dim": None}, prompts, routes)
        return replace(spec, sparse=sparse)
    if model_type not in _MODEL_TYPES:
        raise UnsupportedModel(
            f"{checkpoint.name} is a {model_type}; only {' and '.join(_MODEL_TYPES)} models, "
            "which give one vector or scores of a text, are supported"
        )
    if not has_file(root / "modules.json"):
        saved = {}  # the reference does not read it either
    routes = _dense_routes(checkpoint, pooling, trust_remote_code=trust_remote_code)
    scoring = read_scoring(routes.routes[0].modules, saved, trust_remote_code=trust_remote_code)
    if scoring is not None and len(routes.routes) > 1:
        raise UnsupportedModel(f"{checkpoint.name} has a Router; one that scores has one route")
    if (scoring is None) == (model_type == "CrossEncoder") and saved:
        raise UnsupportedModel(
            f"{checkpoint.name} is saved as a {model_type} and its modules give "
            f"{'no scores' if scoring is None else 'scores'}"
        )
    spec = replace(_spec(checkpoint, saved, prompts, routes), scoring=scoring)
    return spec if scoring is not None else _with_other_kinds(spec, pooling)


def _spec(
    checkpoint: Checkpoint,
    saved: Mapping[str, Any],
    prompts: Mapping[str, str] | None,
    routes: Routes,
) -> ModelSpec:
    """Of a checkpoint that gives embeddings; `saved` is what of its file concerns it."""
    path = checkpoint.path / _SAVED
    all_prompts = _prompts(saved, prompts, path)
    similarity = saved.get("similarity_fn_name")
    return ModelSpec(
        name=checkpoint.name,
        path=checkpoint.path,
        source=checkpoint.source,
        revision=checkpoint.revision,
        prompts=all_prompts,
        default_prompt_name=_default_prompt_name(saved, all_prompts, path),
        similarity_fn_name=similarity if similarity in _SIMILARITIES else None,
        truncate_dim=whole_number(saved, "truncate_dim", path, of="dimensions"),
        **routes._asdict(),
    )


def _refuse_pooling(pooling: tuple[str, ...] | None, checkpoint: Checkpoint, *, gives: str) -> None:
    if pooling is not None:
        raise InvalidOption(f"pooling={pooling!r}: {checkpoint.name} gives {gives}; leave it out")


def _dense_routes(
    checkpoint: Checkpoint, pooling: tuple[str, ...] | None, *, trust_remote_code: bool
) -> Routes:
    """To a vector of a text, or to scores."""
    root = checkpoint.path
    if has_file(root / "modules.json"):
        chain = read_chain(root, trust_remote_code=trust_remote_code)
    elif pooling is None and is_bge_m3(root):
        chain = m3_chain(root)
    else:
        name = checkpoint.name.rstrip("/").rpartition("/")[2]
        chain = default_chain(root, name=name, pooling=pooling)
    include_prompt = False if checkpoint.name in _INSTRUCTOR_MODELS else None
    return read_routes(chain, root, pooling=pooling, include_prompt=include_prompt)


def _with_other_kinds(spec: ModelSpec, pooling: tuple[str, ...] | None) -> ModelSpec:
    """With the sparse and token vectors that a model gives beside a dense one."""
    root, (dense, *others) = spec.path, spec.routes
    if not others and is_bge_m3(root) and pooling is None:
        return replace(
            spec,
            routes=(dense, *m3_routes(dense, root)),
            sparse=SparseSpec(route=SPARSE, by_token=True),
            # FlagEmbedding's `colbert_score` is the mean over the query.
            multi_vector=MultiVectorSpec(similarity="meanmaxsim", route=TOKENS, all_route=ALL),
        )
    beside = None if has_file(root / "modules.json") else masked_language_route(root)
    if beside is None:
        return spec
    sparse = SparseSpec(route=beside.name)
    return replace(spec, routes=(*spec.routes, beside), sparse=sparse)


def _late_interaction(
    root: Path, saved: Mapping[str, Any], *, trust_remote_code: bool
) -> tuple[Chain, dict[str, Any]] | None:
    """The modules and saved prompts of a model that gives token vectors; None for any other."""
    if not has_file(root / "modules.json"):
        return stanford_chain(root, transformer_of_folder(root)) if is_stanford(root) else None
    entries = read_json(root / "modules.json")
    modules = entries if isinstance(entries, list) else []
    types = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    if is_pylate(saved, types):
        chain = read_chain(root, trust_remote_code=trust_remote_code)
        return pylate_chain(chain, saved, root), pylate_prompts(saved)
    if saved.get("model_type") != "MultiVectorEncoder":
        return None
    chain = read_chain(root, trust_remote_code=trust_remote_code)
    return chain, dict(saved.get("prompts") or {})


def _prompts(
    saved: Mapping[str, Any], given: Mapping[str, str] | None, path: Path
) -> dict[str, str]:
    prompts = saved.get("prompts") or {}
    if not isinstance(prompts, Mapping):
        raise InvalidCheckpoint(f"{path}: prompts is not an object")
    for name, text in prompts.items():
        if not isinstance(text, str | None):
            raise InvalidCheckpoint(f"{path}: the prompt {name!r} is {text!r}, not a text")
    return {name: text or "" for name, text in prompts.items()} | dict(given or {})


def _default_prompt_name(
    saved: Mapping[str, Any], prompts: Mapping[str, str], path: Path
) -> str | None:
    name = saved.get("default_prompt_name")
    if name is None or name in prompts or name in ("query", "document"):
        return name
    raise InvalidCheckpoint(
        f"{path}: default_prompt_name is {name!r}, and the "
        f"prompts are {', '.join(map(repr, prompts)) or 'none'}; "
        f"give it in the engine's `prompts`"
    )
