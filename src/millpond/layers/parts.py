"""What encoder layers are made of, by the names of their parts, which many share with BERT."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .classes import transformers_classes
from .split import RowSplitLinear

__all__ = [
    "BERT",
    "DISTILBERT",
    "are_linear",
    "is_encoder_layer",
    "is_exact_gelu",
    "leaves",
    "linear_of",
]

# Where the parts are, under the layer. What is left out at inference may be there besides.
BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "activation": "intermediate.intermediate_act_fn",
    "down": "output.dense",
    "last_norm": "output.LayerNorm",
}
DISTILBERT = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "activation": "ffn.activation",
    "down": "ffn.lin2",
    "last_norm": "output_layer_norm",
}
LINEARS = ("query", "key", "value", "out", "up", "down")
ENDS = ("out", "down")
NORMS = ("norm", "last_norm")


def is_encoder_layer(
    layer: nn.Module, names: Mapping[str, str], *, may_be_split: bool = False
) -> bool:
    """Whether a layer has these parts, of the kinds they are to be, and no others.

    Of one that `may_be_split`, other processes may hold parts.
    """
    found = leaves(layer)
    if found.keys() != set(names.values()) or "forward" in vars(layer):
        return False
    # Subclasses do something of their own.
    linears = {part: found[names[part]] for part in LINEARS}
    return (
        are_linear(linears, may_be_split=may_be_split)
        and all(type(found[names[part]]) is nn.LayerNorm for part in NORMS)
        and is_exact_gelu(found[names["activation"]])
        and not getattr(layer, "is_decoder", False)
    )


def are_linear(parts: Mapping[str, nn.Module], *, may_be_split: bool) -> bool:
    """Whether all are linear layers, of which those at the ends may be split by their inputs."""
    split = RowSplitLinear if may_be_split else nn.Linear
    return all(
        type(part) in (nn.Linear, split if name in ENDS else nn.Linear)
        for name, part in parts.items()
    )


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that compute something, by their names."""
    return {
        name: part
        for name, part in module.named_modules()
        if next(part.children(), None) is None and type(part) is not nn.Dropout
    }


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with this weight `[out features, in features]` and bias."""
    made = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


def is_exact_gelu(module: nn.Module) -> bool:
    """Whether it is the GELU without an approximation."""
    # Subclasses do something of their own.
    kinds = (nn.GELU, *transformers_classes("activations", "GELUActivation"))
    return type(module) in kinds and getattr(module, "approximate", "none") == "none"
