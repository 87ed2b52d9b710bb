"""What a checkpoint says that gives a vector for each token: ColBERT and late interaction.

Reads the folders of sentence-transformers 6's `MultiVectorEncoder`, those of PyLate (`query_prefix`
and others in config_sentence_transformers.json) and those of Stanford's ColBERT
(`artifact.metadata`, and `linear.weight` among the model's weights), as sentence-transformers 6
reads all three. It loads no weights.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...errors import UnsupportedModel
from ..files import read_json_object, whole_number
from ..input_config import QueryExpansion, query_expansion
from ..modules import Chain, Module, Router, chain_for
from ..routes import Route, Routes

__all__ = [
    "MultiVectorSpec",
    "is_pylate",
    "is_stanford",
    "pylate_chain",
    "pylate_prompts",
    "read_multi_vector",
    "read_multi_vector_routes",
    "stanford_chain",
]

TOKENS = "token_embeddings"
_ON_TOKENS = {"module_input_name": TOKENS, "module_output_name": TOKENS}
Similarity = Literal["maxsim", "meanmaxsim"]

_PYLATE_KEYS = (
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "do_query_expansion",
    "document_length",
    "document_prefix",
    "query_expansion",
    "query_length",
    "query_prefix",
    "skiplist_words",
)
# The first two of them, a SentenceTransformer of another kind might have as well.
_ONLY_PYLATE_KEYS = frozenset(_PYLATE_KEYS) - {"document_length", "query_length"}
_USUAL_QUERY_LENGTH = 32  # of ColBERT


@dataclass(frozen=True, kw_only=True)
class MultiVectorSpec:
    """How token vectors are compared."""

    similarity: Similarity = "maxsim"
    """`meanmaxsim` divides by the vectors of the query."""
    route: str | None = None
    """The route that all texts take to token vectors, of a model that gives a dense one too."""
    all_route: str | None = None
    """The route to all that such a model gives, in one pass."""


def read_multi_vector(saved: Mapping[str, Any]) -> MultiVectorSpec:
    """From config_sentence_transformers.json."""
    found = saved.get("similarity_fn_name")
    return MultiVectorSpec(similarity="meanmaxsim" if found == "meanmaxsim" else "maxsim")


def read_multi_vector_routes(chain: Chain, root: Path) -> Routes:
    """One for queries and one for documents.

    They are one route where they do not differ. A text without a task is a document.
    """
    found = {task: _modules_for(chain, task, root) for task in ("query", "document")}
    if found["query"] == found["document"]:
        route = Route(name="default", modules=found["document"])
        return Routes((route,), dict.fromkeys(found, "default"), "default")
    routes = tuple(Route(name=task, modules=modules) for task, modules in found.items())
    return Routes(routes, {task: task for task in found}, "document")


def _modules_for(chain: Chain, task: str, root: Path) -> tuple[Module, ...]:
    """The modules for texts of a task, each as it concerns that task.

    The transformer, what becomes of its rows, which of them are kept (`MultiVectorMask`), and how
    they are pooled (`HierarchicalTokenPooling`). Raises `UnsupportedModel` or a subclass.
    """
    first, *rest = chain_for(chain, task)[1]
    if first.kind != "Transformer" or first.options["task"] != "feature-extraction":
        raise UnsupportedModel(
            f"{root}: a {first.class_name} reads its texts; token vectors are those of a "
            "Transformer's last hidden state"
        )
    rest = [module for module in map(_on_tokens, rest) if module is not None]
    steps = [m for m in rest if m.kind not in ("MultiVectorMask", "HierarchicalTokenPooling")]
    masks = [m for m in rest if m.kind == "MultiVectorMask"]
    pools = [m for m in rest if m.kind == "HierarchicalTokenPooling"]
    if len(masks) > 1 or len(pools) > 1:
        raise UnsupportedModel(f"{root}: there are two {(masks[1:] or pools[1:])[0].class_name}")
    _require_order(rest, root)
    if pools and steps and rest.index(pools[0]) < rest.index(steps[-1]):  # a Normalize after it
        pools = [replace(pools[0], options={**pools[0].options, "normalize": True})]
        steps.pop()
    ends = [_mask_for(mask, task) for mask in masks] + [_pooling_for(pool, task) for pool in pools]
    expanding = _expanding(first, scored=bool(masks))
    return (expanding, *steps, *(module for module in ends if module is not None))


def _on_tokens(module: Module) -> Module | None:
    """A module as it changes token vectors; None if it does not."""
    if module.kind in ("MultiVectorMask", "HierarchicalTokenPooling"):
        return module
    if module.kind in ("Dropout", "Pooling"):
        return None
    if module.kind not in ("Dense", "Normalize", "LayerNorm"):
        raise UnsupportedModel(
            f"{module.path}: {module.class_name} in a model that gives token vectors is not "
            "supported"
        )
    if module.kind == "Dense" and _is_older_than_names(module):
        return replace(module, options={**module.options, **_ON_TOKENS})
    is_on_tokens = all(module.options.get(name) == TOKENS for name in _ON_TOKENS)
    return module if is_on_tokens else None


def _is_older_than_names(module: Module) -> bool:
    """Of the days when a Dense of a multi-vector model did not say what it works on."""
    saved = {} if module.options.get("inline") else read_json_object(module.path / "config.json")
    return "module_input_name" not in saved


def _require_order(rest: Sequence[Module], root: Path) -> None:
    """A token pooling comes after all but a Normalize: it changes how many vectors there are."""
    kinds = [module.kind for module in rest]
    if "HierarchicalTokenPooling" in kinds:
        after = kinds[kinds.index("HierarchicalTokenPooling") + 1 :]
        if after not in ([], ["Normalize"]):
            raise UnsupportedModel(f"{root}: {after[0]} comes after a token pooling")


def _mask_for(mask: Module, task: str) -> Module | None:
    words = mask.options["skiplist_words"] if task in mask.options["skiplist_tasks"] else ()
    kept = None if task == "query" else mask.options["keep_only_token_ids"]
    if not words and not kept:
        return None
    return replace(mask, options={"skip_words": tuple(words), "kept_ids": tuple(kept or ())})


def _pooling_for(pool: Module, task: str) -> Module | None:
    options = dict(pool.options)
    applies = task in options.pop("tasks") and (options["factor"] > 1 or options["normalize"])
    return replace(pool, options=options) if applies else None


def _expanding(first: Module, *, scored: bool) -> Module:
    """The transformer, with what fills its queries up if that changes their vectors."""
    expansion: QueryExpansion | None = first.options.get("query_expansion")
    if expansion is None:
        return first
    if first.options["chat"] is not None:
        raise UnsupportedModel(
            f"{first.path}: query_expansion and a chat template do not go together"
        )
    options = dict(first.options)
    longest = options["query_length"]
    if expansion.is_fixed:
        options["query_length"] = expansion.length
    elif longest is not None:
        options["query_length"] = max(longest, expansion.length)
    if not scored and not expansion.attended:
        options["query_expansion"] = None
    return replace(first, options=options)


# PyLate.


def is_pylate(saved: Mapping[str, Any], entries: Sequence[str]) -> bool:
    """By config_sentence_transformers.json and the types in modules.json."""
    if saved.get("model_type") == "ColBERT" or any(e.startswith("pylate.") for e in entries):
        return True
    is_of_another = saved.get("model_type") not in (None, "SentenceTransformer")
    return not is_of_another and not _ONLY_PYLATE_KEYS.isdisjoint(saved)


def pylate_chain(chain: Chain, saved: Mapping[str, Any], root: Path) -> Chain:
    """With what PyLate does outside of its modules, as modules."""
    path = root / "config_sentence_transformers.json"
    if not chain or isinstance(chain[0], Router):
        raise UnsupportedModel(f"{root}: a PyLate model begins with a Transformer")
    first, *rest = chain
    assert isinstance(first, Module)
    options = dict(first.options)
    saved = {key: saved[key] for key in (*_PYLATE_KEYS,) if key in saved}
    for name in ("query_length", "document_length"):
        if options[name] is None:
            options[name] = whole_number(saved, name, path, of="tokens")
    if options["query_expansion"] is None and "query_expansion" not in saved and saved:
        if saved.get("do_query_expansion") is not False:
            attend = saved.get("attend_to_expansion_tokens", saved.get("attend_to_mask_tokens"))
            options["query_expansion"] = QueryExpansion(
                length=options["query_length"] or _USUAL_QUERY_LENGTH,
                is_fixed=True,
                attended=bool(attend),
            )
    elif saved.get("query_expansion") is not None and options["query_expansion"] is None:
        options["query_expansion"] = query_expansion(saved, path)
    prefixes = [saved.get(name) for name in ("query_prefix", "document_prefix")]
    options["prefix_tokens"] = tuple(prefix for prefix in prefixes if prefix)
    words = saved.get("skiplist_words")
    kinds = {m.kind for m in rest if isinstance(m, Module)}
    added = [] if "MultiVectorMask" in kinds else [_mask(root, words)]
    after = [m for m in rest if not (isinstance(m, Module) and m.kind == "Pooling")]
    return (
        replace(first, options=options),
        *after,
        *added,
        Module.of("Normalize", root, **_ON_TOKENS),
    )


def pylate_prompts(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved prompts, with the prefixes in front that PyLate puts there."""
    prompts = dict(saved.get("prompts") or {})
    for task in ("query", "document"):
        if f"{task}_prefix" in saved:
            prefix = saved[f"{task}_prefix"] or ""
            prompts[task] = prefix + (prompts.get(task) or "").removeprefix(prefix)
    return prompts


def _mask(root: Path, words: Sequence[str] | None) -> Module:
    """Of documents without the punctuation, unless other words are named."""
    skipped = tuple(string.punctuation if words is None else words)
    tasks = ("document",)
    return Module.of(
        "MultiVectorMask",
        root,
        skiplist_words=skipped,
        skiplist_tasks=tasks,
        keep_only_token_ids=None,
    )


# Stanford.


def is_stanford(root: Path) -> bool:
    """By the name of the model's class."""
    return "HF_ColBERT" in (read_json_object(root / "config.json").get("architectures") or ())


def stanford_chain(root: Path, transformer: Module) -> tuple[Chain, dict[str, str]]:
    """The modules of a Stanford ColBERT folder, and its prompts.

    The defaults are those of Stanford's `ColBERTConfig`, where `artifact.metadata` is missing.
    """
    path = root / "artifact.metadata"
    saved = read_json_object(path)
    prompts = {
        "query": (saved.get("query_token_id") or "[unused0]") + " ",
        "document": (saved.get("doc_token_id") or "[unused1]") + " ",
    }
    documents = whole_number(saved, "doc_maxlen", path, of="tokens")
    queries = whole_number(saved, "query_maxlen", path, of="tokens")
    options = {
        **transformer.options,
        "chat": None,
        "document_length": documents,
        "query_expansion": QueryExpansion(
            length=queries or _USUAL_QUERY_LENGTH,
            is_fixed=True,
            attended=bool(saved.get("attend_to_mask_tokens")),
        ),
        "prefix_tokens": tuple(prompts.values()),
    }
    words = None if saved.get("mask_punctuation", True) else ()
    chain = (
        replace(transformer, options=options),
        Module.of("Dense", root, inline=True, **_ON_TOKENS),
        _mask(root, words),
        Module.of("Normalize", root, **_ON_TOKENS),
    )
    return chain, prompts
