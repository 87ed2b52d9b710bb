"""The chain of modules of a checkpoint: modules.json, and the Routers inside it.

It knows how modules are listed and routed by task, not what is done with the result.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpoint, UnknownTask, UnsupportedModel
from .files import inside, module_kind, read_json, read_json_object, router_config
from .module_config import KINDS, read_options

__all__ = ["Chain", "Module", "Router", "chain_for", "read_chain", "routers_of"]

logger = logging.getLogger(__name__)

_OTHER_MODALITIES = frozenset({"image", "audio", "video", "message"})


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module of a checkpoint."""

    kind: str
    """Transformer, StaticEmbedding, Pooling, Dense, LayerNorm, Normalize,
    WeightedLayerPooling, Dropout, LogitScore, SpladePooling, SparseStaticEmbedding,
    SparseAutoEncoder, MultiVectorMask, HierarchicalTokenPooling or custom."""
    path: Path
    """The folder that holds this module's files; the same for the same module in two routes."""
    options: Mapping[str, Any] = field(hash=False)
    """Its config file in the newest spelling; `module_config` reads those of each kind."""
    class_name: str
    """Its type as modules.json spells it."""

    @classmethod
    def of(cls, kind: str, path: Path, **options: Any) -> Module:
        """One that no modules.json lists."""
        return cls(kind=kind, path=path, options=options, class_name=kind)


@dataclass(frozen=True, kw_only=True, eq=False)
class Router:
    """A place in a chain where the task decides which modules come next."""

    path: Path
    chains: Mapping[str, Chain]
    """The modules of each route that takes text."""
    default_route: str | None
    """For a call that names no task; None when every call has to."""
    mappings: Mapping[tuple[str | None, Any], str]
    """(task, modality) to route, None standing for any."""

    def choose(self, task: str | None) -> str:
        """The name of the route that text of this task takes. Raises `UnknownTask`."""
        for key in ((task, "text"), (task, None), (None, "text"), (None, None)):
            if key in self.mappings:
                return self.mappings[key]
        for name in (task, "text"):
            if name in self.chains:
                return str(name)
        if task is None and self.default_route is not None:
            return self.default_route
        raise UnknownTask(
            f"this checkpoint has no route for task={task!r}; its tasks are "
            f"{', '.join(map(repr, sorted(self.tasks())))}"
        )

    def tasks(self) -> set[str]:
        """The tasks this router can tell apart."""
        mapped = {task for task, modality in self.mappings if modality in (None, "text")}
        return {task for task in mapped if task is not None} | set(self.chains)


Chain = tuple["Module | Router", ...]


def read_chain(root: Path, *, trust_remote_code: bool) -> Chain:
    """The modules that `root`/modules.json lists, in order.

    Raises `InvalidCheckpoint` for files that are missing or make no sense, and
    `UnsupportedModel` for a module type Millpond cannot run.
    """
    path = root / "modules.json"
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise InvalidCheckpoint(f"{path} lists no modules")
    chain: list[Module | Router] = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise InvalidCheckpoint(f"{path}: an entry has no type: {entry!r}")
        folder = inside(root, entry.get("path"), named_by=path)
        if not chain:
            _refuse_own_reader(folder, entry["type"])
        chain.append(_read_module(folder, entry["type"], trust_remote_code=trust_remote_code))
    return tuple(chain)


def chain_for(chain: Chain, task: str | None) -> tuple[tuple[str, ...], tuple[Module, ...]]:
    """The route names chosen for `task` on the way, and the modules. Raises `UnknownTask`."""
    names: list[str] = []
    modules: list[Module] = []
    for node in chain:
        if isinstance(node, Module):
            modules.append(node)
            continue
        name = node.choose(task)
        inner_names, inner_modules = chain_for(node.chains[name], task)
        names += (name, *inner_names)
        modules += inner_modules
    return tuple(names), tuple(modules)


def routers_of(chain: Chain) -> Iterator[Router]:
    """Every router of the chain, those inside other routers included."""
    for node in chain:
        if isinstance(node, Router):
            yield node
            for inner in node.chains.values():
                yield from routers_of(inner)


def _read_module(folder: Path, class_name: str, *, trust_remote_code: bool) -> Module | Router:
    kind = module_kind(class_name)
    if kind in ("Router", "Asym"):
        return _read_router(folder, trust_remote_code=trust_remote_code)
    if kind is None and not trust_remote_code:
        raise UnsupportedModel(
            f"{folder}: the module {class_name} is code of its own; pass "
            "trust_remote_code=True if you trust it to run in this process"
        )
    if kind is None:
        kind = "custom"
    elif kind not in KINDS or kind == "custom":
        raise UnsupportedModel(f"{folder}: the module {class_name} is not supported")
    options = read_options(kind, folder, trust_remote_code=trust_remote_code)
    kind = "Transformer" if kind == "MLMTransformer" else kind
    return Module(kind=kind, path=folder, options=options, class_name=class_name)


def _refuse_own_reader(folder: Path, class_name: str) -> None:
    """Code of a checkpoint's own may follow a transformer, and cannot take its place."""
    if module_kind(class_name) is None:
        raise UnsupportedModel(
            f"{folder}: texts are read by {class_name}, code of the checkpoint's own in place of "
            "sentence-transformers' Transformer; trust_remote_code=True would not help. Look for "
            "a version of the model that transformers runs by itself"
        )


def _read_router(folder: Path, *, trust_remote_code: bool) -> Router:
    path = router_config(folder)
    saved = read_json_object(path, required=True)
    types, structure = saved.get("types"), saved.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict) or not structure:
        raise InvalidCheckpoint(f"{path} has no types and structure; it describes no routes")
    parameters = saved.get("parameters") or {}
    mappings = _mappings(parameters.get("route_mappings") or {}, path)
    read: dict[str, Module | Router] = {}
    chains: dict[str, Chain] = {}
    for name, module_ids in structure.items():
        if not _takes_text(name, mappings):
            continue
        for module_id in module_ids:
            if module_id not in types:
                raise InvalidCheckpoint(
                    f"{path}: the route {name!r} uses {module_id!r}, of no type"
                )
            if module_id not in read:
                inner = inside(folder, module_id, named_by=path)
                if module_id == module_ids[0]:
                    _refuse_own_reader(inner, str(types[module_id]))
                read[module_id] = _read_module(
                    inner, str(types[module_id]), trust_remote_code=trust_remote_code
                )
        chains[name] = tuple(read[module_id] for module_id in module_ids)
    return _checked_router(path, structure, parameters, chains, mappings)


def _checked_router(
    path: Path,
    structure: Mapping[str, Any],
    parameters: Mapping[str, Any],
    chains: Mapping[str, Chain],
    mappings: Mapping[tuple[str | None, Any], str],
) -> Router:
    default_route = parameters.get("default_route")
    if default_route is None and parameters.get("allow_empty_key", True):
        default_route = next(iter(structure))
    for name in (*mappings.values(), *([] if default_route is None else [default_route])):
        if name not in structure:
            raise InvalidCheckpoint(
                f"{path}: there is no route {name!r}; the routes are {', '.join(structure)}"
            )
    if not chains:
        raise UnsupportedModel(f"{path}: none of its routes takes text")
    return Router(
        path=path.parent,
        chains=chains,
        default_route=default_route if default_route in chains else None,
        mappings={key: name for key, name in mappings.items() if name in chains},
    )


def _mappings(saved: Mapping[str, str], path: Path) -> dict[tuple[str | None, Any], str]:
    """JSON has no tuples as keys, so they are saved as Python spells them."""
    mappings = {}
    for spelled, name in saved.items():
        try:
            task, modality = ast.literal_eval(spelled)
            mappings[task, modality] = name
        except (ValueError, SyntaxError, TypeError):
            logger.warning("%s: the route mapping %r cannot be read; it is left out", path, spelled)
    return mappings


def _takes_text(name: str, mappings: Mapping[tuple[str | None, Any], str]) -> bool:
    modalities = [modality for (_, modality), target in mappings.items() if target == name]
    if modalities:
        return any(modality in (None, "text") for modality in modalities)
    return name not in _OTHER_MODALITIES
