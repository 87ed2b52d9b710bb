"""Tokenising where a tokenizer may fail on a text: the error names the text.

It knows no prompts and no lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InvalidText
from .backends.backend import TokenizerBackend

__all__ = ["is_broken_unicode", "tokenized"]

_RUST_PANIC = "PanicException"  # no Exception, and importable from nowhere


def tokenized(
    source: TokenizerBackend, texts: Sequence[str], add_special_tokens: bool
) -> Sequence[Any]:
    """What `ids_of` takes for each text. Raises `InvalidText` with the index of the first one that
    the tokenizer fails on."""
    try:
        return source.tokenize(list(texts), add_special_tokens)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _RUST_PANIC:
            raise
        raise _error(source, texts, error) from error


def _error(source: TokenizerBackend, texts: Sequence[str], error: BaseException) -> InvalidText:
    if len(texts) > 1:
        for index, text in enumerate(texts):
            try:
                tokenized(source, [text], True)
            except InvalidText as found:
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
