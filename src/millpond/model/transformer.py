"""`Transformer`: one transformers model, called on packed or on padded rows.

It turns integers into the model's own keyword arguments and gives back hidden states. Which of
the two ways is right for the model is `verify`'s to find out.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..attention.implementations import register_attention
from ..attention.packed import ATTENTION_NAME, PackedSequences, Sequences
from ..layers.cpu.encoder import FusedEncoder
from ..layers.cpu.int8.linear import has_int8_layers
from ..layers.cuda.packed.model import PackedDecoder, PackedEncoder
from ..layers.rotary import RotaryState
from ..tokenization.token_types import split_token_types
from .loading.loaded import LoadedTransformer

__all__ = ["HiddenStates", "Transformer"]

HiddenStates = Tensor | list[Tensor]
"""`[rows, hidden]`, or one of them per layer when the head needs all layers."""


class Transformer:
    """A loaded model and the state of its attention: stock, or Millpond's."""

    def __init__(self, loaded: LoadedTransformer) -> None:
        self.model = loaded.model
        self.width = loaded.hidden_size
        """Of a token's hidden state; some models' is not what their configuration calls so."""
        self.max_positions = loaded.max_positions
        self.vocab_size = loaded.vocab_size
        self.needs_token_type_ids = loaded.needs_token_type_ids
        self.reads_token_types = False
        """Whether the types of tokens are in their ids: see `tokenization.token_types`."""
        self.head = loaded.head
        self.vocabulary = loaded.vocabulary
        self.all_layers = False
        """Whether hidden states of all layers are given, by the model's own forward."""
        self.gives_firsts = False
        """Whether `firsts` gives what `packed` does."""
        self.position_offset = 0
        self.quantisation_error = 0.0
        """How far int8 or float8 is off in the root mean square, relative to hidden states."""
        parameters = inspect.signature(self.model.forward).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.takes_positions = "position_ids" in parameters or any_name
        self.takes_boundaries = any_name
        self.fused: FusedEncoder | PackedEncoder | PackedDecoder | None = None
        """What runs packed rows in the place of the model's own forward."""
        self._stock_attention = self.model.config._attn_implementation
        self._rotary_state = RotaryState(self.model)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    def use_packed_attention(self) -> None:
        """Switch to Millpond's attention. Raises whatever transformers objects with."""
        register_attention()
        self.model.set_attn_implementation(ATTENTION_NAME)

    def use_stock_attention(self) -> None:
        """Switch back to the attention the model was loaded with, if it was ever left."""
        if self.model.config._attn_implementation != self._stock_attention:
            self.model.set_attn_implementation(self._stock_attention)

    @property
    def is_int8(self) -> bool:
        """Whether its linear layers run in int8."""
        return has_int8_layers(self.model)

    @property
    def packed_forward(self) -> PackedEncoder | PackedDecoder | None:
        """The same on a GPU."""
        return None if isinstance(self.fused, FusedEncoder) else self.fused

    @property
    def is_float8(self) -> bool:
        """Whether some of its products run in float8."""
        return self.packed_forward is not None and self.packed_forward.layers.in_float8 > 0

    def packed(self, ids: Tensor, positions: Tensor, sequences: Sequences) -> HiddenStates:
        """Hidden states of a packed row: int64 `[total]` ids and positions, no padding.

        Positions count from 0 in each text.
        """
        positions = positions + self.position_offset
        fused = None if self.all_layers else self.fused
        # Those of a CPU know no cached prefixes.
        if fused is not None and (
            isinstance(sequences, PackedSequences) or not isinstance(fused, FusedEncoder)
        ):
            ids, types = split_token_types(ids) if self.reads_token_types else (ids, None)
            return fused(ids, positions, sequences, types)  # type: ignore[arg-type]
        output = self._forward(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            packed_sequences=sequences,
        )
        return self._rows(output)

    def firsts(
        self, ids: Tensor, positions: Tensor, sequences: Sequences, starts: Tensor
    ) -> Tensor | None:
        """Of a packed row's hidden states those of the first token of each text, `[n, hidden]`.

        `starts`, int64 `[n]`, says where texts begin. None where `packed` is the way to them.
        """
        if not self.gives_firsts or self.all_layers:
            return None
        fused = self.fused
        if not isinstance(fused, FusedEncoder) or not isinstance(sequences, PackedSequences):
            return None
        ids, types = split_token_types(ids) if self.reads_token_types else (ids, None)
        return fused.firsts(ids, positions + self.position_offset, sequences, starts, types)

    def padded(self, ids: Tensor, mask: Tensor) -> HiddenStates:
        """Hidden states of padded texts, `[n, length]` in, `n × length` rows out."""
        return self._rows(self._forward(input_ids=ids, attention_mask=mask))

    def _forward(self, *, input_ids: Tensor, **inputs: Any) -> Any:
        if self.reads_token_types:
            input_ids, inputs["token_type_ids"] = split_token_types(input_ids)
        elif self.needs_token_type_ids:
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        if self.all_layers:
            inputs["output_hidden_states"] = True
        self._rotary_state.restore()
        return self.model(input_ids=input_ids, return_dict=True, **inputs)

    def _rows(self, output: Any) -> HiddenStates:
        if self.all_layers:
            return [layer.flatten(0, 1) for layer in output.hidden_states]
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)
