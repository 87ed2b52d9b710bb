"""The modules a pooler is made of, each loaded as a function from rows to rows.

It knows one module at a time. With `batch_invariant` a row's bits do not depend on the rows
beside it: matrix products and activations take other paths for other shapes, so there
they run on a fixed number of rows.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, pad
from torch.nn.functional import normalize as l2_normalize

from ..checkpoint.modules import Module
from ..checkpoint.weights import read_weights
from ..errors import InvalidCheckpoint, UnsupportedModel

__all__ = [
    "LOADERS",
    "ModuleContext",
    "Step",
    "in_blocks",
    "invariant_step",
    "load_layer_weights",
    "normalizer",
    "product",
]

Step = Callable[[Tensor], Tensor]
# Measured on CPU: a float32 product of 16 rows gives every row the bits it has in the first place,
# if both widths are multiples of 16; other widths need a product per row.
_BLOCK_ROWS = 16
_BLOCK_VECTORS = 256
_EXACT_ACTIVATIONS = (nn.Identity, nn.ReLU)
_LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class ModuleContext:
    """Where a module stands: what comes in, and how it is to run."""

    width: int
    device: torch.device
    batch_invariant: bool
    """Whether a row's bits may depend on nothing but the row."""
    trust_remote_code: bool


def normalizer(place: ModuleContext) -> Step:
    """L2 normalisation; a GPU adds a row up in an order that the number of rows decides."""
    if not place.batch_invariant or place.device.type == "cpu":
        return l2_normalize
    return lambda rows: in_blocks(l2_normalize, rows, _BLOCK_VECTORS)


def in_blocks(step: Step, rows: Tensor, block: int | None) -> Tensor:
    """`step(rows)`, `block` rows at a time (None: all at once), the last one filled with zeros."""
    if block is None or len(rows) == 0:
        return step(rows)
    missing = -len(rows) % block
    filled = pad(rows, (0, 0, 0, missing)) if missing else rows
    # A copy, because a kernel may also choose by the alignment of its input.
    return torch.cat([step(part.clone()) for part in torch.split(filled, block)])[: len(rows)]


@torch.inference_mode()
def invariant_step(step: Step, width: int, device: torch.device) -> Step:
    """`step` on a fixed number of rows, so that a row's bits do not depend on the rows beside it.

    That are 16 rows where a row gives the same at each place among any others, else one.
    """
    generator = torch.Generator().manual_seed(_BLOCK_ROWS)
    rows, others = torch.randn((2, _BLOCK_ROWS, width), generator=generator).to(device)
    expected = step(rows)
    block = _BLOCK_ROWS
    for place in range(_BLOCK_ROWS):
        moved = step(rows.roll(place, 0))
        mixed = others.clone()
        mixed[place] = rows[0]
        agrees = torch.equal(moved, expected.roll(place, 0))
        if not agrees or not torch.equal(step(mixed)[place], expected[0]):
            block = 1
    return lambda rows: in_blocks(step, rows, block)


def product(weight: Tensor, bias: Tensor | None, *, batch_invariant: bool) -> Step:
    """Rows times a weight `[out, in]`, and the bias."""
    block = None
    if batch_invariant:
        block = 1 if any(width % _BLOCK_ROWS for width in weight.shape) else _BLOCK_ROWS
    return lambda rows: in_blocks(lambda part: linear(part, weight, bias), rows, block)


def _load_dense(module: Module, place: ModuleContext) -> tuple[Step, int]:
    if module.options.get("inline"):
        return _load_inline_dense(module, place)
    options, is_invariant = module.options, place.batch_invariant
    width_in, width_out = options["in_features"], options["out_features"]
    _require_width(module, width_in, place.width)
    activation = _load_activation(module)
    weights = _float_weights(module, place.device)
    own = {name: value for name, value in weights.items() if name.startswith(_ACTIVATION_PREFIX)}
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (width_out, width_in)}
    if options["bias"]:
        shapes["linear.bias"] = (width_out,)
    adds_input = bool(options["use_residual"])
    if adds_input and width_in != width_out:
        shapes["residual.weight"] = (width_out, width_in)
    _require_shapes(module, {name: weights[name] for name in weights if name not in own}, shapes)
    _load_own_weights(module, activation, own)
    activation = activation.to(place.device).eval().requires_grad_(False)
    block = 1 if is_invariant and not isinstance(activation, _EXACT_ACTIVATIONS) else None
    bias = weights.get("linear.bias")
    project = product(weights["linear.weight"], bias, batch_invariant=is_invariant)
    beside: Step = lambda rows: rows  # noqa: E731
    if "residual.weight" in weights:
        beside = product(weights["residual.weight"], None, batch_invariant=is_invariant)

    def dense(rows: Tensor) -> Tensor:
        activated = in_blocks(activation, project(rows), block)
        return activated + beside(rows) if adds_input else activated

    return dense, width_out


def _load_inline_dense(module: Module, place: ModuleContext) -> tuple[Step, int]:
    """A projection whose weight is among those of the transformer, as in Stanford's ColBERT."""
    weight = read_weights(module.path).get("linear.weight")
    if weight is None or weight.ndim != 2:
        raise InvalidCheckpoint(
            f"{module.path}: its weights have no matrix linear.weight, the projection of a ColBERT"
        )
    _require_width(module, weight.shape[1], place.width)
    weight = weight.to(device=place.device, dtype=torch.float32)
    return product(weight, None, batch_invariant=place.batch_invariant), len(weight)


def _load_layer_norm(module: Module, place: ModuleContext) -> tuple[Step, int]:
    width = module.options["dimension"]
    _require_width(module, width, place.width)
    weights = _float_weights(module, place.device)
    _require_shapes(module, weights, {"norm.weight": (width,), "norm.bias": (width,)})
    scale, shift = weights["norm.weight"], weights["norm.bias"]
    return lambda rows: layer_norm(rows, (width,), scale, shift, _LAYER_NORM_EPSILON), width


def _load_custom(module: Module, place: ModuleContext) -> tuple[Step, int]:
    """A module class that came with the checkpoint, called as sentence-transformers calls it."""
    if not place.trust_remote_code:
        raise UnsupportedModel(
            f"{module.class_name} is code that comes with the checkpoint; "
            "read it, and allow it with trust_remote_code=True"
        )
    try:
        loaded: Any = _load_custom_module(module).to(place.device, torch.float32).eval()
        probe = torch.zeros((1, place.width), device=place.device)
        width = int(loaded({"sentence_embedding": probe})["sentence_embedding"].shape[-1])
    except Exception as error:  # it is the checkpoint's code
        raise InvalidCheckpoint(
            f"{module.class_name} in {module.path} does not load or run on a text's vector "
            f"({type(error).__name__}: {error})"
        ) from error

    def run(rows: Tensor) -> Tensor:
        vectors: Tensor = loaded({"sentence_embedding": rows})["sentence_embedding"]
        return vectors.float()

    return (lambda rows: in_blocks(run, rows, 1 if place.batch_invariant else None)), width


LOADERS: dict[str, Callable[[Module, ModuleContext], tuple[Step, int]]] = {
    "Dense": _load_dense,
    "LayerNorm": _load_layer_norm,
    "Normalize": lambda _, place: (normalizer(place), place.width),
    "custom": _load_custom,
}
"""Module kind -> the function that loads it; it gives the step and the width of its rows."""


def load_layer_weights(module: Module, device: torch.device) -> Tensor:
    """The weights of a WeightedLayerPooling module, float32 [layers]."""
    weights = _float_weights(module, device)
    count = module.options["num_hidden_layers"] + 1 - module.options["layer_start"]
    _require_shapes(module, weights, {"layer_weights": (count,)})
    return weights["layer_weights"]


_ACTIVATION_PREFIX = "activation_function."


def _load_activation(module: Module) -> nn.Module:
    dotted = str(module.options["activation_function"])
    try:
        parent, _, name = dotted.rpartition(".")
        activation = getattr(importlib.import_module(parent), name)
        if inspect.isclass(activation) and issubclass(activation, nn.Module):
            return activation()
    except Exception as error:  # importing and constructing may raise anything
        raise InvalidCheckpoint(
            f"{module.path}: activation_function {dotted} cannot be made: {error}"
        ) from error
    raise InvalidCheckpoint(
        f"{module.path}: activation_function {dotted} is not a class of torch.nn.Module"
    )


def _load_own_weights(module: Module, activation: nn.Module, weights: dict[str, Tensor]) -> None:
    own = {name.removeprefix(_ACTIVATION_PREFIX): value for name, value in weights.items()}
    try:
        activation.load_state_dict(own)
    except RuntimeError as error:
        raise InvalidCheckpoint(f"{module.path}: {error}") from error


def _load_custom_module(module: Module) -> Any:
    file_name = module.class_name.partition("--")[2] or module.class_name
    code = f"{file_name.split('.')[0]}.py"
    root = module.path
    if not (root / code).is_file() and (root.parent / code).is_file():
        root = root.parent
    if (root / code).is_file():
        # transformers: only for a checkpoint with code of its own.
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        loaded_class: Any = get_class_from_dynamic_module(file_name, str(root))
    else:
        parent, _, name = module.class_name.rpartition(".")
        loaded_class = getattr(importlib.import_module(parent), name)
    if len(inspect.signature(loaded_class.load).parameters) == 1:
        return loaded_class.load(str(module.path))
    subfolder = "" if module.path == root else module.path.relative_to(root).as_posix()
    return loaded_class.load(str(root), subfolder=subfolder, local_files_only=True)


def _float_weights(module: Module, device: torch.device) -> dict[str, Tensor]:
    return {
        name: weight.to(device=device, dtype=torch.float32)
        for name, weight in read_weights(module.path).items()
    }


def _require_width(module: Module, expected: int, width: int) -> None:
    if expected != width:
        raise InvalidCheckpoint(
            f"{module.path}: {module.kind} expects {expected} numbers per vector and gets {width}; "
            "it does not fit the modules before it"
        )


def _require_shapes(
    module: Module, weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]
) -> None:
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != shapes:
        raise InvalidCheckpoint(
            f"{module.path}: {module.kind} needs the weights {shapes} and its file has {found}"
        )
