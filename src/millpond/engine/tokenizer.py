"""What the engine asks of the tokenizer of a route; tests bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..pair import Pair

__all__ = ["CallTokenizer", "PairReader", "TokenIds", "TokenNames", "Tokenizer", "call_tokenizer"]


class TokenIds(Protocol):
    """Token ids of several texts, one after the other: int32 `[total]`."""

    @property
    def ids(self) -> npt.NDArray[np.int32]: ...
    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each text, after truncation."""

    @property
    def truncated(self) -> npt.NDArray[np.bool_]: ...


class Tokenizer(Protocol):
    """The tokenizer of one route; any thread may use it. Errors are `InvalidInput`, with the index.

    Its limit is `max_length` tokens, or that of a call where that is lower.
    """

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str,
        task: str | None,
        truncate: Any,
        max_length: int | None,
    ) -> TokenIds:
        """Token ids of texts with a prompt in front."""

    def fit_ids(self, ids: Any, truncate: Any, *, max_length: int | None) -> TokenIds:
        """Token ids that the caller made, cut as `encode` cuts."""

    def token_ids(
        self, texts: Sequence[str], *, prompt: str, task: str | None, special_tokens: bool
    ) -> list[list[int]]:
        """Token ids of each text, whole."""

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids."""

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt puts in front of a text."""

    def shared_prefix_length(self, prompt: str, task: str | None) -> int:
        """Leading tokens that texts with this prompt have in common."""


class TokenNames(Tokenizer, Protocol):
    """The tokenizer of a model whose dimensions are tokens."""

    def names(self, ids: Sequence[int]) -> Sequence[str]:
        """The tokens of these ids."""


class PairReader(Tokenizer, Protocol):
    """The tokenizer of a model that scores or classifies."""

    def encode_pairs(
        self, pairs: Sequence[Pair], *, prompt: str, truncate: Any, max_length: int | None
    ) -> TokenIds:
        """Token ids of pairs, with a prompt in front of their queries."""

    def shared_pair_prefix_length(self, query: str, prompt: str) -> int:
        """Leading tokens that pairs with this query have in common."""

    def spans(
        self, texts: Sequence[str], *, prompt: str, truncate: Any, max_length: int | None
    ) -> Sequence[Sequence[tuple[int, int] | None]]:
        """The characters of each token that `encode` keeps."""


CallTokenizer = Callable[[int, str, Sequence[Any], Mapping[str, Any]], TokenIds]
"""Calls the tokenizer of a route: `encode` or `encode_pairs`, the texts, the other arguments."""


def call_tokenizer(
    tokenizers: Sequence[Tokenizer],
    route: int,
    method: str,
    texts: Sequence[Any],
    options: Mapping[str, Any],
) -> TokenIds:
    """In this process; raises what it raises."""
    tokens: TokenIds = getattr(tokenizers[route], method)(texts, **options)
    return tokens
