"""A transformer's weights, on a device and in a precision: `load_transformer`.

Plain BERT on a CPU is built from its files (`bert`). For everything else transformers' own model
code is imported (`from_transformers`). No model is run here.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...checkpoint.files import find_weights, read_json_object, safetensors_header
from ...checkpoint.modules import Module
from ...checkpoint.weights import refuse_non_finite
from ...errors import InvalidCheckpoint
from ..device import DTYPES
from .bert import load_bert
from .loaded import LoadedTransformer

if TYPE_CHECKING:
    from ..split.ranks import RankGroup

__all__ = ["checkpoint_dtype", "load_transformer"]

_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_transformer(
    module: Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    cache_dir: str | None = None,
    ranks: RankGroup | None = None,
) -> LoadedTransformer:
    """Load the transformer in `module.path`, or one rank's part of it. Prints nothing.

    Code of its own, where it is trusted, is in that folder or in the cache (None: the default one).

    Raises `InvalidCheckpoint` when weights are missing, not finite or of the wrong shape,
    `DoesNotFit` when they are not finite in this precision alone, and
    `UnsupportedModel` when transformers has no class for it or needs its own code.
    """
    files = find_weights(module.path)
    if not files:
        raise InvalidCheckpoint(
            f"{module.path} has no model.safetensors and no pytorch_model.bin, or not all shards "
            "of it"
        )
    bert = load_bert(module, dtype) if device.type == "cpu" and ranks is None else None
    if bert is not None:
        refuse_non_finite(module.path, bert.named_parameters())
        return LoadedTransformer(
            model=bert,
            config=bert.config,
            hidden_size=bert.config.hidden_size,
            vocab_size=bert.config.vocab_size,
            max_positions=bert.config.max_position_embeddings,
            needs_token_type_ids=True,
        )
    from .from_transformers import load_pretrained  # only now that it is needed

    code = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    return load_pretrained(module, files, device=device, dtype=dtype, code=code, ranks=ranks)


def checkpoint_dtype(module: Module) -> torch.dtype | None:
    """The precision the weights were saved in: by config.json, else by the weights themselves."""
    config = read_json_object(module.path / "config.json")
    for place in (config, config.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            saved = place.get(key) if isinstance(place, dict) else None
            if isinstance(saved, str) and saved.removeprefix("torch.") in DTYPES:
                return DTYPES[saved.removeprefix("torch.")]
    return _weights_dtype(module.path)


def _weights_dtype(folder: Path) -> torch.dtype | None:
    """The dtype that most of the numbers in the folder's first safetensors file have."""
    first = next(iter(find_weights(folder)), None)
    if first is None or first.suffix != ".safetensors":
        return None
    numbers: Counter[torch.dtype] = Counter()
    for entry in safetensors_header(first).values():
        dtype = _SAFETENSORS_DTYPES.get(entry.get("dtype"))
        if dtype is not None:
            numbers[dtype] += prod(entry.get("shape", ()))
    return numbers.most_common(1)[0][0] if numbers else None
