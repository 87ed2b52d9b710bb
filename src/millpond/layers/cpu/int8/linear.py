"""`Int8Linear`: a linear layer in int8, in the place of one in the model's own precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .product import QMAX, SMALLEST, Int8Product

__all__ = ["DTYPES", "Int8Linear", "has_int8_layers"]

DTYPES = (torch.float32, torch.bfloat16)  # of what is between the layers


class Int8Linear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its values are in `_product`."""

    _product: Int8Product

    @classmethod
    def of(cls, linear: nn.Linear, factors: Tensor | None = None) -> Int8Linear:
        """With smoothing `factors`, float32 `[in features]`, columns are divided by them, and the
        weights multiplied."""
        has_bias = linear.bias is not None
        size = linear.in_features, linear.out_features
        made = cls(*size, bias=has_bias, device="meta", dtype=linear.weight.dtype)
        made.weight.requires_grad_(False)
        made.bias = linear.bias
        weight = linear.weight.detach().float()
        if factors is not None:
            weight = weight * factors
        scales = weight.abs().amax(1).clamp(min=SMALLEST) / QMAX
        quantized = (weight / scales[:, None]).round().to(torch.int8)
        bias = linear.bias.detach().float() if has_bias else torch.zeros(size[1])
        smoothing = torch.ones(size[0]) if factors is None else 1 / factors
        # Kept out of the module's own bookkeeping: a packed tensor can be neither copied nor saved.
        made.__dict__["_product"] = Int8Product.of_quantized(quantized, scales, bias, smoothing)
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        out = self._product.of(input.reshape(-1, input.shape[-1]))
        return out.view(*input.shape[:-1], self.out_features)

    def product(self) -> Int8Product:
        """What it computes, without the cost of a module's call."""
        return self._product


def has_int8_layers(model: nn.Module) -> bool:
    """Whether linear layers of the model run in int8."""
    return any(isinstance(module, Int8Linear) for module in model.modules())
