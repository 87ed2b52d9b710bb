"""Tiny multi-vector models with random weights, in each of the formats that they are saved in."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import save_transformer
from families import FAMILIES, MAX_LENGTH, WIDTH
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import (
    HierarchicalTokenPooling,
    MultiVectorMask,
)

__all__ = [
    "DIMENSION",
    "MULTI_VECTOR",
    "add_token",
    "encoded",
    "save_bge_m3",
    "save_multi_vector",
    "save_pylate",
    "save_stanford",
]

DIMENSION = 24
MULTI_VECTOR = (
    *("bert", "roberta", "xlm_roberta", "distilbert", "modernbert", "electra", "mpnet"),
    *("albert", "camembert", "deberta_v2", "nomic_bert", "eurobert", "qwen3"),
)
"""Families whose multi-vector models the tests run."""

EXPANSION = {"strategy": "fixed", "attend": False, "length": 12}
PROMPTS = {"query": "mill: ", "document": "stone "}


def save_multi_vector(
    folder: Path,
    *,
    family: str = "bert",
    expansion: Mapping[str, Any] | None = EXPANSION,
    lengths: Mapping[str, int] | None = None,
    skipped: Sequence[str] = tuple(string.punctuation),
    pooling: HierarchicalTokenPooling | None = None,
    mask: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A `MultiVectorEncoder` as sentence-transformers saves it; `options` are its own."""
    plain = save_family_transformer(folder / "plain", family)
    transformer = Transformer(
        str(plain),
        max_seq_length=MAX_LENGTH,
        query_expansion=None if expansion is None else dict(expansion),
        **(lengths or {}),
    )
    modules = [
        transformer,
        dense(),
        MultiVectorMask(list(skipped), **(mask or {})),
        Normalize(module_input_name="token_embeddings"),
        *([pooling] if pooling is not None else []),
    ]
    model = MultiVectorEncoder(modules=modules, device="cpu", **{"prompts": PROMPTS, **options})
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def save_family_transformer(folder: Path, family: str) -> Path:
    """A transformer and its tokenizer."""
    found = next(each for each in FAMILIES if each.name == family)
    return save_transformer(
        folder, model=found.model, tokenizer=found.tokenizer, config=found.config
    )


def dense(width: int = WIDTH) -> Dense:
    """A projection of token vectors."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Dense(
            width,
            DIMENSION,
            bias=False,
            activation_function=torch.nn.Identity(),
            module_input_name="token_embeddings",
        )


def save_pylate(folder: Path, **saved: Any) -> Path:
    """As PyLate 1 saves a `ColBERT`: a Transformer and its own Dense, the rest beside them.

    https://github.com/lightonai/pylate, `pylate/models/colbert.py` and `Dense.py`.
    """
    save_family_transformer(folder, "bert")
    projection = folder / "1_Dense"
    projection.mkdir()
    save_file({"linear.weight": dense().linear.weight.detach()}, projection / "model.safetensors")
    write(
        projection / "config.json",
        {
            "in_features": WIDTH,
            "out_features": DIMENSION,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    types = {"": "sentence_transformers.models.Transformer", "1_Dense": "pylate.models.Dense.Dense"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(types.items())
    ]
    write(folder / "modules.json", modules)
    usual = {
        "model_type": "ColBERT",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 20,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
    }
    write(folder / "config_sentence_transformers.json", {**usual, **saved})
    return folder


def save_stanford(folder: Path, metadata: Mapping[str, Any] | None) -> Path:
    """As Stanford's ColBERT saves itself: a projection among BERT's weights, and its settings.

    https://github.com/stanford-futuredata/ColBERT, `colbert/modeling/hf_colbert.py`.
    """
    save_family_transformer(folder, "bert")
    weights = {
        f"bert.{name}": each for name, each in load_file(folder / "model.safetensors").items()
    }
    weights["linear.weight"] = dense().linear.weight.detach().clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    if metadata is not None:
        write(folder / "artifact.metadata", dict(metadata))
    return folder


def add_token(folder: Path, token: str) -> int:
    """Put a token into a vocabulary, in the place of a word; its id.

    Text does not give it, since it is cut apart: PyLate and Stanford insert the id.
    """
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    vocabulary = saved["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[token] = vocabulary.pop(last)
    path.write_text(json.dumps(saved))
    return int(vocabulary[token])


def save_bge_m3(folder: Path, *, vector_width: int = DIMENSION, whole: bool = True) -> Path:
    """As bge-m3 is saved: XLM-RoBERTa, and two linear layers by `torch.save`.

    https://huggingface.co/BAAI/bge-m3; with `whole`, also sentence-transformers' files.
    """
    save_family_transformer(folder, "xlm_roberta")
    with torch.random.fork_rng():
        torch.manual_seed(13)
        for name, width in (("colbert", vector_width), ("sparse", 1)):
            torch.save(torch.nn.Linear(WIDTH, width).state_dict(), folder / f"{name}_linear.pt")
    if not whole:
        return folder
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(types.items())
    ]
    write(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH})
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def encoded(folder: Path, texts: Sequence[str], task: str | None, **options: Any) -> list[Any]:
    """What sentence-transformers gives of each text, one at a time."""
    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    how = {"query": model.encode_query, "document": model.encode_document, None: model.encode}
    found = how[task](list(texts), batch_size=1, convert_to_numpy=True, **options)
    return [np.asarray(each, dtype=np.float32) for each in found]
