"""`TextTokenizer`: texts to token ids exactly as the checkpoint's own tokenizer gives them.

It knows the tokenizer files of one module and the length limits it was given. It knows
no prompts, no tensors and no batches: what comes out is one flat array of ids, cut to
what the model reads, and how many belong to each text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import (
    InvalidCheckpoint,
    InvalidOption,
    InvalidText,
    InvalidTokenIds,
    TextTooLong,
)
from .shared_prefix import SharedPrefixes
from .spec import Module
from .tokenizer_source import NO_LIMIT, TokenizerSource, ids_of, load_source

__all__ = ["TextTokenizer", "TokenizedTexts", "Truncate"]

Truncate = Literal["end", "start", "error"]
Ids = npt.NDArray[np.int32]
_RUST_PANIC = "PanicException"  # no Exception, and importable from nowhere


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedTexts:
    """Token ids of several texts, one text after the other."""

    ids: Ids
    """int32 [total]."""
    lengths: Ids
    """int32 [n]: tokens of each text, after truncation; they add up to `total`."""
    truncated: npt.NDArray[np.bool_]
    """bool [n]: whether tokens of the text were left out."""


class TextTokenizer:
    """The tokenizer of one checkpoint. It never changes after loading, so any thread may use it.

    `max_length` is the most tokens a text keeps, special tokens included (None: no limit);
    `vocab_size` the number of token ids the model knows; `pad_id` the id to pad with.
    """

    def __init__(
        self,
        source: TokenizerSource,
        *,
        max_length: int | None,
        max_positions: int | None,
        hidden_vocab_size: int | None,
    ) -> None:
        self.max_length = max_length
        self._max_positions = max_positions
        self.vocab_size = source.size if hidden_vocab_size is None else hidden_vocab_size
        self.pad_id = source.pad_id
        self.special_ids = source.special_ids
        self._source = source
        self._prefix, self._suffix = _special_ends(source)
        self._may_exceed_vocabulary = source.size > self.vocab_size
        self._shared_prefixes = SharedPrefixes(self.token_ids)
        self._require_room_for_text(max_length)

    @classmethod
    def load(
        cls,
        module: Module,
        *,
        max_length: int | None,
        max_positions: int | None,
        hidden_vocab_size: int | None,
        trust_remote_code: bool,
    ) -> TextTokenizer:
        """The tokenizer in the folder of a `Transformer` or `StaticEmbedding` module.

        `max_length` overrides the checkpoint's limit; `max_positions` is what the model's position
        table holds; `hidden_vocab_size` is the number of rows of its embedding table.

        Raises `InvalidOption` for a `max_length` above `max_positions` or without room for text,
        `InvalidCheckpoint` when the files cannot be read, and `UnsupportedModel` for a tokenizer
        that gives more than ids.
        """
        if max_length is not None and max_positions is not None and max_length > max_positions:
            raise InvalidOption(
                f"max_length={max_length}: the model has positions for {max_positions} tokens; "
                f"choose at most {max_positions}"
            )
        source = load_source(module, trust_remote_code=trust_remote_code)
        limits = [source.limit if max_length is None else max_length, max_positions]
        known = [limit for limit in limits if limit is not None]
        try:
            return cls(
                source,
                max_length=min(known, default=None),
                max_positions=max_positions,
                hidden_vocab_size=hidden_vocab_size,
            )
        except InvalidOption as error:
            if max_length is not None:
                raise
            raise InvalidCheckpoint(
                f"{module.path}: the checkpoint limits texts too far: {error}"
            ) from None

    def __repr__(self) -> str:
        return (
            f"TextTokenizer(vocab_size={self.vocab_size}, max_length={self.max_length}, "
            f"special_tokens={len(self._prefix)}+{len(self._suffix)}, rust={self._source.rust})"
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        truncate: Truncate | None = None,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Token ids of `texts`, special tokens added as the checkpoint adds them.

        A text longer than `max_length` loses tokens at the `end` or `start` and keeps its special
        tokens; None cuts on the side the checkpoint names. `max_length` is another limit for this
        call only. A text without any token becomes one special token, except for static embeddings.

        Raises `TextTooLong` (with `truncate="error"`) and `InvalidText`, both with the index.
        """
        limit = self._limit(max_length)
        rows = self._tokenize(texts, self._source.add_special_tokens)
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        truncated = _too_long(lengths, limit, truncate)
        kept = np.minimum(lengths, limit)
        kept[kept == 0] = len(self._source.empty_ids)
        ids = np.fromiter(
            chain.from_iterable(self._fitted(rows, limit, self._side(truncate))),
            np.int32,
            int(kept.sum(dtype=np.int64)),
        )
        tokenized = TokenizedTexts(ids, kept, truncated)
        if self._may_exceed_vocabulary:
            self._require_known(tokenized)
        return tokenized

    def fit_ids(
        self,
        ids: Sequence[npt.NDArray[Any] | Sequence[int]],
        truncate: Truncate | None = None,
        *,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Token ids that the caller made, taken as they are: nothing is added.

        Too long ones are cut as `encode` cuts, keeping the special tokens that are at their ends.
        Raises `InvalidTokenIds` for an empty list, a non-integer or an id outside the vocabulary,
        and `TextTooLong` (with `truncate="error"`), each with the index.
        """
        rows = [self._checked(row, index) for index, row in enumerate(ids)]
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        limit = self._limit(max_length)
        truncated = _too_long(lengths, limit, truncate)
        for index in np.flatnonzero(truncated).tolist():
            rows[index] = np.array(
                self._cut(rows[index].tolist(), limit, self._side(truncate)), np.int32
            )
            lengths[index] = limit
        joined = np.concatenate(rows) if rows else np.empty(0, np.int32)
        return TokenizedTexts(joined, lengths, truncated)

    def token_ids(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text, whole, however long it is. Raises `InvalidText`."""
        added = special_tokens and self._source.add_special_tokens
        empty = list(self._source.empty_ids) if special_tokens else []
        return [ids_of(row) or empty for row in self._tokenize(texts, added)]

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, special tokens spelled out. Raises `InvalidTokenIds`."""
        return self._source.detokenize(
            [
                self._checked(row, index).tolist() if len(row) else []
                for index, row in enumerate(ids)
            ]
        )

    def prompt_length(self, prompt: str) -> int:
        """Tokens that `prompt` puts in front of a text, special tokens before it included.

        A special token at its end is not counted: in the whole text it stands after the text.
        """
        if not prompt:
            return 0
        ids = self.encode([prompt], truncate=self._source.side).ids
        ends_special = len(ids) > 0 and int(ids[-1]) in self._source.special_ids
        return len(ids) - ends_special

    def shared_prefix_length(self, prompt: str) -> int:
        """Leading token ids, special ones included, that texts with this prompt have in common.

        Found with a few texts that begin differently, before anything is cut: a hint where reuse
        may pay, never a promise. Without a prompt it is what every text begins with.
        """
        return self._shared_prefixes.length(prompt)

    def _tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> Sequence[Any]:
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidText(f"it is {type(text).__name__}, not a string", index=index)
        try:
            return self._source.tokenize(list(texts), add_special_tokens)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != _RUST_PANIC:
                raise
            raise self._blamed(texts, error) from error

    def _blamed(self, texts: Sequence[str], error: BaseException) -> InvalidText:
        """The error of the first text that the tokenizer fails on."""
        if len(texts) > 1:
            for index, text in enumerate(texts):
                try:
                    self._tokenize([text], True)
                except InvalidText as found:
                    return found.at(index)
        if _is_broken_unicode(texts[0]):
            return InvalidText(
                "it holds half of a surrogate pair, which is no Unicode text; replace it, for "
                'example with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            )
        return InvalidText(f"the tokenizer failed on it with {type(error).__name__}: {error}")

    def _fitted(
        self, rows: Sequence[Any], limit: int, side: Literal["end", "start"]
    ) -> Iterator[Sequence[int]]:
        for row in rows:
            ids = ids_of(row)
            yield (ids if len(ids) <= limit else self._cut(ids, limit, side)) or (
                self._source.empty_ids
            )

    def _cut(self, ids: list[int], limit: int, side: Literal["end", "start"]) -> list[int]:
        """The `limit` ids that a too long text keeps, special tokens at its ends among them."""
        if side == "end":
            suffix = len(self._suffix)
            tail = suffix if suffix and ids[-suffix:] == self._suffix else 0
            head = limit - tail
        else:
            prefix = len(self._prefix)
            head = prefix if ids[:prefix] == self._prefix else 0
            tail = limit - head
        return ids[:head] + ids[len(ids) - tail :]

    def _limit(self, max_length: int | None) -> int:
        """The most tokens a text of this call keeps."""
        if max_length is None:
            return NO_LIMIT if self.max_length is None else self.max_length
        self._require_room_for_text(max_length)
        return max_length if self._max_positions is None else min(max_length, self._max_positions)

    def _side(self, truncate: Truncate | None) -> Literal["end", "start"]:
        return self._source.side if truncate is None or truncate == "error" else truncate

    def _checked(self, row: npt.NDArray[Any] | Sequence[int], index: int) -> Ids:
        try:
            ids = np.asarray(row)
        except (ValueError, OverflowError):
            ids = np.empty((0, 0))
        if ids.ndim == 1 and len(ids) == 0:
            raise InvalidTokenIds("it is a list of no token ids", index=index)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidTokenIds(
                "it is not a flat list of whole numbers, as token ids are", index=index
            )
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.vocab_size:
            raise InvalidTokenIds(
                f"it has the token id {lowest if lowest < 0 else highest}; "
                f"this model's ids are 0 to {self.vocab_size - 1}",
                index=index,
            )
        return ids.astype(np.int32)

    def _require_known(self, tokenized: TokenizedTexts) -> None:
        unknown = tokenized.ids >= self.vocab_size
        if unknown.any():
            at = int(unknown.argmax())
            index = int(np.searchsorted(np.cumsum(tokenized.lengths), at, side="right"))
            raise InvalidTokenIds(
                f"it contains a token (id {tokenized.ids[at]}) that the tokenizer has "
                f"and the model's table of {self.vocab_size} rows has not; the checkpoint's "
                "tokenizer and weights do not fit together",
                index=index,
            )

    def _require_room_for_text(self, max_length: int | None) -> None:
        special = len(self._prefix) + len(self._suffix)
        if max_length is not None and max_length <= special:
            raise InvalidOption(
                f"max_length={max_length}: {special} of them are special tokens, which leaves "
                f"no room for text; choose at least {special + 1}"
            )


def _too_long(lengths: Ids, limit: int, truncate: Truncate | None) -> npt.NDArray[np.bool_]:
    too_long = lengths > limit
    if truncate == "error" and too_long.any():
        index = int(too_long.argmax())
        raise TextTooLong(
            f"it has {lengths[index]} tokens, the model reads {limit}; "
            'shorten it, or cut it with truncate="end" or truncate="start"',
            index=index,
        )
    return too_long


def _is_broken_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _special_ends(source: TokenizerSource) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text's own tokens."""
    if not source.add_special_tokens:
        return [], []
    for probe in ("hello", "a", "1"):
        bare = ids_of(source.tokenize([probe], False)[0])
        whole = ids_of(source.tokenize([probe], True)[0])
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    return [], []
