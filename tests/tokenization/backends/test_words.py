"""Token ids by way of words: they are the tokenizer's own, whatever the text."""

from __future__ import annotations

import json
import random
import textwrap
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from millpond.tokenization.backends import words
from millpond.tokenization.backends.words import WordCache, word_cache

DOCSTRINGS = [
    line
    for module in (textwrap, json, random)
    for name in module.__all__
    for line in (getattr(module, name).__doc__ or "").splitlines()
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
QWEN2, LLAMA3 = words._PATTERNS
# Of the characters that tokenizers treat each in their own way.
ODD = [
    *map(chr, (*range(32), 0x85, 0xA0, 0xA8, 0x130, 0x3A3, 0xAD, 0x300, 0x301, 0x323, 0xE01)),
    *map(chr, (0x1100, 0x1161, 0x1E9B, 0x2013, 0x2019, 0x200B, 0x200D, 0x2028, 0x3000, 0x4E2D)),
    *map(chr, (0xAC00, 0xFB01, 0xFE0F, 0xFEFF, 0x1F98A)),
    *("[CLS]", "[cls]", " [PAD] ", "▁", "  ", "\n\n", "'s", "12345", "(", ").", "_"),
]


class Counted:
    """A tokenizer, and the texts that it was asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.asked: list[str] = []

    def __call__(self, texts: list[str], add_special_tokens: bool) -> Sequence[Any]:
        self.asked += texts
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def with_ends(tokenizer: Tokenizer) -> Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[2:]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(DOCSTRINGS, trainer)
    return with_ends(tokenizer)


def unigram(*before: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    pieces = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pieces]) if before else pieces
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(DOCSTRINGS, trainer)
    return with_ends(tokenizer)


def byte_level(pattern: str | None, *, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if pattern else None
    last = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), last])
        if pattern
        else last
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCSTRINGS, trainer)
    return with_ends(tokenizer)


MAKERS = {
    "BERT": word_piece,
    "XLM-R": lambda: unigram(pre_tokenizers.WhitespaceSplit()),
    "SentencePiece": unigram,
    "GPT-2": lambda: byte_level(None),
    "RoBERTa": lambda: byte_level(None, add_prefix_space=True),
    "Qwen2": lambda: byte_level(QWEN2),
    "Llama 3": lambda: byte_level(LLAMA3),
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param]()


@pytest.fixture
def counted(tokenizer: Tokenizer) -> Counted:
    return Counted(tokenizer)


@pytest.fixture
def cache(counted: Counted) -> WordCache:
    found = word_cache(counted.tokenizer, counted, most_texts=10_000)
    assert isinstance(found, WordCache)
    counted.asked.clear()
    return found


def ids(rows: Sequence[Any]) -> list[list[int]]:
    return [words.ids_of(row) for row in rows]


def odd_texts(count: int) -> Iterator[str]:
    rng = random.Random(3)
    known = [word for line in DOCSTRINGS for word in line.split()]
    for _ in range(count):
        pieces = [
            rng.choice(ODD) if rng.random() < 0.4 else rng.choice(known) + rng.choice(["", " "])
            for _ in range(rng.randint(0, 12))
        ]
        yield "".join(pieces)


@pytest.mark.parametrize("special", [True, False])
def test_the_ids_are_the_tokenizer_s(cache: WordCache, counted: Counted, special: bool) -> None:
    texts = [*DOCSTRINGS, *odd_texts(1500), "", " ", "x" * 1000, "中" * 300]
    expected = ids(counted(texts, special))
    assert ids(cache(texts, special)) == expected
    assert ids(cache(texts, special)) == expected  # the words are known now


def test_the_tokenizer_is_not_asked_for_words_that_are_known(
    cache: WordCache, counted: Counted
) -> None:
    cache(["the random module", "of a long and wrapped text in lines"], True)
    counted.asked.clear()
    (row,) = cache(["the long and wrapped module"], True)
    assert isinstance(row, array)
    assert counted.asked == []


def test_a_text_with_a_special_token_goes_to_it_whole(cache: WordCache, counted: Counted) -> None:
    text = "wrapped [SEP] text"
    cache(["wrapped text"], True)
    counted.asked.clear()
    assert ids(cache([text], True)) == ids(counted([text], True))
    assert set(counted.asked) == {text}


def test_many_texts_are_left_to_the_tokenizer_s_threads(counted: Counted) -> None:
    cache = word_cache(counted.tokenizer, counted, most_texts=2)
    texts = ["wrapped text", "a module", "wrapped module"]
    for text in texts:
        cache([text], True)
    counted.asked.clear()
    assert ids(cache(texts[:2], True)) == ids(counted.tokenizer.encode_batch(texts[:2]))
    assert counted.asked == []
    cache(texts, True)
    assert counted.asked == texts


def test_threads_need_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert words._has_threads()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert not words._has_threads()
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2), raising=False)
    assert not words._has_threads()


def test_long_words_are_not_kept(cache: WordCache, counted: Counted) -> None:
    text = f"text {'long' * 100}"
    assert ids(cache([text, text], True)) == ids(counted([text, text], True))
    assert not any(len(word) > words.LONGEST_WORD for word in cache._first | cache._others)


def test_no_more_words_are_kept_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, cache: WordCache, counted: Counted
) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 50)
    texts = [f"word{number} and number{number}" for number in range(500)]
    for text in texts:
        assert ids(cache([text], True)) == ids(counted([text], True))
        assert len(cache._first) + len(cache._others) < 60


def test_what_merges_over_spaces_is_left_to_the_tokenizer() -> None:
    merging = byte_level(None)
    merging.pre_tokenizer = None
    other_pattern = byte_level(QWEN2.replace(r"\s+(?!\S)|", ""))
    found_in_lower_case = word_piece()
    found_in_lower_case.add_tokens([AddedToken("Some Thing", normalized=True)])
    for tokenizer in (merging, other_pattern, found_in_lower_case):
        counted = Counted(tokenizer)
        assert word_cache(tokenizer, counted) is counted


def test_probes_decide_where_the_rules_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(byte_level(None))
    monkeypatch.setattr(words, "_begins_words", lambda tokenizer: False)
    assert word_cache(counted.tokenizer, counted) is counted


def test_half_of_a_surrogate_pair_is_an_error_each_time(cache: WordCache) -> None:
    for _ in range(2):
        with pytest.raises(TypeError):  # `TextTokenizer` says what is wrong with it
            cache(["fine", "broken \ud800 text"], True)
    assert len(cache(["fine text"], True)) == 1
