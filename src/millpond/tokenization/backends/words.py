"""`WordCache`: the token ids of a text from those of its words, which are kept.

Most words of a text were in another text before, and with the tokenizers that are known here what
stands on one side of a space has no influence on the ids of the other. So a text costs one look-up
a word, where the tokenizer itself takes some 5 microseconds of a processor's time a token.

Two ways of treating a space are known:

- It separates two words and is no part of either: BERT's, and that of XLM-R and other
  SentencePiece models whose words each begin with `▁`.
- It begins the word after it: byte-level BPE by the patterns of GPT-2, Llama 3 and Qwen2. The first
  word of a text has none.

It holds the interpreter's lock, which the tokenizer lets go of. So where there are processors for
the tokenizer's own threads, many texts at a time are theirs.

A text in which a space may be treated otherwise, since a word is empty or begins or ends with
whitespace, say, goes to the tokenizer as a whole, and so does one with a special token in it.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unicodedata import category, is_normalized

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ...locks import this_thread_pauses

__all__ = ["WordCache", "ids_of", "keep_to_words", "word_cache"]

Tokenize = Callable[[list[str], bool], Sequence[Any]]
Row = Any
"""Of one text: `array("i")` of its ids, or what the tokenizer gave."""

SPACE_OF_PIECES = "\u2581"
MOST_WORDS = 2**17  # about 20 MB; then all are forgotten
LONGEST_WORD = 64  # characters of one that is kept
TEXTS_BETWEEN_PAUSES = 32
MANY_TEXTS = 32  # a call of more is for the tokenizer's threads
MANY_PROCESSORS = 8  # if there are these for them
FEW_WORDS = 8  # are quicker one by one: more go through the tokenizer's pool of threads

_keeps_to_words = False  # set once, before a tokenizer is loaded

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Of Qwen2's and of Llama 3's tokenizer.json.
_PATTERNS = tuple(rf"{_LETTERS}{digits}{_OTHERS}" for digits in (r"\p{N}", r"\p{N}{1,3}"))

_PROBES = (
    "",
    "a",
    " ",
    "Hello, World! It's 3.14 — naïve café, 東京 🦊 don't",
    "  two  spaces\tand a\nline \n and another, trailing ",
    "İstanbul ΣΑΣ ǅ ﬁne ¨ a ́b cafe\u0301 x\u00a0y \u200d z \x1c q\x1cr \u3000 w\u200b",
    "year 2024 was (in all) 12345 days; e.g. foo_bar/baz.py -- 50% [of] {them} <all>",
)


def word_cache(
    tokenizer: Tokenizer, tokenize: Tokenize, *, most_texts: int | None = None
) -> Tokenize:
    """`tokenize` by way of words, where it gives the same ids; as it is where it may not.

    Calls of more than `most_texts` are left to it; by default, those are many on many processors.
    """
    is_known = _begins_words(tokenizer)
    if is_known is None or not _has_plain_special_tokens(tokenizer):
        return tokenize
    if most_texts is None and _has_threads():
        most_texts = MANY_TEXTS
    cache = WordCache(tokenizer, tokenize, space_begins_word=is_known, most_texts=most_texts)
    probes = list(_PROBES)
    for special in (True, False):
        expected = [list(row.ids) for row in tokenize(probes, special)]
        for _ in range(2):  # at first no word is known
            if [ids_of(row) for row in cache(probes, special)] != expected:
                return tokenize
    return cache


def keep_to_words() -> None:
    """For a process with no other work: from now on tokenizers are loaded for calls of any size
    to go by words, on many processors too."""
    global _keeps_to_words
    _keeps_to_words = True


def _has_threads() -> bool:
    """Whether the tokenizer has threads of its own, and processors for them."""
    if _keeps_to_words:
        return False
    asked = os.environ.get("TOKENIZERS_PARALLELISM", "true").lower()
    processors = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    return processors >= MANY_PROCESSORS and asked not in ("", "0", "f", "false", "n", "no", "off")


def ids_of(row: Row) -> list[int]:
    """The token ids of one text as a tokenizer gave it: its own row, an array or a list."""
    if isinstance(row, array):
        return row.tolist()
    ids: list[int] = row if isinstance(row, list) else row.ids
    return ids


def _begins_words(tokenizer: Tokenizer) -> bool | None:
    """Whether a space begins the word after it, or only separates two; None where neither."""
    model, normalizer, divider = tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer
    parts = _parts(divider)
    if [part.get("type") for part in parts] == ["BertPreTokenizer"]:
        plain = normalizer is None or isinstance(normalizer, normalizers.BertNormalizer)
        return False if plain and isinstance(model, models.WordPiece) else None
    if isinstance(model, models.Unigram):
        return False if _divides_sentence_pieces(parts) else None
    if isinstance(model, models.BPE) and _is_byte_level(parts):
        return True if normalizer is None or isinstance(normalizer, normalizers.NFC) else None
    return None


def _parts(divider: pre_tokenizers.PreTokenizer | None) -> Sequence[Mapping[str, Any]]:
    """What a pre-tokenizer does, as tokenizer.json has it, one after the other."""
    if divider is None:
        return []
    described = json.loads(divider.__getstate__())
    parts: Sequence[Mapping[str, Any]] = described.get("pretokenizers", [described])
    return parts


def _divides_sentence_pieces(parts: Sequence[Mapping[str, Any]]) -> bool:
    *before, last = parts or [{}]
    return (
        [part.get("type") for part in before] in ([], ["WhitespaceSplit"])
        and last.get("type") == "Metaspace"
        and last.get("prepend_scheme") == "always"
        and last.get("split") is True
    )


def _is_byte_level(parts: Sequence[Mapping[str, Any]]) -> bool:
    *before, last = parts or [{}]
    if last.get("type") != "ByteLevel":
        return False
    if not before:
        return last.get("use_regex") is True
    return len(before) == 1 and last.get("use_regex") is False and _is_known_split(before[0])


def _is_known_split(part: Mapping[str, Any]) -> bool:
    return (
        part.get("type") == "Split"
        and part.get("pattern") in [{"Regex": pattern} for pattern in _PATTERNS]
        and part.get("behavior") == "Isolated"
        and not part.get("invert")
    )


def _has_plain_special_tokens(tokenizer: Tokenizer) -> bool:
    """Whether special tokens are found in a text as it is, so that they can be looked for."""
    added = tokenizer.get_added_tokens_decoder().values()
    return tokenizer.normalizer is None or not any(token.normalized for token in added)


class WordCache:
    """Token ids of texts. Any thread may use it, and several at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokenize: Tokenize,
        *,
        space_begins_word: bool,
        most_texts: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenize = tokenize
        self._most_texts = most_texts
        self._first: dict[str, bytes] = {}  # int32 each
        self._others = {} if space_begins_word else self._first
        self._before = " " if space_begins_word else ""
        is_bert = isinstance(tokenizer.model, models.WordPiece)
        self._is_safe = _stands_alone_anyhow if is_bert else _stands_alone
        self._special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._signs = sorted({token[:1] for token in self._special})
        self._ends = _ends(tokenize)

    def __call__(self, texts: list[str], add_special_tokens: bool) -> Sequence[Row]:
        """Of each text, `array("i")` of its ids, or what the tokenizer gave for the whole."""
        if self._most_texts is not None and len(texts) > self._most_texts:
            return self._tokenize(texts, add_special_tokens)
        rows: list[Row] = []
        unknown = []
        for index, text in enumerate(texts):
            row = self._row(text, add_special_tokens)
            if row is None:
                unknown.append(index)
            rows.append(row)
            if index % TEXTS_BETWEEN_PAUSES == TEXTS_BETWEEN_PAUSES - 1:
                this_thread_pauses()
        if unknown:
            self._learn([texts[index] for index in unknown])
            for index in unknown:
                rows[index] = self._row(texts[index], add_special_tokens)
            whole = [index for index in unknown if rows[index] is None]
            if whole:
                found = self._tokenize([texts[index] for index in whole], add_special_tokens)
                for index, row in zip(whole, found, strict=True):
                    rows[index] = row
        return rows

    def _row(self, text: str, add_special_tokens: bool) -> Row | None:
        """None where a word is not known or the text has to be taken as a whole."""
        for sign in self._signs:
            if sign in text and self._holds_special_token(text):
                return None
        first, space, rest = text.partition(" ")
        try:
            ids = self._first[first]
            if space:
                ids += b"".join(map(self._others.__getitem__, rest.split(" ")))
        except KeyError:
            return None
        before, after = self._ends if add_special_tokens else (b"", b"")
        return array("i", before + ids + after)

    def _holds_special_token(self, text: str) -> bool:
        return any(map(text.__contains__, self._special))

    def _learn(self, texts: Sequence[str]) -> None:
        """Take in the words of texts that are not known, where each stands for itself."""
        if len(self._first) + len(self._others) > MOST_WORDS:
            self._first.clear()
            self._others.clear()
        first: dict[str, None] = {}
        others: dict[str, None] = {}
        for text in texts:
            words = text.split(" ")
            if not self._holds_special_token(text) and all(map(self._may_be_kept, words)):
                first[words[0]] = None
                others.update(dict.fromkeys(words[1:]))
        self._keep(self._first, [word for word in first if word not in self._first], "")
        self._keep(
            self._others, [word for word in others if word not in self._others], self._before
        )

    def _may_be_kept(self, word: str) -> bool:
        return len(word) <= LONGEST_WORD and self._is_safe(word)

    def _keep(self, known: dict[str, bytes], words: Sequence[str], before: str) -> None:
        pieces = [before + word for word in words]
        for word, ids in zip(words, self._ids_of(pieces), strict=True):
            known[word] = array("i", ids).tobytes()

    def _ids_of(self, pieces: list[str]) -> Iterator[list[int]]:
        if len(pieces) <= FEW_WORDS:
            return (self._tokenizer.encode(each, add_special_tokens=False).ids for each in pieces)
        return (row.ids for row in self._tokenize(pieces, False))

    def __repr__(self) -> str:
        return f"WordCache(words={len(self._first.keys() | self._others.keys())})"


def _ends(tokenize: Tokenize) -> tuple[bytes, bytes]:
    """What the tokenizer puts before and after the ids of a text."""
    (bare,), (whole,) = tokenize(["a"], False), tokenize(["a"], True)
    ids, all_ids = list(bare.ids), list(whole.ids)
    for start in range(len(all_ids) - len(ids) + 1):
        if all_ids[start : start + len(ids)] == ids:
            before, after = all_ids[:start], all_ids[start + len(ids) :]
            return array("i", before).tobytes(), array("i", after).tobytes()
    return b"", b""


def _stands_alone_anyhow(word: str) -> bool:
    """BERT's tokenizer treats whitespace and other characters one by one."""
    return True


def _stands_alone(word: str) -> bool:
    """Whether spaces around a word are treated as if nothing else were there.

    Marks join what they follow, a space too; characters that normalisation changes may become
    whitespace; and SentencePiece's own sign is a space to it.
    """
    if not word or word != word.strip() or SPACE_OF_PIECES in word:
        return False
    return word.isascii() or (category(word[0])[0] in "LNPS" and is_normalized("NFKC", word))
