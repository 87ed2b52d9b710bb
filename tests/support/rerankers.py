"""Tiny rerankers and classifiers with random weights, and what sentence-transformers predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoints import TEXTS, TOKENIZERS, save_transformer
from families import ENCODER, FAMILIES, MAX_LENGTH, WIDTH
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import Dense, LogitScore, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

__all__ = [
    "DOCUMENTS",
    "PAIRS",
    "QUERIES",
    "RERANKERS",
    "TEMPLATE",
    "predicted",
    "save_answering",
    "save_classifier",
    "save_modular",
    "save_reranker",
]

QUERIES = ("mill", "the stone grinds", "東京 🦊", "which naïve café has water and grain?")
DOCUMENTS = tuple(text for text in TEXTS if text)
PAIRS = tuple((query, document) for query in QUERIES for document in DOCUMENTS)

TEMPLATE = (
    "{%- for m in messages if m.role == 'system' -%}<|im_start|>{{ m.content }}<|im_end|>"
    "{%- endfor -%}"
    "<|im_start|>{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') "
    "| first }} document: {{ messages | selectattr('role', 'eq', 'document') "
    "| map(attribute='content') | first }}<|im_end|>yes or no: "
)
"""A template for pairs, the query first."""

_LANGUAGE_MODELS = {
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}

RERANKERS = (
    *("bert", "roberta", "xlm_roberta", "camembert", "electra", "albert", "distilbert"),
    *("modernbert", "gte", "nomic_bert", "deberta_v2", "mpnet", "eurobert"),
    *("qwen2", "qwen3", "llama", "gemma", "gemma3_text", "phi3", "gpt2"),
)
"""Families whose rerankers the tests run."""


def save_classifier(
    folder: Path, *, model: str, tokenizer: str, config: Mapping[str, Any], labels: int, **more: Any
) -> Path:
    """A model with a head of its own, as transformers saves it."""
    config = {**config, "num_labels": labels, **more}
    return save_transformer(folder, model=model, tokenizer=tokenizer, config=config)


def save_reranker(
    name: str,
    folder: Path,
    *,
    labels: int = 1,
    task: str = "ForSequenceClassification",
    **more: Any,
) -> Path:
    """A family's model for sequences, or for another task."""
    family = next(family for family in FAMILIES if family.name == name)
    model = family.model.removesuffix("Model") + task
    return save_classifier(
        folder,
        model=model,
        tokenizer=family.tokenizer,
        config=family.config,
        labels=labels,
        **more,
    )


def save_modular(folder: Path, **options: Any) -> Path:
    """As the rerankers of the Ettin family: a pooling, and dense layers after it."""
    bare = save_transformer(folder / "bare", config=ENCODER)
    modules: list[torch.nn.Module] = [
        Transformer(str(bare), max_seq_length=MAX_LENGTH),
        Pooling(WIDTH, "mean"),
        Dense(WIDTH, WIDTH, bias=False, activation_function=torch.nn.GELU()),
        Dense(WIDTH, 1, activation_function=None, module_output_name="scores"),
    ]
    return _saved(modules, folder / "saved", **options)


def save_answering(
    folder: Path,
    *,
    name: str = "qwen3",
    template: str | None = None,
    has_false: bool = True,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A language model that scores by the logits of one token or two."""
    family = next(family for family in FAMILIES if family.name == name)
    bare = save_transformer(
        folder / "bare",
        model=_LANGUAGE_MODELS[name],
        tokenizer="chat",
        config={**family.config, "max_position_embeddings": 1024, **(config or {})},
    )
    if template is not None:
        (bare / "chat_template.jinja").write_text(template)
    encoder = Transformer(str(bare), transformer_task="text-generation", max_seq_length=MAX_LENGTH)
    words = TOKENIZERS["chat"]()
    true, false = (words(word)["input_ids"][0] for word in ("the", "a"))
    score = LogitScore(true, false if has_false else None)
    return _saved([encoder, score], folder / "saved", **options)


def _saved(modules: Sequence[torch.nn.Module], folder: Path, **options: Any) -> Path:
    CrossEncoder(modules=list(modules), device="cpu", **options).save(
        str(folder), create_model_card=False
    )
    return folder


def predicted(
    folder: Path,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    max_length: int | None = MAX_LENGTH,
    **options: Any,
) -> Any:
    """What sentence-transformers predicts, in float32 on the CPU."""
    reference = CrossEncoder(
        str(folder), device="cpu", local_files_only=True, max_length=max_length
    )
    return reference.predict([list(pair) for pair in pairs], **options)
