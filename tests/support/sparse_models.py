"""Tiny sparse models with random weights, as sentence-transformers' `SparseEncoder` saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from checkpoints import TOKENIZERS, save_transformer
from families import ENCODER, FAMILIES, MAX_LENGTH, WIDTH
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import (
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
)

__all__ = [
    "MASKED",
    "encoded",
    "save_latent",
    "save_masked",
    "save_routed",
    "save_splade",
    "save_static",
]

MASKED = (
    *("bert", "distilbert", "roberta", "xlm_roberta", "modernbert", "mpnet", "electra"),
    *("albert", "camembert", "eurobert", "deberta_v2", "nomic_bert", "megatron_bert"),
)
"""Families whose masked language models the tests run, packed and padded ones."""
PROMPTS = {"query": "mill: ", "document": "stone "}


def save_masked(folder: Path, family: str = "bert", **config: Any) -> Path:
    """A masked language model and its tokenizer, without modules.json."""
    found = next(each for each in FAMILIES if each.name == family)
    return save_transformer(
        folder,
        model=f"{found.model.removesuffix('Model')}ForMaskedLM",
        tokenizer=found.tokenizer,
        config={**found.config, "initializer_range": 0.1, **config},
    )


def save_splade(folder: Path, family: str = "bert", **pooling: Any) -> Path:
    """A Transformer for fill-mask and a `SpladePooling` with these options."""
    return save(folder, splade_modules(folder, family, **pooling), prompts=PROMPTS)


def splade_modules(folder: Path, family: str = "bert", **pooling: Any) -> list[torch.nn.Module]:
    plain = save_masked(folder / "plain", family)
    transformer = Transformer(str(plain), transformer_task="fill-mask", max_seq_length=MAX_LENGTH)
    return [transformer, SpladePooling(**pooling)]


def static_module() -> SparseStaticEmbedding:
    tokenizer = TOKENIZERS["word_piece"]()
    random = torch.Generator().manual_seed(3)
    weights = torch.randn(len(tokenizer), generator=random)
    weights[::3] = 0.0
    return SparseStaticEmbedding(tokenizer, weight=weights)


def save_static(folder: Path) -> Path:
    """A weight for each token, some of them 0 and some below."""
    return save(folder, [static_module()])


def save_routed(folder: Path) -> Path:
    """Queries by a table, documents by a transformer."""
    router = Router.for_query_document([static_module()], splade_modules(folder))
    return save(folder, [router], prompts=PROMPTS)


def save_latent(folder: Path, *, k: int = 7, normalize: bool = False) -> Path:
    """A dense model, and the few of its latents that are largest (CSR)."""
    plain = save_transformer(folder / "plain", config=ENCODER)
    encoder = SparseAutoEncoder(WIDTH, hidden_dim=4 * WIDTH, k=k, k_aux=16, normalize=normalize)
    with torch.no_grad():
        random = torch.Generator().manual_seed(4)
        for parameter in (encoder.pre_bias, encoder.latent_bias):
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
        weight = encoder.encoder.weight
        weight.copy_(torch.randn(weight.shape, generator=random) * 0.1)
    transformer = Transformer(str(plain), max_seq_length=MAX_LENGTH)
    return save(folder, [transformer, Pooling(WIDTH, "mean"), encoder])


def save(folder: Path, modules: Sequence[torch.nn.Module], **options: Any) -> Path:
    model = SparseEncoder(modules=list(modules), device="cpu", **options)
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def encoded(
    folder: Path, texts: Sequence[str], task: str | None = None, **options: Any
) -> npt.NDArray[np.float32]:
    """What sentence-transformers gives of texts, `[n, dimension]`, one at a time."""
    model = SparseEncoder(str(folder), device="cpu", local_files_only=True)
    how = {"query": model.encode_query, "document": model.encode_document, None: model.encode}
    found = how[task](list(texts), batch_size=1, convert_to_sparse_tensor=False, **options)
    return np.asarray(found, dtype=np.float32)
