"""`LoadedTransformer`: a model with its weights, and what is known of it without running it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they import transformers
    from ..heads.checkpoint_head import CheckpointHead
    from ..heads.vocabulary_head import MaskedLanguageHead

__all__ = ["LoadedTransformer"]


@dataclass(frozen=True, kw_only=True)
class LoadedTransformer:
    """A transformer that is ready to run."""

    model: Any
    """In eval mode, on its device, in its dtype, keeping no cache."""
    config: Any
    hidden_size: int
    """Width of its hidden states by its configuration; a few models' last one has another."""
    vocab_size: int
    """Rows of its token embedding table: ids are below this."""
    max_positions: int | None
    """Most tokens its learned position table can hold, or what it adds to scores by distance
    (MPT's ALiBi); None where there is neither."""
    needs_token_type_ids: bool
    """It adds an embedding of the token type, so zeros have to be given as the types."""
    head: CheckpointHead | None = None
    """What makes scores or classes of its hidden states; None for a model that embeds."""
    vocabulary: MaskedLanguageHead | None = None
    """What makes logits of the vocabulary of them; None for a model that gives none."""

    @property
    def takes_token_type_ids(self) -> bool:
        """Whether it can be told which token is of which text of a pair."""
        return "token_type_ids" in inspect.signature(self.model.forward).parameters
