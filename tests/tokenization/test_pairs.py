"""Pairs are tokenised as sentence-transformers' CrossEncoder does it, whole and cut."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXTS, TOKENIZERS, save_transformer
from families import FAMILIES
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from millpond import InvalidText, Pair, TextTooLong, UnsupportedCall
from millpond.checkpoint.kinds.no_modules import default_chain
from millpond.checkpoint.modules import Module
from millpond.tokenization.pair_frame import kept_tokens, pair_backend
from millpond.tokenization.pairs import PairTokenizer
from millpond.tokenization.token_types import LARGEST_ID, split_token_types, typed_ids

QUERIES = ("", "mill", "the stone grinds", "naïve café — 東京 🦊 " * 3, "x" * 90)
PAIRS = [(query, text) for query in QUERIES for text in TEXTS if query or text]

FAMILY = {"word_piece": "bert", "roberta": "roberta", "decoder": "qwen2", "unigram": "bert"}


def save(folder: Path, tokenizer: str = "word_piece", **settings: Any) -> Path:
    family = next(each for each in FAMILIES if each.name == FAMILY[tokenizer])
    model = family.model.removesuffix("Model") + "ForSequenceClassification"
    config = {**family.config, "num_labels": 1}
    save_transformer(folder, model=model, tokenizer=tokenizer, config=config)
    if settings:
        words = PreTrainedTokenizerFast.from_pretrained(folder, **settings)
        words.save_pretrained(folder)
    return folder


def load(folder: Path, *, max_length: int | None = None, **options: Any) -> PairTokenizer:
    (module,) = default_chain(folder)
    assert isinstance(module, Module)
    options = {"token_types": True, **options}
    return PairTokenizer.load(
        module,
        max_length=max_length,
        max_positions=None,
        hidden_vocab_size=None,
        trust_remote_code=False,
        **options,
    )


def rows_of(tokenizer: PairTokenizer, pairs: Any, **options: Any) -> list[np.ndarray]:
    found = tokenizer.encode_pairs([Pair(*pair) for pair in pairs], **options)
    return np.split(found.ids, np.cumsum(found.lengths)[:-1])


@pytest.mark.parametrize("max_length", [None, 7, 8, 16, 31])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("words", FAMILY)
def test_pairs_have_the_reference_s_ids_and_token_types(
    words: str, side: str, max_length: int | None, tmp_path: Path
) -> None:
    folder = save(tmp_path, words, truncation_side=side)
    reference = CrossEncoder(str(folder), device="cpu", max_length=max_length)
    tokenizer = load(folder, max_length=max_length)
    features = reference.preprocess([list(pair) for pair in PAIRS])
    types = features.get("token_type_ids", features["input_ids"] * 0)
    found = rows_of(tokenizer, PAIRS)
    for row, *expected in zip(
        found, features["input_ids"], types, features["attention_mask"], strict=True
    ):
        ids, kinds, mask = (each.numpy() for each in expected)
        found_ids, found_kinds = split_token_types(row)
        assert found_ids.tolist() == (ids[mask == 1].tolist() or [tokenizer.pad_id])
        assert found_kinds.tolist() == (kinds[mask == 1].tolist() or [0])
    assert tokenizer.has_token_types == bool(types.any())


def test_another_process_can_load_the_same(tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path), max_length=16)
    expected = rows_of(tokenizer, PAIRS)
    for make in (tokenizer.load_again, tokenizer.reader()):
        again = pickle.loads(pickle.dumps(make))()
        assert type(again) is PairTokenizer
        assert (again.max_length, again.has_token_types) == (16, tokenizer.has_token_types)
        assert [row.tolist() for row in rows_of(again, PAIRS)] == [row.tolist() for row in expected]


def test_a_tokenizer_that_joins_in_a_way_of_its_own_is_asked_for_whole_pairs(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer, other = load(folder, max_length=16), load(folder, max_length=16)
    assert words is not None
    other._frame = None
    for row, expected in zip(rows_of(other, PAIRS), rows_of(tokenizer, PAIRS), strict=True):
        np.testing.assert_array_equal(row, expected)
    with pytest.raises(UnsupportedCall, match="cannot be cut alone"):
        rows_of(other, PAIRS, truncate="document")
    with pytest.raises(TextTooLong, match="text 5"):
        rows_of(other, PAIRS, truncate="error")


def test_a_frame_that_depends_on_the_texts_is_not_believed() -> None:
    words = Tokenizer(
        models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "hello": 3, "world": 4}, "[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A", pair="$B $A", special_tokens=[]
    )
    backend = pair_backend(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
    assert backend.frame is None
    assert backend.tokenize([("a", "b")], None)[0][0] == [2, 1]


@pytest.mark.parametrize("room", range(12))
@pytest.mark.parametrize(("query", "document"), [(3, 9), (9, 3), (5, 5), (0, 7), (7, 0), (1, 1)])
def test_the_longer_text_is_cut_first(query: int, document: int, room: int) -> None:
    first, second = kept_tokens(query, document, room)
    assert first <= query
    assert second <= document
    assert first + second == min(room, query + document)
    if query + document > room:
        assert abs(first - second) <= 1 or min(first, second) == min(query, document)


def test_with_document_the_query_stays_whole(tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path), max_length=12)
    query, document = "the stone", "grinds the grain of the mill while water falls"
    (row,) = rows_of(tokenizer, [(query, document)], truncate="document")
    (whole,) = rows_of(load(tmp_path), [(query, document)])
    assert len(row) == 12
    np.testing.assert_array_equal(row[:-1], whole[:11])
    assert row[-1] == whole[-1]
    with pytest.raises(TextTooLong, match=r"text 1: its query takes \d+ tokens"):
        rows_of(tokenizer, [(query, "a"), (document, query)], truncate="document")


def test_errors_name_the_pair(tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path), max_length=12)
    with pytest.raises(TextTooLong, match="text 1"):
        rows_of(tokenizer, [("a", "b"), ("a " * 9, "b " * 9)], truncate="error")
    for bad in (("\ud800", "a"), ("a", "\ud800")):
        with pytest.raises(InvalidText, match="text 2: it holds half of a surrogate pair"):
            rows_of(tokenizer, [("a", "b"), ("c", "d"), bad])


def test_a_query_that_many_documents_share_is_tokenised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load(save(tmp_path))
    seen: list[str] = []
    enough = tokenizer._enough_of
    monkeypatch.setattr(
        tokenizer, "_enough_of", lambda texts, *rest: (seen.extend(texts), enough(texts, *rest))[1]
    )
    rows_of(tokenizer, [("one query", text) for text in "abcd"], prompt="ask: ")
    assert seen == ["ask: one query", *"abcd"]


def test_ids_at_the_end_that_a_head_looks_past_are_left_out(tmp_path: Path) -> None:
    folder = save(tmp_path, "decoder")
    end = TOKENIZERS["decoder"]().pad_token_id
    whole, cut = load(folder), load(folder, ignored_end=end)
    texts = ["mill", "the stone<|endoftext|><|endoftext|>", "<|endoftext|>"]
    for text in texts:
        ids = whole.encode([text]).ids.tolist()
        while len(ids) > 1 and ids[-1] == end:
            ids.pop()
        found = cut.encode([text])
        assert found.ids.tolist() == ids
        assert found.lengths.tolist() == [len(ids)]
    together = cut.encode(texts)
    assert together.ids.tolist() == [i for text in texts for i in cut.encode([text]).ids.tolist()]


@pytest.mark.parametrize("prompt", ["", "an instruction: "])
def test_what_pairs_of_a_query_share_ends_before_the_document(prompt: str, tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path))
    shared = tokenizer.shared_pair_prefix_length("the stone", prompt)
    rows = rows_of(tokenizer, [("the stone", text) for text in ("a", "b")], prompt=prompt)
    assert shared == len(rows[0]) - 2
    np.testing.assert_array_equal(rows[0][:shared], rows[1][:shared])


def test_token_types_are_in_the_ids_and_come_out_again() -> None:
    ids = [0, 1, LARGEST_ID]
    for kind in (0, 1, 3, 127):
        found, kinds = split_token_types(np.array(typed_ids(ids, kind), dtype=np.int32))
        assert found.tolist() == ids
        assert kinds.tolist() == [kind] * 3
    assert typed_ids(ids, 0) is ids
