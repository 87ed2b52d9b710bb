"""`TextTokenizer`: texts to token ids exactly as the checkpoint's own tokenizer gives them.

It knows the tokenizer files of one module and the length limits it was given, and how a prompt
goes with a text. It knows no saved prompts, no tensors and no batches: what comes out is one flat
array of ids, cut to what the model reads, and how many belong to each text.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..checkpoint.modules import Module
from ..errors import InvalidCheckpoint, InvalidOption, InvalidText
from ..locks import this_thread_pauses
from .backends.backend import NO_LIMIT, TokenizerBackend, ids_of, is_broken_unicode
from .backends.sources import load_source
from .long_texts import LONG_TEXT, all_ids, enough_ids
from .shared_prefix import END_CHARACTERS, PROBE_ENDINGS, PROBE_TEXTS, common_prefix_length
from .token_ids import Ids, TokenizedTexts, checked_ids, require_known
from .truncation import (
    Side,
    SpecialTokens,
    Truncate,
    common_suffix,
    require_short,
    special_tokens_of,
)

__all__ = ["TextTokenizer"]

ROWS_BETWEEN_PAUSES = 32
PROBE_CHARACTERS = 1000  # of a long text, by which the special tokens at its ends are verified
UNLIKE_TEXTS = ("0", "1 2 3 4")
CACHED_PROMPTS = 256  # with what was found out for them, for each tokenizer


class TextTokenizer:
    """The tokenizer of one checkpoint. It never changes after loading, so any thread may use it.

    `max_length` is the most tokens a text keeps, special tokens included (None: no limit);
    `vocab_size` the number of token ids the model knows; `pad_id` the id to pad with.
    """

    reads_pairs = False
    load_again: Callable[[], TextTokenizer]
    """Loads the same once more, in this process or another: unlike a tokenizer it pickles."""
    _make: Callable[[TokenizerBackend], TextTokenizer]

    def __init__(
        self,
        source: TokenizerBackend,
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
        self.empty_of_meaning = source.empty_of_meaning
        self.query_fill = source.fill
        self.known_id = source.known_id
        self.names = source.names
        self._source = source
        self._may_exceed_vocabulary = source.size > self.vocab_size
        find = self._shared_by_all if source.chat is None else self._shared_in_chats
        # By prompt and task, for those asked for last; any thread may ask.
        self._shared_prefix = lru_cache(CACHED_PROMPTS)(find)
        self._tokens_of_template = lru_cache(CACHED_PROMPTS)(self._template_suffix)
        self._special_tokens = (
            special_tokens_of(source) if source.chat is None else self._template_suffix("", None)
        )
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
        cache_dir: str | None = None,
        **options: Any,
    ) -> Self:
        """The tokenizer in the folder of a `Transformer` or `StaticEmbedding` module.

        `max_length` overrides the checkpoint's limit; `max_positions` is what the model's position
        table holds; `hidden_vocab_size` is the number of rows of its embedding table. Code of its
        own, where it is trusted, is in that folder or in the cache (None: the default one).
        `options` are those of a class derived from this one.

        Raises `InvalidOption` for a `max_length` above `max_positions` or without room for text,
        `InvalidCheckpoint` when the files cannot be read, and `UnsupportedModel` for a tokenizer
        that gives more than ids.
        """
        if max_length is not None and max_positions is not None and max_length > max_positions:
            raise InvalidOption(
                f"max_length={max_length}: the model has positions for {max_positions} tokens; "
                f"choose at most {max_positions}"
            )
        source = load_source(
            module,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            pairs=cls.reads_pairs,
            longest=max_positions,
        )
        limits = [source.limit if max_length is None else max_length, max_positions]
        least = min((limit for limit in limits if limit is not None), default=None)
        options |= {"max_positions": max_positions, "hidden_vocab_size": hidden_vocab_size}
        make: Any = partial(cls, max_length=least, **options)
        try:
            tokenizer: Self = make(source)
        except InvalidOption as error:
            if max_length is not None:
                raise
            raise InvalidCheckpoint(
                f"{module.path}: the checkpoint limits texts too far: {error}"
            ) from None
        tokenizer._make = make
        tokenizer.load_again = partial(
            cls.load,
            module,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            **options,
        )
        return tokenizer

    def reader(self) -> Callable[[], TextTokenizer]:
        """Pickles, and in another process makes what encodes as this does, and may do no more."""
        return self._source.reader(self._make) or self.load_again

    def __repr__(self) -> str:
        prefix, suffix = self._special_tokens.prefix, self._special_tokens.suffix
        return (
            f"TextTokenizer(vocab_size={self.vocab_size}, max_length={self.max_length}, "
            f"special_tokens={len(prefix)}+{len(suffix)}, "
            f"rust={self._source.rust is not None}, chat={self._source.chat})"
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        task: str | None = None,
        truncate: Truncate | None = None,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Token ids of `texts`, special tokens added as the checkpoint adds them.

        `prompt` stands in front of every text or, where the checkpoint has a chat template, is the
        system's message; `task` is for templates that ask for it. A text longer than `max_length`
        loses tokens at the `end` or `start` and keeps its special tokens; None cuts on the side
        the checkpoint names. `max_length` is another limit for this call only. A text without any
        token becomes one special token, except for static embeddings. Queries are filled up where
        the checkpoint says so.

        Raises `TextTooLong` (with `truncate="error"`) and `InvalidText`, both with the index.
        """
        limit, side = self._limit(max_length), self._side(truncate)
        strings, special = self._strings(texts, prompt, task, True)
        rows, incomplete = self._enough_of(strings, special, limit, side)
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        if truncate == "error":
            require_short(lengths, limit, incomplete)
        kept = np.minimum(lengths, limit)
        kept[kept == 0] = len(self._source.empty_ids)
        ends = self._special_tokens  # that a text keeps when it is cut
        if self._source.chat is not None and (lengths >= limit).any():
            ends = self._tokens_of_template(prompt, task)
        ids = self._joined(rows, ends, limit, side)
        if self._may_exceed_vocabulary:
            require_known(ids, kept, self.vocab_size)
        if self.query_fill is not None and task == "query":
            ids, kept = self.query_fill.filled(ids, kept)
        return TokenizedTexts(ids, kept, lengths > limit)

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
        rows = [checked_ids(row, index, self.vocab_size) for index, row in enumerate(ids)]
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        limit = self._limit(max_length)
        if truncate == "error":
            require_short(lengths, limit)
        truncated = lengths > limit
        ends, side = replace(self._special_tokens, restored=False), self._side(truncate)
        for index in np.flatnonzero(truncated).tolist():
            rows[index] = np.array(ends.fit(rows[index].tolist(), limit, side), np.int32)
            lengths[index] = limit
        joined = np.concatenate(rows) if rows else np.empty(0, np.int32)
        return TokenizedTexts(joined, lengths, truncated)

    def token_ids(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        task: str | None = None,
        special_tokens: bool = True,
    ) -> list[list[int]]:
        """Token ids of each text, whole, however long it is. Raises `InvalidText`.

        Without `special_tokens` also without a chat template.
        """
        empty = list(self._source.empty_ids) if special_tokens else []
        strings, special = self._strings(texts, prompt, task, special_tokens)
        return [ids or empty for ids in self._all_ids(strings, special)]

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, special tokens spelled out. Raises `InvalidTokenIds`."""
        return self._source.detokenize(
            [
                checked_ids(row, index, self.vocab_size).tolist() if len(row) else []
                for index, row in enumerate(ids)
            ]
        )

    def prompt_length(self, prompt: str) -> int:
        """Tokens that `prompt` puts in front of a text, special tokens before it included.

        A special token at its end is not counted: in the whole text it stands after the text.
        What a chat template makes of a prompt is part of the text, as in the reference: 0.
        """
        if not prompt or self._source.chat is not None:
            return 0
        ids = self.encode([prompt], truncate=self._source.side).ids
        ends_special = len(ids) > 0 and int(ids[-1]) in self._source.special_ids
        return len(ids) - ends_special

    def shared_prefix_length(self, prompt: str, task: str | None = None) -> int:
        """Leading token ids, special ones included, that texts with this prompt have in common.

        Found with a few texts that begin differently, before anything is cut: a hint where reuse
        may pay, never a promise. Without a prompt it is what every text begins with.
        """
        return self._shared_prefix(prompt, task)

    def _shared_by_all(self, prompt: str, task: str | None) -> int:
        """What stays of the prompt's tokens when any kind of text follows its end."""
        whole = self.token_ids(PROBE_TEXTS[:3], prompt=prompt, task=task)
        alone, *_ = self.token_ids([prompt], special_tokens=False)
        ends = self.token_ids(PROBE_ENDINGS, prompt=prompt[-END_CHARACTERS:], special_tokens=False)
        merging = len(ends[0]) - common_prefix_length(ends)
        stays = len(self._special_tokens.prefix) + len(alone) - merging
        return max(0, min(stays, common_prefix_length(whole)))

    def _shared_in_chats(self, prompt: str, task: str | None) -> int:
        rows = [row for text in PROBE_TEXTS for row in self._accepted(text, prompt, task)]
        return common_prefix_length(rows)

    def _accepted(self, text: str, prompt: str, task: str | None) -> list[list[int]]:
        """The ids of one text; none if a chat template does not render it."""
        try:
            return self.token_ids([text], prompt=prompt, task=task)
        except InvalidText:
            return []

    def _tokenized(self, texts: Sequence[str], special_tokens: bool) -> Sequence[Any]:
        """What `ids_of` takes for each text. Raises `InvalidText` with the index of the first one
        that the tokenizer fails on."""
        try:
            return self._source.tokenize(list(texts), special_tokens)
        except BaseException as error:
            failure = self._source.failure(texts, error)
            if failure is None:
                raise
            raise failure from error

    def _part_ids(self, part: str, special_tokens: bool = False) -> list[int]:
        (row,) = self._tokenized([part], special_tokens)
        return ids_of(row)

    def _all_ids(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        """All token ids of each text."""
        if max(map(len, texts), default=0) <= LONG_TEXT:
            return [ids_of(row) for row in self._tokenized(texts, special_tokens)]
        return [self._ids_in_parts(text, special_tokens) for text in texts]

    def _ids_in_parts(self, text: str, special_tokens: bool) -> list[int]:
        ends, beginning = self._special_tokens, text[:PROBE_CHARACTERS]
        before, after = (ends.prefix, ends.suffix) if special_tokens else ([], [])
        if before + self._part_ids(beginning) + after == self._part_ids(beginning, special_tokens):
            ids = all_ids(text, self._part_ids)
            if ids is not None:
                ids[:0] = before
                ids += after
                return ids
        return self._part_ids(text, special_tokens)

    def _strings(
        self, texts: Sequence[str], prompt: str, task: str | None, special_tokens: bool
    ) -> tuple[Sequence[str], bool]:
        """Each text with its prompt, and whether the tokenizer adds its special tokens."""
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidText(f"it is {type(text).__name__}, not a string", index=index)
        source = self._source
        if special_tokens and source.chat is not None:
            return source.chat.render(texts, prompt=prompt, task=task), False
        prompted = [prompt + text for text in texts] if prompt else texts
        return prompted, special_tokens and source.add_special_tokens

    def _enough_of(
        self, texts: Sequence[str], special_tokens: bool, limit: int, side: Side
    ) -> tuple[list[Any], Collection[int]]:
        """What `ids_of` takes for each text, and which have not all of their ids.

        Cut to the limit, those are still the whole text's.
        """
        if max(map(len, texts), default=0) <= LONG_TEXT:
            return list(self._tokenized(texts, special_tokens)), ()
        token_ids = partial(self._part_ids, special_tokens=special_tokens)
        found: dict[int, list[int]] = {}
        for index, text in enumerate(texts):
            if len(text) > LONG_TEXT and not is_broken_unicode(text):
                # What the tokenizer fails on, it fails on again below, among the other texts.
                with contextlib.suppress(InvalidText):
                    ids = enough_ids(text, limit=limit, side=side, token_ids=token_ids)
                    if ids is not None:
                        found[index] = ids
        rest = ["" if index in found else text for index, text in enumerate(texts)]
        rows = self._tokenized(rest, special_tokens)
        return [found.get(index, row) for index, row in enumerate(rows)], found

    def _joined(self, rows: list[Any], ends: SpecialTokens, limit: int, side: Side) -> Ids:
        """The ids that are kept of each of the rows, which the list lets go of: all at once they
        would hold the interpreter for milliseconds."""
        joined = bytearray()
        rows.reverse()
        while rows:
            row = rows.pop()
            if not isinstance(row, array):
                row = array("i", ids_of(row))
            if not 0 < len(row) < limit:
                row = ends.fit(row, limit, side) or array("i", self._source.empty_ids)
            joined += row
            if rows and len(rows) % ROWS_BETWEEN_PAUSES == 0:
                this_thread_pauses()
        return np.frombuffer(joined, np.int32)

    def _template_suffix(self, prompt: str, task: str | None) -> SpecialTokens:
        return self._suffix_of(self._strings(UNLIKE_TEXTS, prompt, task, True)[0])

    def _suffix_of(self, rendered: Sequence[str]) -> SpecialTokens:
        """What a template puts at the end, of two that share nothing else: as in the reference."""
        chat = self._source.chat
        assert chat is not None
        rows, restored = self._tokenized(rendered, False), chat.restores_suffix
        suffix = common_suffix(*map(ids_of, rows)) if restored else []
        return SpecialTokens([], suffix, restored=restored)

    def _limit(self, max_length: int | None) -> int:
        """The most tokens a text of this call keeps."""
        if max_length is None:
            return NO_LIMIT if self.max_length is None else self.max_length
        self._require_room_for_text(max_length)
        return max_length if self._max_positions is None else min(max_length, self._max_positions)

    def _side(self, truncate: Truncate | None) -> Side:
        return self._source.side if truncate is None or truncate == "error" else truncate

    def _require_room_for_text(self, max_length: int | None) -> None:
        special = len(self._special_tokens.prefix) + len(self._special_tokens.suffix)
        if max_length is not None and max_length <= special:
            raise InvalidOption(
                f"max_length={max_length}: {special} of them are special tokens, which leaves "
                f"no room for text; choose at least {special + 1}"
            )
