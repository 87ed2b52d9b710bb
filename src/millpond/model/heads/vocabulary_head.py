"""`MaskedLanguageHead`: the head of a masked language model, on hidden states of any origin.

The head is the model's own `forward` with a stub in the place of its base model, and with nothing
in the place of its last layer, whose products are taken here: a slice of the vocabulary at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...errors import UnsupportedModel, summary
from ...layers.cpu.activation import replace_activations
from ...layers.cpu.linear import prepacked
from ...layers.parts import linear_of
from .checkpoint_head import Stub, agree, probe_ids

__all__ = ["MaskedLanguageHead"]

# Logits of a slice for two thousand tokens are to stay in a CPU's caches; a GPU wants them large.
CPU_SLICE, GPU_SLICE = 1024, 8192
# A copy of the last layer, laid out for the CPU's kernels, is worth its memory up to this size.
MOST_PACKED_BYTES = 2**28


class MaskedLanguageHead(nn.Module):
    """The logits of tokens by the checkpoint's own head.

    Everything before the last layer runs in float32, and that in the precision of the model. It
    never changes once it is detached, so any thread may use it.
    """

    def __init__(self, head: Any, decoder: nn.Linear) -> None:
        super().__init__()
        self._dtype = decoder.weight.dtype
        self.dimension = decoder.out_features
        is_cpu = decoder.weight.device.type == "cpu"
        self._width = CPU_SLICE if is_cpu else GPU_SLICE
        self._weight, self._bias = decoder.weight.detach(), None
        if decoder.bias is not None:
            self._bias = decoder.bias.detach().clone()
        self.packed: nn.ModuleList | None = None
        self.head = head.float()  # last: the bias may be a parameter of both

    @classmethod
    @torch.inference_mode()
    def detach(cls, whole: Any) -> MaskedLanguageHead:
        """Take the head off a model of transformers, whose base model is then to be run alone.

        Raises `UnsupportedModel` for a head that gives other logits by itself than in the model.
        """
        name, base = type(whole).__name__, whole.base_model
        ids = probe_ids(whole)
        mask = torch.ones_like(ids)
        expected = whole(input_ids=ids, attention_mask=mask).logits[0].float()
        hidden = base(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        decoder = whole.get_output_embeddings()
        if not isinstance(decoder, nn.Linear):
            raise UnsupportedModel(f"the head of {name} does not end with a linear layer")
        whole.config = copy.deepcopy(whole.config)
        setattr(whole, whole.base_model_prefix, Stub(base))
        _take_out(whole, decoder)
        head = cls(whole, decoder)
        try:
            found = torch.cat([logits for _, logits in head.slices(hidden)], dim=1).float()
        except Exception as error:  # whatever a model's code objects with that needs more
            raise UnsupportedModel(
                f"{name} does not give its logits of hidden states alone ({summary(error)})"
            ) from error
        if bool(expected.isfinite().all()) and not agree(found, expected, base.dtype):
            raise UnsupportedModel(f"{name} gives other logits than its head does by itself")
        return head

    def use_packed_products(self, *, batch_invariant: bool) -> None:
        """Lay the last layer out for the kernels of a CPU, where that is worth it."""
        replace_activations(self.head)
        size = self._weight.numel() * self._weight.element_size()
        if size > MOST_PACKED_BYTES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return
        pieces = []
        for start in range(0, self.dimension, self._width):
            own = slice(start, start + self._width)
            bias = None if self._bias is None else self._bias[own]
            piece = prepacked(linear_of(self._weight[own], bias), batch_invariant)
            if piece is None:
                return
            pieces.append(piece)
        self.packed = nn.ModuleList(pieces)

    def slices(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Where each slice of the vocabulary begins, and its logits `[rows, slice]`."""
        output = self.head(inputs_embeds=rows.float().unsqueeze(0), return_dict=True)
        states = output.logits[0].to(self._dtype)
        products: list[Callable[[Tensor], Tensor]] = list(self.packed or ())
        for place, start in enumerate(range(0, self.dimension, self._width)):
            if products:
                yield start, products[place](states)
                continue
            own = slice(start, start + self._width)
            bias = None if self._bias is None else self._bias[own]
            yield start, linear(states, self._weight[own], bias)

    def __repr__(self) -> str:
        name, packed = type(self.head).__name__, self.packed is not None
        return f"MaskedLanguageHead({name}, dimension={self.dimension}, packed={packed})"


def _take_out(model: nn.Module, layer: nn.Module) -> None:
    """Leave a layer out wherever it stands."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is layer:
                setattr(parent, name, nn.Identity())
