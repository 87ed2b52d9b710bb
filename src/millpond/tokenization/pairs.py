"""`PairTokenizer`: the tokenizer of a checkpoint that also reads a query and a document as one.

A pair becomes what sentence-transformers' `CrossEncoder` makes of it: the two texts in the
tokenizer's own frame, or messages of its chat template. A query that many documents share is
tokenised once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InvalidText, TextTooLong, UnsupportedCall
from ..pair import Pair
from .backends.backend import Spans, ids_of
from .pair_frame import PairBackend, cut, kept_tokens
from .shared_prefix import PROBE_TEXTS, common_prefix_length
from .token_ids import TokenizedTexts
from .token_types import typed_ids
from .tokenizer import UNLIKE_TEXTS, TextTokenizer
from .truncation import Side, SpecialTokens, Truncate

__all__ = ["PairTokenizer", "TruncatePair"]

TruncatePair = Truncate | Literal["document"]


@dataclass(frozen=True)
class _Row:
    """The ids of one pair, and how many there were before it was cut."""

    ids: list[int]
    length: int


class PairTokenizer(TextTokenizer):
    """Reads pairs beside texts. It never changes after loading."""

    reads_pairs = True

    def __init__(
        self,
        *args: Any,
        token_types: bool = False,
        ignored_end: int | None = None,
        **options: Any,
    ) -> None:
        """`token_types`: the model is to be told which token is of which text. `ignored_end`: ids
        at the end of a text that its head looks past, as padding.
        """
        super().__init__(*args, **options)
        self._ignored_end = ignored_end
        self._pairs: PairBackend | None = self._source.pairs
        self.has_token_types = token_types and self._pairs is not None and self._pairs.has_types
        frame = None if self._pairs is None else self._pairs.frame
        self._frame = frame.typed() if frame is not None and self.has_token_types else frame

    @property
    def reads_single_texts(self) -> bool:
        """Whether its chat template, if it has one, renders a text that is in no pair."""
        return self._source.chat is None or self._source.chat.text_failure is None

    def encode(self, texts: Sequence[str], **options: Any) -> TokenizedTexts:
        """As `TextTokenizer.encode`."""
        chat = self._source.chat
        self._require_renders(None if chat is None else chat.text_failure, "single texts")
        return self._without_ignored_end(super().encode(texts, **options))

    def token_ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        """As `TextTokenizer.token_ids`."""
        chat = self._source.chat
        if chat is not None and options.get("special_tokens", True):
            self._require_renders(chat.text_failure, "single texts")
        return super().token_ids(texts, **options)

    def fit_ids(self, *args: Any, **options: Any) -> TokenizedTexts:
        """As `TextTokenizer.fit_ids`."""
        return self._without_ignored_end(super().fit_ids(*args, **options))

    def encode_pairs(
        self,
        pairs: Sequence[Pair],
        *,
        prompt: str = "",
        truncate: TruncatePair | None = None,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Token ids of pairs, special tokens added as the checkpoint adds them.

        `prompt` stands in front of the query or, where the checkpoint has a chat template, is the
        system's message. Of a pair that is too long the longer text is cut first, at its `end` or
        `start` (None: where the checkpoint says), or with "document" only that.

        Raises `TextTooLong` (with "error", and where a query alone is too long for "document") and
        `InvalidText`, both with the index, and `UnsupportedCall` where the checkpoint's template
        renders no pairs.
        """
        limit = self._limit(max_length)
        if self._source.chat is not None:
            rows = self._chat_rows(pairs, prompt, limit, truncate)
        else:
            rows = self._text_rows(pairs, prompt, limit, truncate)
        lengths = np.fromiter((len(row.ids) for row in rows), np.int32, len(rows))
        ids = np.fromiter(
            chain.from_iterable(row.ids for row in rows), np.int32, int(lengths.sum(dtype=np.int64))
        )
        truncated = np.fromiter((row.length > limit for row in rows), np.bool_, len(rows))
        return self._without_ignored_end(TokenizedTexts(ids, lengths, truncated))

    def spans(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        truncate: Truncate | None = None,
        max_length: int | None = None,
    ) -> list[Spans]:
        """The characters of the tokens that `encode` keeps of each text, None for all others.

        Raises `UnsupportedCall` for a tokenizer that cannot tell.
        """
        if self._source.spans is None:
            raise UnsupportedCall(
                "this checkpoint's tokenizer does not say which characters a token has, so classes "
                "of tokens would have no place; it needs a tokenizer.json and no chat template"
            )
        limit, side = self._limit(max_length), self._side(truncate)
        prompted = [prompt + text for text in texts]
        rows = self._source.tokenize(prompted, True)
        return [
            _shifted(self._kept_spans(spans, ids_of(row), limit, side), len(prompt))
            for row, spans in zip(rows, self._source.spans(prompted), strict=True)
        ]

    def _kept_spans(self, spans: Spans, ids: list[int], limit: int, side: Side) -> Spans:
        kept = self._special_tokens.fit(ids, limit, side)
        if len(kept) == len(ids):
            return spans
        pairs = enumerate(zip(kept, ids, strict=False))
        head = next((place for place, (one, other) in pairs if one != other), len(kept))
        if side == "start":
            head = min(head, len(self._special_tokens.prefix))
        return spans[:head] + spans[len(spans) - (len(kept) - head) :]

    def shared_pair_prefix_length(self, query: str, prompt: str = "") -> int:
        """Leading token ids that the pairs of a query have in common, whatever the document."""
        pairs = [Pair(query, text) for text in PROBE_TEXTS]
        whole = self.encode_pairs(pairs, prompt=prompt, truncate="end")
        rows = np.split(whole.ids, np.cumsum(whole.lengths)[:-1])
        return common_prefix_length([row.tolist() for row in rows])

    # Pairs as they are.

    def _text_rows(
        self, pairs: Sequence[Pair], prompt: str, limit: int, truncate: TruncatePair | None
    ) -> list[_Row]:
        assert self._pairs is not None
        if self._frame is None:
            return self._rows_by_call(pairs, prompt, limit, truncate)
        side = "end" if truncate == "document" else self._side(truncate)
        queries = self._query_ids(pairs, prompt, limit, side)
        documents, _ = self._enough_of([pair.document for pair in pairs], False, limit, side)
        return [
            self._framed(queries[pair.query], ids_of(document), limit, truncate, index)
            for index, (pair, document) in enumerate(zip(pairs, documents, strict=True))
        ]

    def _query_ids(
        self, pairs: Sequence[Pair], prompt: str, limit: int, side: Side
    ) -> dict[str, list[int]]:
        unique = list(dict.fromkeys(pair.query for pair in pairs))
        try:
            rows, _ = self._enough_of([prompt + query for query in unique], False, limit, side)
        except InvalidText as error:
            query = unique[error.index]
            raise error.at(next(i for i, p in enumerate(pairs) if p.query == query)) from None
        return dict(zip(unique, map(ids_of, rows), strict=True))

    def _framed(
        self,
        query: list[int],
        document: list[int],
        limit: int,
        truncate: TruncatePair | None,
        index: int,
    ) -> _Row:
        frame = self._frame
        assert frame is not None
        length = len(query) + len(document) + frame.size
        if length > limit and truncate == "error":
            raise _too_long(length, limit, index)
        if length > limit:
            keep = self._kept(len(query), len(document), limit - frame.size, truncate, index)
            from_start = truncate != "document" and self._side(truncate) == "start"
            query = cut(query, keep[0], from_start)
            document = cut(document, keep[1], from_start)
        if self.has_token_types:
            query = typed_ids(query, frame.query_type)
            document = typed_ids(document, frame.document_type)
        ids = [*frame.before[0], *query, *frame.between[0], *document, *frame.after[0]]
        return _Row(ids or list(self._source.empty_ids), length)

    def _kept(
        self, query: int, document: int, room: int, truncate: TruncatePair | None, index: int
    ) -> tuple[int, int]:
        if truncate != "document":
            return kept_tokens(query, document, max(room, 0))
        if query >= room:
            raise _query_too_long(query, room, index)
        return query, room - query

    def _rows_by_call(
        self, pairs: Sequence[Pair], prompt: str, limit: int, truncate: TruncatePair | None
    ) -> list[_Row]:
        assert self._pairs is not None
        if truncate == "document":
            raise UnsupportedCall(
                "this tokenizer joins the texts of a pair in a way of its own, so the document "
                'cannot be cut alone; leave truncate out, or use "error"'
            )
        texts = [(prompt + pair.query, pair.document) for pair in pairs]
        whole, rows = self._pairs.tokenize(texts, None), self._pairs.tokenize(texts, limit)
        found = []
        for index, ((ids, _), (kept, types)) in enumerate(zip(whole, rows, strict=True)):
            if truncate == "error" and len(ids) > limit:
                raise _too_long(len(ids), limit, index)
            if self.has_token_types:
                pairs_of = zip(kept, types, strict=True)
                kept = [typed_ids([token], kind)[0] for token, kind in pairs_of]
            found.append(_Row(kept or list(self._source.empty_ids), len(ids)))
        return found

    # Pairs through a chat template.

    def _chat_rows(
        self, pairs: Sequence[Pair], prompt: str, limit: int, truncate: TruncatePair | None
    ) -> list[_Row]:
        chat = self._source.chat
        assert chat is not None
        self._require_renders(chat.pair_failure, "pairs")
        rows = self._tokenized(chat.render_pairs(pairs, prompt=prompt), False)
        found = []
        for index, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
            ids, length = ids_of(row), len(ids_of(row))
            if length > limit and truncate == "error":
                raise _too_long(length, limit, index)
            if length > limit and truncate == "document":
                ids = self._shortened(pair, prompt, limit, length, index)
            elif length >= limit:
                side: Side = "end" if truncate == "document" else self._side(truncate)
                ids = self._pair_suffix(prompt).fit(ids, limit, side)
            found.append(_Row(ids or list(self._source.empty_ids), length))
        return found

    def _pair_suffix(self, prompt: str) -> SpecialTokens:
        chat = self._source.chat
        assert chat is not None
        skeletons = [Pair(filler, filler) for filler in UNLIKE_TEXTS]
        return self._suffix_of(chat.render_pairs(skeletons, prompt=prompt))

    def _shortened(self, pair: Pair, prompt: str, limit: int, length: int, index: int) -> list[int]:
        """The ids of a pair with so much of its document that they are within the limit."""
        chat, characters, over = self._source.chat, len(pair.document), length - limit
        assert chat is not None
        while characters:
            per_token = max(1.0, len(pair.document) / length)
            characters = max(0, characters - max(1, int(over * per_token)))
            shorter = Pair(pair.query, pair.document[:characters])
            ids = self._part_ids(chat.render_pairs([shorter], prompt=prompt)[0])
            over = len(ids) - limit
            if over <= 0:
                return ids
        raise _query_too_long(limit + over, limit, index)

    def _require_renders(self, failure: str | None, what: str) -> None:
        if failure is not None:
            other = "score or rank with pairs" if what == "single texts" else "classify"
            raise UnsupportedCall(
                f"this checkpoint's chat template takes no {what}: it {failure}. Call {other}, "
                "or save a chat template with the checkpoint that renders messages of the roles "
                "query and document"
            )

    def _template_suffix(self, prompt: str, task: str | None) -> SpecialTokens:
        chat = self._source.chat
        if chat is not None and chat.text_failure is not None:
            return self._pair_suffix(prompt)
        return super()._template_suffix(prompt, task)

    def _without_ignored_end(self, texts: TokenizedTexts) -> TokenizedTexts:
        """Texts without what their head looks past: it is causal, so nothing else sees it."""
        if self._ignored_end is None or not (texts.ids == self._ignored_end).any():
            return texts
        lengths, kept = texts.lengths.copy(), np.ones(len(texts.ids), dtype=np.bool_)
        starts = np.cumsum(lengths) - lengths
        for place, (start, length) in enumerate(
            zip(starts.tolist(), lengths.tolist(), strict=True)
        ):
            row: npt.NDArray[np.int32] = texts.ids[start : start + length]
            last = np.flatnonzero(row != self._ignored_end)
            lengths[place] = last[-1] + 1 if len(last) else 1
            kept[start + lengths[place] : start + length] = False
        return TokenizedTexts(texts.ids[kept], lengths, texts.truncated)


def _shifted(spans: Spans, start: int) -> Spans:
    """Spans counted from there; None for those that begin before."""
    return [
        None if span is None or span[0] < start else (span[0] - start, span[1] - start)
        for span in spans
    ]


def _too_long(length: int, limit: int, index: int) -> TextTooLong:
    return TextTooLong(
        f"its {length} tokens are more than the {limit} that the model reads; shorten it, or leave "
        "truncate out and the longer text is cut first",
        index=index,
    )


def _query_too_long(query: int, limit: int, index: int) -> TextTooLong:
    return TextTooLong(
        f"its query takes {query} tokens and the model reads {limit}, which leaves nothing for "
        "the document; shorten the query, or leave truncate out",
        index=index,
    )
