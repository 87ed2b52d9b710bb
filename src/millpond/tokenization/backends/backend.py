"""`TokenizerBackend`: a tokenizer as loaded, and what the Rust tokenizers share.

Where it fails on a text the error names the text.

It knows no checkpoint's files. It cuts nothing and pads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from tokenizers import Tokenizer

from ...errors import InvalidText
from ..chat_template import ChatTemplate
from ..pair_frame import PairBackend
from ..query_fill import QueryFill
from .words import ids_of, word_cache

__all__ = [
    "NO_LIMIT",
    "Spans",
    "TokenizerBackend",
    "ids_of",
    "is_broken_unicode",
    "rust_spans",
    "rust_tokenize",
]

_RUST_PANIC = "PanicException"  # no Exception, and importable from nowhere

# A tokenizer without a limit of its own says so with a number this large or larger.
NO_LIMIT = 10**9

Spans = list[tuple[int, int] | None]
"""Of each token, where in its text it begins and ends; None for a special one."""


def _knows_none(name: str) -> None:
    """Of a tokenizer that is not asked for single tokens."""


def _names_none(ids: Sequence[int]) -> Sequence[str]:
    """Of a tokenizer that is not asked for them."""
    return [str(token) for token in ids]


def _unknown(*_: Any) -> Any:
    raise AssertionError("it only tokenises texts")


def _read(make: Callable[[Any], Any], tokenizer: str, facts: TokenizerBackend) -> Any:
    rust = Tokenizer.from_str(tokenizer)
    return make(replace(facts, tokenize=rust_tokenize(rust), rust=rust))


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizerBackend:
    """A tokenizer as loaded: how to call it, and what it says about itself."""

    tokenize: Callable[[list[str], bool], Sequence[Any]]
    """(texts, add special tokens) -> per text, what `ids_of` takes; never cut, never padded."""
    detokenize: Callable[[list[list[int]]], list[str]]
    """Token ids of several texts -> the texts, special tokens spelled out."""
    size: int
    pad_id: int
    special_ids: frozenset[int]
    add_special_tokens: bool
    empty_ids: tuple[int, ...]
    """What a text without any token becomes."""
    side: Literal["end", "start"]
    limit: int | None
    rust: Tokenizer | None = None
    """What `tokenize` asks; None where that is code of transformers'."""
    chat: ChatTemplate | None = None
    """What texts are rendered through, and then take no special tokens of the tokenizer's own."""
    spans: Callable[[list[str]], list[Spans]] | None = None
    """The characters of each token of a text, with special tokens; None where it cannot tell."""
    pairs: PairBackend | None = None
    """How it joins the texts of a pair; None where it was loaded for single texts."""
    empty_of_meaning: frozenset[int] = frozenset()
    """What begins or ends a text, pads it, or stands for what is unknown."""
    fill: QueryFill | None = None
    """What queries are filled up with, if they are."""
    known_id: Callable[[str], int | None] = _knows_none
    """The id of a token by its name; None where there is none."""
    names: Callable[[Sequence[int]], Sequence[str]] = _names_none
    """The tokens of these ids."""

    def reader(self, make: Callable[[TokenizerBackend], Any]) -> Callable[[], Any] | None:
        """Calls `make` with one that tokenises as this does and knows nothing else, also in another
        process: it pickles, and needs no transformers. None where that cannot be."""
        if self.rust is None or self.chat is not None:
            return None
        pairs = self.pairs
        if pairs is not None and pairs.frame is None:
            return None
        facts = replace(
            self,
            tokenize=_unknown,
            detokenize=_unknown,
            rust=None,
            spans=None,
            pairs=None if pairs is None else replace(pairs, tokenize=_unknown),
            known_id=_knows_none,
            names=_names_none,
        )
        return partial(_read, make, self.rust.to_str(), facts)

    def failure(self, texts: Sequence[str], error: BaseException) -> InvalidText | None:
        """What to say of an error that it failed with on some of the texts: of the first of them,
        by its index. None for an interrupt, which is no failure of its own."""
        if not isinstance(error, Exception) and type(error).__name__ != _RUST_PANIC:
            return None
        for index, text in enumerate(texts) if len(texts) > 1 else ():
            try:
                self.tokenize([text], True)
            except BaseException as one:
                if (found := self.failure([text], one)) is None:
                    raise
                return found.at(index)
        if is_broken_unicode(texts[0]):
            return InvalidText(
                "it holds half of a surrogate pair, which is no Unicode text; replace it, for "
                'example with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            )
        return InvalidText(f"the tokenizer failed on it with {type(error).__name__}: {error}")


def is_broken_unicode(text: str) -> bool:
    """Whether the text holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def rust_tokenize(tokenizer: Tokenizer) -> Callable[[list[str], bool], Sequence[Any]]:
    """Of each text what `ids_of` takes; by way of words that are kept where that may be."""
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def tokenize(texts: list[str], add_special_tokens: bool) -> Sequence[Any]:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    return word_cache(tokenizer, tokenize)


def rust_spans(tokenizer: Tokenizer, texts: list[str]) -> list[Spans]:
    return [
        [
            None if special else span
            for span, special in zip(row.offsets, row.special_tokens_mask, strict=True)
        ]
        for row in tokenizer.encode_batch(texts)
    ]
