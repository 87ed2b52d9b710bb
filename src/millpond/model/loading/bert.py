"""BERT as plain torch modules, built from a checkpoint's own files: a start without transformers.

Importing transformers' BERT takes longer than loading most checkpoints of it. What is here computes
what that does, operator for operator, and its parts have the same names. A checkpoint that says or
has anything beyond what is known here is left to transformers.

The architecture is that of Devlin et al. (2018), https://arxiv.org/abs/1810.04805; the file names,
settings and names of weights are those of the checkpoints on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...attention.implementations import STOCK_NAME, attention_function
from ...checkpoint.files import find_weights, read_json_object
from ...checkpoint.modules import Module

__all__ = ["Bert", "BertConfig", "load_bert"]

DTYPES = (torch.float32, torch.bfloat16)
_SAVED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
# What changes hidden states has to be as it is here, or to be left out.
_KNOWN_VALUES: Mapping[str, Any] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "hidden_act": "gelu",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "torchscript": False,
}
_NO_MATTER = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_probs_dropout_prob",
        "bos_token_id",
        "classifier_dropout",
        "directionality",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "label2id",
        "language",
        "name",
        "output_past",
        "pad_token_id",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "problem_type",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_HEADS = ("pooler.", "cls.", "classifier.")  # of no use for hidden states
_SAVED_BUFFER = "embeddings.position_ids"
_PREFIX = "bert."  # of the encoder's weights in a checkpoint with a head


@dataclass(kw_only=True)
class BertConfig:
    """Sizes of a model, and the name of what it attends by, which may be set anew."""

    hidden_size: int
    intermediate_size: int
    max_position_embeddings: int
    num_attention_heads: int
    num_hidden_layers: int
    vocab_size: int
    type_vocab_size: int
    layer_norm_eps: float
    model_type: str = "bert"
    _attn_implementation: str = STOCK_NAME

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> BertConfig | None:
        """What a config.json says; None where it says something that is not known here."""
        sizes: dict[str, Any] = {name: saved.get(name) for name in _SIZES}
        sizes["type_vocab_size"] = saved.get("type_vocab_size", 2)
        epsilon = saved.get("layer_norm_eps", 1e-12)
        others = saved.keys() - sizes.keys() - _NO_MATTER - {"layer_norm_eps"}
        is_known = "model_type" in saved and all(
            name in _KNOWN_VALUES and saved[name] == _KNOWN_VALUES[name] for name in others
        )
        are_counts = all(type(size) is int and size > 0 for size in sizes.values())
        if not is_known or type(epsilon) is not float or not are_counts:
            return None
        if sizes["hidden_size"] % sizes["num_attention_heads"]:
            return None
        return cls(layer_norm_eps=epsilon, **sizes)


class BertOutput(NamedTuple):
    """What a forward pass gives, by the names that transformers has for it."""

    last_hidden_state: Tensor
    """`[n, length, hidden]`."""
    hidden_states: tuple[Tensor, ...] | None
    """Of the embeddings and of each layer, where they were asked for."""


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = _table(config.vocab_size, width)
        self.position_embeddings = _table(config.max_position_embeddings, width)
        self.token_type_embeddings = _table(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        rows = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        normed: Tensor = self.LayerNorm(rows + self.position_embeddings(position_ids))
        return normed


def _table(rows: int, width: int) -> nn.Embedding:
    # Drawing random numbers on the meta device would import torch._dynamo.
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class _SelfAttention(nn.Module):
    is_causal = False

    def __init__(self, config: BertConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.layer_idx = layer_idx
        self.attention_head_size = width // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, rows: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        heads = (*rows.shape[:-1], -1, self.attention_head_size)
        query, key, value = (
            linear(rows).view(heads).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attend = attention_function(self.config._attn_implementation)
        attended, _ = attend(self, query, key, value, mask, scaling=self.scaling, **options)
        return attended.reshape(rows.shape)


class _AddAndNorm(nn.Module):
    """A product, to which the rows before it are added."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, rows: Tensor, before: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(rows) + before)
        return normed


class _Layer(nn.Module):
    def __init__(self, config: BertConfig, layer_idx: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        own = {"self": _SelfAttention(config, layer_idx), "output": _AddAndNorm(config, width)}
        self.attention = nn.ModuleDict(own)
        parts = {"dense": nn.Linear(width, inner), "intermediate_act_fn": nn.GELU()}
        self.intermediate = nn.ModuleDict(parts)
        self.output = _AddAndNorm(config, inner)

    def forward(self, rows: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        attended = self.attention["self"](rows, mask, **options)
        merged = self.attention["output"](attended, rows)
        up = self.intermediate["intermediate_act_fn"](self.intermediate["dense"](merged))
        out: Tensor = self.output(up, merged)
        return out


class Bert(nn.Module):
    """An encoder, from ids to hidden states. It is called as transformers' models are."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_Layer(config, i) for i in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    @property
    def device(self) -> torch.device:
        return self.embeddings.word_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.word_embeddings.weight.dtype

    def set_attn_implementation(self, name: str) -> None:
        """Attend by the function of this name: see `attention_function`."""
        self.config._attn_implementation = name

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **options: Any,
    ) -> BertOutput:
        """Hidden states of ids int64 `[n, length]`, with a mask of zeros for padding.

        `options` are for the function that the model attends by.
        """
        assert return_dict
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        mask = _mask(attention_mask)
        rows = self.embeddings(input_ids, position_ids, token_type_ids)
        states = [rows]
        for layer in self.encoder["layer"].children():
            rows = layer(rows, mask, **options)
            states.append(rows)
        return BertOutput(rows, tuple(states) if output_hidden_states else None)


def _mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which keys each query sees, bool `[n, 1, length, length]`; None for all of them."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    n, length = attention_mask.shape
    return attention_mask.bool()[:, None, None, :].expand(n, 1, length, length)


def load_bert(module: Module, dtype: torch.dtype) -> Bert | None:
    """The encoder in the folder of a `Transformer`, on the CPU; None where transformers is needed.

    Also for weights that are damaged or not all there, about which transformers' own code is asked.
    """
    options = module.options
    is_plain = options.get("task", "feature-extraction") == "feature-extraction"
    if not is_plain or options.get("model_kwargs") or options.get("config_kwargs"):
        return None
    config = BertConfig.of(read_json_object(module.path / "config.json"))
    if config is None or dtype not in DTYPES:
        return None
    with torch.device("meta"):
        model = Bert(config)
    weights = _weights(module.path, model)
    if weights is None:
        return None
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _weights(folder: Path, model: Bert) -> dict[str, Tensor] | None:
    """The model's weights, from one file that has them and nothing else that is not known."""
    path = folder / "model.safetensors"
    if find_weights(folder) != (path,):
        return None
    try:
        saved = load_file(path)
    except Exception:  # cut short, or something else
        return None
    weights = {name.removeprefix(_PREFIX): value for name, value in saved.items()}
    if len(weights) < len(saved):
        return None
    wanted = model.state_dict()
    others = weights.keys() - wanted.keys() - {_SAVED_BUFFER}
    if not all(name.startswith(_HEADS) for name in others):
        return None
    found = {name: weights[name] for name in wanted if name in weights}
    is_whole = len(found) == len(wanted) and all(
        value.shape == wanted[name].shape and value.dtype in _SAVED_DTYPES
        for name, value in found.items()
    )
    return found if is_whole else None
