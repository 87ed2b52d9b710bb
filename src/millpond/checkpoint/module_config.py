"""The options of each kind of module, read from its config file, in their newest spelling.

The formats are those that sentence-transformers 6 reads. One function for each kind, which knows
nothing of the chain around the module.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from ..config import PoolingMode
from ..errors import InvalidCheckpoint, UnsupportedModel
from .files import has_file, has_tokenizer, read_json_object, whole_number
from .input_config import chat_options, length_options, query_expansion

__all__ = ["KINDS", "read_options", "transformer_config", "transformer_options"]

logger = logging.getLogger(__name__)

_TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# In the order in which several of them are concatenated.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_FEATURES = ("token_embeddings", "sentence_embedding")
_SCORES = "scores"  # the feature that the last module of a reranker gives

_TASKS = ("feature-extraction", "fill-mask", "sequence-classification", "text-generation")
_TANH = "torch.nn.modules.activation.Tanh"

# What a checkpoint may not decide: whose code runs, where files come from, which precision,
# device and attention the engine uses.
_ENGINE_KEYS = frozenset(
    {
        "attn_implementation",
        "cache_dir",
        "code_revision",
        "device_map",
        "dtype",
        "force_download",
        "local_files_only",
        "revision",
        "subfolder",
        "token",
        "torch_dtype",
        "tp_plan",
        "trust_remote_code",
        "use_auth_token",
        "use_cache",
        "use_kernels",
    }
)


def transformer_config(folder: Path) -> dict[str, Any]:
    """The transformers `config.json` of a Transformer module.

    Raises `UnsupportedModel` for a folder that holds no model transformers can name, or one
    that reads no text.
    """
    if has_file(folder / "adapter_config.json"):
        raise UnsupportedModel(
            f"{folder} holds a PEFT adapter (adapter_config.json); merge it into its base model "
            "with merge_and_unload(), save that, and load the result"
        )
    path = folder / "config.json"
    if not has_file(path):
        raise UnsupportedModel(
            f"{folder} has no config.json, so it holds no model that transformers can load"
        )
    config = read_json_object(path, required=True)
    model_type = config.get("model_type")
    if model_type == "model2vec":
        raise UnsupportedModel(
            f"{path} is a model2vec model without a modules.json that calls it a "
            "StaticEmbedding; save it from sentence-transformers first"
        )
    if not isinstance(model_type, str) and not config.get("auto_map"):
        raise UnsupportedModel(f"{path} names no model_type, so transformers cannot load it")
    if not has_tokenizer(folder):
        if (folder / "preprocessor_config.json").is_file():
            raise UnsupportedModel(f"{folder} takes images or sound, not text: it has no tokenizer")
        raise InvalidCheckpoint(f"{folder} has no tokenizer; add its tokenizer.json")
    return config


def transformer_options(
    saved: Mapping[str, Any], *, path: Path, whole: bool = False
) -> dict[str, Any]:
    """The options of a Transformer module, from its sentence_bert_config.json at `path`.

    Always has `task` (what transformers loads it for), `max_seq_length`, `query_length`,
    `document_length` and `call_length` (tokens or None), `query_expansion` (None for models that
    are not multi-vector), `do_lower_case`, `chat` (what `chat_options` gives), and
    `model_kwargs`, `processor_kwargs` and `config_kwargs` (dicts).
    `whole`: a folder without modules.json.
    """
    _refuse_other_inputs(saved, path)
    chat = chat_options(saved, path, whole=whole)
    return {
        "task": saved.get("transformer_task", "feature-extraction"),
        "max_seq_length": whole_number(saved, "max_seq_length", path, of="tokens"),
        "query_expansion": query_expansion(saved, path),
        **length_options(saved, path, has_chat=chat is not None),
        "do_lower_case": bool(saved.get("do_lower_case", False)),
        "chat": chat,
        "model_kwargs": _arguments(saved, "model_kwargs", "model_args", path),
        "processor_kwargs": _arguments(saved, "processor_kwargs", "tokenizer_args", path),
        "config_kwargs": _arguments(saved, "config_kwargs", "config_args", path),
    }


def _transformer(folder: Path) -> dict[str, Any]:
    transformer_config(folder)
    for name in _TRANSFORMER_FILES:
        saved = read_json_object(folder / name)
        if saved:
            return transformer_options(saved, path=folder / name)
    return transformer_options({}, path=folder / _TRANSFORMER_FILES[0])


def _refuse_other_inputs(saved: Mapping[str, Any], path: Path) -> None:
    task = saved.get("transformer_task", "feature-extraction")
    if task not in (*_TASKS, "token-classification"):
        raise UnsupportedModel(
            f"{path}: transformer_task {task!r} gives neither embeddings nor scores; "
            f"only {', '.join(_TASKS)} are supported"
        )
    if saved.get("tokenizer_name_or_path") is not None:
        raise UnsupportedModel(
            f"{path}: tokenizer_name_or_path={saved['tokenizer_name_or_path']!r} keeps the "
            "tokenizer elsewhere; put its files into the checkpoint and remove the key"
        )


def _arguments(saved: Mapping[str, Any], key: str, old_key: str, path: Path) -> dict[str, Any]:
    value = saved.get(old_key, saved.get(key)) or {}
    if not isinstance(value, Mapping):
        raise InvalidCheckpoint(f"{path}: {key} is not an object")
    return {name: item for name, item in value.items() if name not in _ENGINE_KEYS}


def _pooling(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    known = get_args(PoolingMode)
    modes = _pooling_modes(saved)
    if not modes or not all(isinstance(mode, str) and mode in known for mode in modes):
        raise InvalidCheckpoint(
            f"{path}: pooling_mode is {saved.get('pooling_mode')!r}; "
            f"it must be one or more of {', '.join(known)}"
        )
    return {"modes": modes, "include_prompt": bool(saved.get("include_prompt", True))}


def _pooling_modes(saved: Mapping[str, Any]) -> tuple[Any, ...]:
    if "pooling_mode" in saved:
        mode = saved["pooling_mode"]
        return tuple(mode) if isinstance(mode, list) else (mode,)
    modes = tuple(mode for key, mode in _OLD_POOLING_KEYS.items() if saved.get(key, False))
    return modes or ("mean",)


def _dense(saved: Mapping[str, Any], path: Path, trust: bool) -> dict[str, Any]:
    return {
        "in_features": _size(saved, "in_features", path),
        "out_features": _size(saved, "out_features", path),
        "bias": bool(saved.get("bias", True)),
        "activation_function": _activation(saved.get("activation_function", _TANH), path, trust),
        "use_residual": bool(saved.get("use_residual", False)),
        **_feature_names(saved, path),
    }


def _activation(name: object, path: Path, trust: bool) -> str:
    """The dotted path of an activation class; a class that is not torch's own needs trust."""
    if not isinstance(name, str):
        raise InvalidCheckpoint(f"{path}: activation_function is {name!r}, not a class path")
    if not name.startswith("torch."):
        if trust:
            return name
        logger.warning(
            "%s: activation_function %s is not torch's own and trust_remote_code is off; "
            "Tanh is used instead, as sentence-transformers does",
            path,
            name,
        )
        return _TANH
    torch: Any = importlib.import_module("torch")  # a checkpoint without such a name needs none
    found = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise InvalidCheckpoint(f"{path}: activation_function {name} is no torch.nn.Module class")
    return name


def _feature_names(saved: Mapping[str, Any], path: Path) -> dict[str, str]:
    source = saved.get("module_input_name", "sentence_embedding")
    target = saved.get("module_output_name") or source
    for name, known in ((source, _FEATURES), (target, (*_FEATURES, _SCORES))):
        if name not in known:
            raise UnsupportedModel(f"{path}: works on {name!r}; only {' and '.join(known)} exist")
    return {"module_input_name": source, "module_output_name": target}


def _size(saved: Mapping[str, Any], key: str, path: Path) -> int:
    value = whole_number(saved, key, path, of="dimensions")
    if value is None:
        raise InvalidCheckpoint(f"{path}: {key} is missing")
    return value


def _weighted_layer_pooling(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    return {
        "layer_start": int(saved.get("layer_start", 4)),
        "num_hidden_layers": int(saved.get("num_hidden_layers", 12)),
    }


def _static_embedding(folder: Path) -> dict[str, Any]:
    if not has_file(folder / "tokenizer.json"):
        raise InvalidCheckpoint(f"{folder} is a StaticEmbedding and has no tokenizer.json")
    return {}


def _logit_score(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    true_token, false_token = saved.get("true_token_id"), saved.get("false_token_id")
    for name, token in (("true_token_id", true_token), ("false_token_id", false_token)):
        is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
        if not is_id and (token is not None or name == "true_token_id"):
            raise InvalidCheckpoint(f"{path}: {name} is {token!r}, not a token id")
    return {"true_token_id": true_token, "false_token_id": false_token}


def _multi_vector_mask(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    words, tasks = saved.get("skiplist_words") or (), saved.get("skiplist_tasks", ("document",))
    kept = saved.get("keep_only_token_ids")
    are_words = all(isinstance(word, str) for word in (*words, *tasks))
    if not are_words or not all(isinstance(token, int) for token in kept or ()):
        raise InvalidCheckpoint(
            f"{path}: skiplist_words and skiplist_tasks are to be strings, keep_only_token_ids ids"
        )
    return {
        "skiplist_words": tuple(words),
        "skiplist_tasks": (tasks,) if isinstance(tasks, str) else tuple(tasks),
        "keep_only_token_ids": None if kept is None else tuple(kept),
    }


def _hierarchical_token_pooling(
    saved: Mapping[str, Any], path: Path, _trust: bool
) -> dict[str, Any]:
    """Without `normalize_embeddings` it is of the time before that was the rule."""
    factor, protected = saved.get("pool_factor", 1.0), saved.get("num_protected_tokens", 1)
    tasks = saved.get("tasks") or ("document",)
    if not isinstance(factor, int | float) or factor < 1 or not isinstance(protected, int):
        raise InvalidCheckpoint(
            f"{path}: pool_factor={factor!r} is to be at least 1, num_protected_tokens="
            f"{protected!r} a number"
        )
    return {
        "factor": float(factor),
        "protected": protected,
        "normalize": bool(saved.get("normalize_embeddings", False)),
        "tasks": (tasks,) if isinstance(tasks, str) else tuple(tasks),
    }


def _mlm_transformer(folder: Path) -> dict[str, Any]:
    """The older name of a Transformer for fill-mask."""
    return {**_transformer(folder), "task": "fill-mask"}


def _splade_pooling(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    found = {
        "strategy": saved.get("pooling_strategy", "max"),
        "activation": saved.get("activation_function", "relu"),
    }
    if found["strategy"] not in ("max", "sum") or found["activation"] not in ("relu", "log1p_relu"):
        raise InvalidCheckpoint(
            f"{path}: pooling_strategy={found['strategy']!r} is to be 'max' or 'sum', "
            f"activation_function={found['activation']!r} 'relu' or 'log1p_relu'"
        )
    return found


def _sparse_static_embedding(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    folder, weights = path.parent, saved.get("path")
    if not has_tokenizer(folder):
        raise InvalidCheckpoint(f"{folder} is a SparseStaticEmbedding and has no tokenizer.json")
    if weights is not None and (not isinstance(weights, str) or not has_file(folder / weights)):
        raise InvalidCheckpoint(f"{path}: there is no file {weights!r} with the weights of tokens")
    return {"weights": weights}


def _sparse_auto_encoder(saved: Mapping[str, Any], path: Path, _trust: bool) -> dict[str, Any]:
    return {
        "in_features": _size(saved, "input_dim", path),
        "out_features": _size({"hidden_dim": 512, **saved}, "hidden_dim", path),
        "k": _size({"k": 8, **saved}, "k", path),
        "normalize": bool(saved.get("normalize", False)),
    }


_BY_FOLDER: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "Dropout": lambda _folder: {},
    "MLMTransformer": _mlm_transformer,
    "StaticEmbedding": _static_embedding,
    "Transformer": _transformer,
}
_BY_CONFIG: Mapping[str, Callable[[Mapping[str, Any], Path, bool], dict[str, Any]]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": lambda saved, path, _trust: {"dimension": _size(saved, "dimension", path)},
    "Normalize": lambda saved, path, _trust: _feature_names(saved, path),
    "WeightedLayerPooling": _weighted_layer_pooling,
    "LogitScore": _logit_score,
    "SpladePooling": _splade_pooling,
    "SparseStaticEmbedding": _sparse_static_embedding,
    "SparseAutoEncoder": _sparse_auto_encoder,
    "MultiVectorMask": _multi_vector_mask,
    "HierarchicalTokenPooling": _hierarchical_token_pooling,
    "custom": lambda saved, _path, _trust: dict(saved),
}
"""By what a module's config.json says, its path, and whether the checkpoint's code is trusted."""
# The file is younger than some modules, and git keeps no empty folders: both may be absent.
_MAY_HAVE_NO_CONFIG = {"Normalize", "SpladePooling", "SparseStaticEmbedding", "custom"}
KINDS = frozenset({*_BY_FOLDER, *_BY_CONFIG})
"""The kinds of module that can be read, and `custom`: the checkpoint's own code."""


def read_options(kind: str, folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """The options of a module of one of `KINDS`, whose files are in the folder.

    Raises `InvalidCheckpoint` or `UnsupportedModel`.
    """
    if kind in _BY_FOLDER:
        return _BY_FOLDER[kind](folder)
    path = folder / "config.json"
    saved = read_json_object(path, required=kind not in _MAY_HAVE_NO_CONFIG)
    return _BY_CONFIG[kind](saved, path, trust_remote_code)
