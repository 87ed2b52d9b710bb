"""Rerankers, sparse and multi-vector models with random weights at the shapes of real ones."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import PreTrainedTokenizerFast

from .shapes import SHAPES, TINY, Shape, save_bare, tokenizer_of

__all__ = ["KINDS", "TINY_KINDS", "Kind", "KindShape", "save_kind"]

Kind = Literal["pairs", "sparse", "token vectors"]

TERMS = 100  # that a SPLADE leaves of a short text
TOKEN_DIMENSION, QUERY_LENGTH = 128, 32  # ColBERTv2's
# Larger than usual, so that scores of random weights differ.
SPREAD = {"initializer_range": 0.05}
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
# As the card of Qwen/Qwen3-Reranker-0.6B puts a pair: what documents share stands first.
TEMPLATE = (
    "{{- '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    'and the Instruct provided. Note that the answer can only be "yes" or "no".'
    "<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant "
    "passages that answer the query\n<Query>: ' -}}"
    "{{- messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first -}}"
    "{{- '\n<Document>: ' -}}"
    "{{- messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first -}}"
    "{{- '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' -}}"
)


@dataclass(frozen=True)
class KindShape:
    """What a checkpoint is made of, and what it gives."""

    kind: Kind
    shape: Shape


def _pairs(model: str, like: Shape, **config: Any) -> KindShape:
    own = {**like.config, **SPREAD, "num_labels": 1, **config}
    return KindShape("pairs", Shape(model, own, 512, "", like.dtype))


_XLM_R = SHAPES["XLM-R-large"]
_XLM_R_BASE = replace(
    _XLM_R,
    config={**SHAPES["bge-base"].config, "vocab_size": 250_002, "pad_token_id": 0}
    | {"max_position_embeddings": 514},
)
_QWEN = {"tie_word_embeddings": True}
_SPLADE = Shape("BertForMaskedLM", SHAPES["bge-base"].config, 512, "")
_COLBERT = Shape("BertModel", SHAPES["bge-base"].config, 300, "")
KINDS: Mapping[str, KindShape] = {
    "MiniLM-L6": _pairs("BertForSequenceClassification", SHAPES["MiniLM-L6"]),
    "bge-reranker-base": _pairs("XLMRobertaForSequenceClassification", _XLM_R_BASE),
    "XLM-R-large": _pairs("XLMRobertaForSequenceClassification", _XLM_R),
    "Qwen3-Reranker-0.6B": _pairs("Qwen3ForCausalLM", SHAPES["Qwen3-0.6B"], **_QWEN),
    "SPLADE, BERT-base": KindShape("sparse", _SPLADE),
    "ColBERT, BERT-base": KindShape("token vectors", _COLBERT),
}
"""A name says which model has the shape: ms-marco-MiniLM-L6-v2, bge-reranker-base,
bge-reranker-v2-m3, Qwen3-Reranker-0.6B, splade-v3, colbertv2.0."""
_TINY_XLM_R = TINY["tiny XLM-R"]
TINY_KINDS: Mapping[str, KindShape] = {
    "MiniLM-L6": _pairs("BertForSequenceClassification", TINY["tiny BERT"]),
    "bge-reranker-base": _pairs("XLMRobertaForSequenceClassification", _TINY_XLM_R),
    "XLM-R-large": _pairs("XLMRobertaForSequenceClassification", _TINY_XLM_R),
    "Qwen3-Reranker-0.6B": _pairs("Qwen3ForCausalLM", TINY["tiny Qwen3"], **_QWEN),
    "SPLADE, BERT-base": KindShape("sparse", replace(_SPLADE, config=TINY["tiny BERT"].config)),
    "ColBERT, BERT-base": KindShape(
        "token vectors", replace(_COLBERT, config=TINY["tiny BERT"].config)
    ),
}


def save_kind(of: KindShape, folder: Path, words: Sequence[str]) -> Path:
    """A checkpoint as its library saves it, with random weights."""
    if of.shape.is_decoder:
        return _save_answering(of.shape, folder, words)
    tokenizer = _tokenizer(of.shape, words)
    prepare = _few_terms(tokenizer) if of.kind == "sparse" else None
    bare = save_bare(of.shape, folder / "bare", tokenizer, prepare)
    return _save_token_vectors(of.shape, bare, folder) if of.kind == "token vectors" else bare


def _tokenizer(shape: Shape, words: Sequence[str]) -> PreTrainedTokenizerFast:
    options: dict[str, Any] = {"model_max_length": shape.max_length, "mask_token": "[MASK]"}
    if shape.model.startswith("XLM"):
        options["model_input_names"] = ["input_ids", "attention_mask"]
    return tokenizer_of(words, decoder=False, **options)


def _few_terms(tokenizer: PreTrainedTokenizerFast) -> Callable[[Any], None]:
    """Sets the bias of the last layer so that some hundred dimensions are above 0."""

    @torch.no_grad()
    def prepare(model: Any) -> None:
        ids = tokenizer("the values of a sequence in their order", return_tensors="pt")
        best = model(input_ids=ids["input_ids"].to(model.device)).logits[0].amax(0)
        model.cls.predictions.bias -= best.topk(TERMS).values[-1]

    return prepare


def _save_answering(shape: Shape, folder: Path, words: Sequence[str]) -> Path:
    """A language model that answers yes or no, the query before the document."""
    known = [*words, *(word.strip('.",:') for word in TEMPLATE.split())]
    tokenizer = tokenizer_of(known, decoder=True, special=CHAT_TOKENS)
    tokenizer.chat_template = TEMPLATE
    bare = save_bare(shape, folder / "bare", tokenizer)
    encoder = Transformer(
        str(bare),
        transformer_task="text-generation",
        max_seq_length=shape.max_length,
        model_kwargs={"dtype": shape.dtype},
    )
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    modules: list[torch.nn.Module] = [encoder, LogitScore(yes, no)]
    CrossEncoder(modules=modules, device="cpu").save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def _save_token_vectors(shape: Shape, bare: Path, folder: Path) -> Path:
    names = {"module_input_name": "token_embeddings"}
    expansion: Any = {"strategy": "fixed", "attend": False, "length": QUERY_LENGTH}
    encoder = Transformer(
        str(bare),
        max_seq_length=shape.max_length,
        query_expansion=expansion,
        model_kwargs={"dtype": shape.dtype},
    )
    width = shape.config["hidden_size"]
    linear = torch.nn.Identity()
    modules = [
        encoder,
        Dense(width, TOKEN_DIMENSION, bias=False, activation_function=linear, **names),
        MultiVectorMask(list(string.punctuation)),
        Normalize(**names),
    ]
    model = MultiVectorEncoder(modules=modules, device="cpu")
    model.save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"
