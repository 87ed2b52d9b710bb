"""BERT's tokenizer from its tokenizer.json, where no other file says something else.

transformers makes a BERT tokenizer anew from its vocabulary and the settings of
tokenizer_config.json. Where tokenizer.json is in every part what they describe, the ids are the
same, and transformers need not be imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...checkpoint.files import read_json_object
from ...checkpoint.modules import Module
from .backend import NO_LIMIT, TokenizerBackend, rust_spans, rust_tokenize

__all__ = ["bert_source"]

_SPECIAL = {
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
# What a setting may be; it is one of these where it is absent, too.
_KNOWN_VALUES: Mapping[str, tuple[Any, ...]] = {
    **{name: (token, {"content": token, **_FLAGS}) for name, token in _SPECIAL.items()},
    "additional_special_tokens": ([],),
    "clean_up_tokenization_spaces": (False, True),
    "do_basic_tokenize": (True,),
    "do_lower_case": (True, False),
    "extra_special_tokens": ({}, []),
    "never_split": (None,),
    "padding_side": ("right",),
    "strip_accents": (None, True, False),
    "tokenize_chinese_chars": (True, False),
    "tokenizer_class": ("BertTokenizer", "BertTokenizerFast"),
    "truncation_side": ("right", "left"),
}
_NO_MATTER = frozenset(
    {
        *("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file"),
        *("max_length", "model_max_length", "pad_to_multiple_of", "pad_token_type_id"),
        *("backend", "is_local", "local_files_only", "processor_class"),
        *("stride", "truncation_strategy"),
    }
)
_OTHER_FILES = ("added_tokens.json", "chat_template.jinja", "chat_template.json")
# What transformers' `clean_up_tokenization` takes spaces from, in its order.
_TIDIED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def bert_source(module: Module) -> TokenizerBackend | None:
    """The tokenizer in the folder of a `Transformer`; None where transformers is needed.

    Also where files are damaged, about which transformers' own code is asked.
    """
    folder, options = module.path, module.options
    changes = (
        *("chat", "config_kwargs", "do_lower_case", "prefix_tokens", "processor_kwargs"),
        "query_expansion",
    )
    config = read_json_object(folder / "config.json")
    is_plain = config.get("model_type") == "bert" and "auto_map" not in config
    if not is_plain or any(options.get(name) for name in changes):
        return None
    saved = read_json_object(folder / "tokenizer_config.json")
    if any((folder / name).exists() for name in _OTHER_FILES) or not _is_known(saved, folder):
        return None
    tokenizer = _read(folder / "tokenizer.json", saved)
    if tokenizer is None:
        return None
    limit = _limit(saved, config, options.get("max_seq_length"))
    return _backend(tokenizer, saved, limit)


def _is_known(saved: Mapping[str, Any], folder: Path) -> bool:
    """Whether tokenizer_config.json and what goes with it say only what is known here."""
    settings = {name: saved[name] for name in saved.keys() - _NO_MATTER}
    decoder = settings.pop("added_tokens_decoder", None)
    tokens = read_json_object(folder / "special_tokens_map.json")
    added = decoder.values() if isinstance(decoder, dict) else [decoder] if decoder else []
    return (
        "tokenizer_class" in settings
        and all(_is_value(name, value) for name, value in (*settings.items(), *tokens.items()))
        and all(token in _added(_SPECIAL.values()) for token in added)
    )


def _is_value(name: str, value: Any) -> bool:
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if key not in ("__type", "special")}
    return value in _KNOWN_VALUES.get(name, ())


def _added(tokens: Any) -> list[dict[str, Any]]:
    return [{"content": token, **_FLAGS, "special": True} for token in tokens]


def _read(path: Path, saved: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer in a tokenizer.json that describes what the settings do."""
    try:
        text = path.read_text(encoding="utf-8")
        described = json.loads(text)
        if _without_lengths(described) != _expected(described["model"]["vocab"], saved):
            return None
        return Tokenizer.from_str(text)
    except Exception:  # the Rust side raises plain Exception
        return None


def _without_lengths(described: dict[str, Any]) -> dict[str, Any]:
    """A text is cut and padded elsewhere."""
    return {k: v for k, v in described.items() if k not in ("padding", "truncation")}


def _expected(vocabulary: Mapping[str, int], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a vocabulary and settings, as transformers saves it.

    Raises `KeyError` for a vocabulary without the special tokens.
    """
    ids = {token: vocabulary[token] for token in _SPECIAL.values()}
    in_order = sorted(ids, key=lambda token: ids[token])
    ends = ("[CLS]", "[SEP]")
    first, separator = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ends)
    one, other = ({"Sequence": {"id": id, "type_id": i}} for i, id in enumerate("AB"))
    last = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": ids[t["content"]], **t} for t in _added(in_order)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": saved.get("tokenize_chinese_chars", True),
            "strip_accents": saved.get("strip_accents"),
            "lowercase": saved.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, one, separator],
            "pair": [first, one, separator, other, last],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in ends},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def _limit(
    saved: Mapping[str, Any], config: Mapping[str, Any], max_seq_length: int | None
) -> int | None:
    """`max_seq_length`, or else the smaller of what the tokenizer and the model say."""
    limit = saved.get("model_max_length", NO_LIMIT) if max_seq_length is None else max_seq_length
    positions = config.get("max_position_embeddings")
    if max_seq_length is None and isinstance(positions, int) and positions != -1:
        limit = min(limit, positions)
    return None if limit >= NO_LIMIT else int(limit)


def _backend(tokenizer: Tokenizer, saved: Mapping[str, Any], limit: int | None) -> TokenizerBackend:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pad_id = vocabulary["[PAD]"]
    return TokenizerBackend(
        tokenize=rust_tokenize(tokenizer),
        detokenize=_detokenize(tokenizer, tidy=saved.get("clean_up_tokenization_spaces", False)),
        size=len(vocabulary),
        pad_id=pad_id,
        special_ids=frozenset(vocabulary[token] for token in _SPECIAL.values()),
        add_special_tokens=True,
        empty_ids=(pad_id,),
        side="start" if saved.get("truncation_side") == "left" else "end",
        limit=limit,
        rust=tokenizer,
        spans=partial(rust_spans, tokenizer),
        empty_of_meaning=frozenset(vocabulary[token] for token in ("[CLS]", "[PAD]", "[UNK]")),
        known_id=vocabulary.get,
        names=lambda ids: [str(tokenizer.id_to_token(token)) for token in ids],
    )


def _detokenize(tokenizer: Tokenizer, *, tidy: bool) -> Callable[[list[list[int]]], list[str]]:
    def detokenize(ids: list[list[int]]) -> list[str]:
        texts: list[str] = tokenizer.decode_batch(ids, skip_special_tokens=False)
        return [_tidied(text) for text in texts] if tidy else texts

    return detokenize


def _tidied(text: str) -> str:
    for spaced in _TIDIED:
        text = text.replace(spaced, spaced.strip())
    return text
