"""BERT's tokenizer without transformers: the same as with it, or left to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXTS
from transformers import BertTokenizer

from millpond.checkpoint.modules import Module
from millpond.tokenization.backends.backend import TokenizerBackend, ids_of
from millpond.tokenization.backends.bert import bert_source
from millpond.tokenization.backends.from_transformers import transformers_source

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzäéA東京.,!?'\""
WORDS = ["the", "mill", "grain", "don", "naive", "naïve", "##ing", "Mill", "stone"]
MORE_TEXTS = (
    *TEXTS,
    "Don't, I'm sure, they've been. Naïve [MASK] naive [SEP] mill . grain ?",
    "\0a\u200bb",
)
CODE = {"trust_remote_code": False, "cache_dir": None}


def save(folder: Path, **options: Any) -> Path:
    pieces = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizer(vocabulary, **options).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 64}')
    return folder


def module_in(folder: Path, **options: Any) -> Module:
    return Module(kind="Transformer", path=folder, options=options, class_name="Transformer")


def change(path: Path, **changes: Any) -> None:
    saved = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**saved, **changes}))


def assert_same(found: TokenizerBackend | None, wanted: TokenizerBackend) -> None:
    assert found is not None
    assert found.rust is not None
    assert wanted.rust is not None
    for special in (True, False):
        rows, expected = (
            [list(ids_of(row)) for row in source.tokenize(list(MORE_TEXTS), special)]
            for source in (found, wanted)
        )
        assert rows == expected
    assert found.detokenize(rows) == wanted.detokenize(rows)
    assert found.spans is not None
    assert wanted.spans is not None
    assert found.spans(list(MORE_TEXTS)) == wanted.spans(list(MORE_TEXTS))
    for name in (
        *("size", "pad_id", "special_ids", "add_special_tokens", "empty_ids", "side", "limit"),
        *("chat", "pairs"),
    ):
        assert getattr(found, name) == getattr(wanted, name), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": True},
        {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False},
        {"model_max_length": 20, "truncation_side": "left"},
        {"clean_up_tokenization_spaces": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("max_seq_length", [None, 7])
def test_it_is_what_transformers_makes(
    tmp_path: Path, options: dict[str, Any], max_seq_length: int | None
) -> None:
    module = module_in(save(tmp_path, **options), max_seq_length=max_seq_length)
    assert_same(bert_source(module), transformers_source(module, CODE, pairs=False))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"strip_accents": True}),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}),
        ("tokenizer_config.json", {"cls_token": "<s>"}),
        ("tokenizer_config.json", {"bos_token": "[CLS]"}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<e>"]}),
        ("tokenizer_config.json", {"mask_token": {"content": "[MASK]", "lstrip": True}}),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        ("tokenizer_config.json", {"of_the_future": 1}),
        ("special_tokens_map.json", {"eos_token": "[SEP]"}),
        ("added_tokens.json", {"<e>": 3}),
        ("config.json", {"model_type": "roberta"}),
        ("config.json", {"auto_map": {"AutoConfig": "own.Config"}}),
        ("tokenizer.json", {"normalizer": None}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"added_tokens": []}),
        ("tokenizer.json", {"version": "2.0"}),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}),
        ("tokenizer.json", {"model": None}),
    ],
    ids=str,
)
def test_anything_else_is_left_to_transformers(
    tmp_path: Path, file: str, changes: dict[str, Any]
) -> None:
    module = module_in(save(tmp_path))
    assert bert_source(module) is not None
    change(tmp_path / file, **changes)
    assert bert_source(module) is None


@pytest.mark.parametrize(
    "options",
    [
        {"do_lower_case": True},
        {"processor_kwargs": {"model_max_length": 4}},
        {"config_kwargs": {"pad_token_id": 3}},
        {"chat": {"required": False}},
    ],
    ids=str,
)
def test_options_of_the_checkpoint_are_left_to_transformers(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert bert_source(module_in(save(tmp_path), **options)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_left_to_transformers(tmp_path: Path, text: str) -> None:
    (save(tmp_path) / "tokenizer.json").write_text(text)
    assert bert_source(module_in(tmp_path)) is None
