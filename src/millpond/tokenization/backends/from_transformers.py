"""A tokenizer by transformers' own code, and whether the Rust one in it gives the same ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoConfig, AutoTokenizer
from transformers.configuration_utils import PretrainedConfig

from ...checkpoint.files import TOKENIZER_FILES, has_tokenizer, require_whole
from ...checkpoint.modules import Module
from ...errors import InvalidCheckpoint, UnsupportedModel
from ...locks import fork_safe
from ..chat_template import ChatTemplate
from ..pair_frame import pair_backend
from ..query_fill import known_id, query_fill
from .backend import NO_LIMIT, TokenizerBackend, ids_of, rust_spans, rust_tokenize

__all__ = ["transformers_source"]

_FEW_TOKENS = 1000  # listing a whole vocabulary takes time, and an empty one is short

_PROBES = (
    "",
    "Hello, World! It's 3.14 — naïve café, 東京 🦊",
    "  two  spaces\tand a\nline ",
    "unbelievableness " * 40,
)


def transformers_source(
    module: Module, code: dict[str, Any], *, pairs: bool, longest: int | None = None
) -> TokenizerBackend:
    """`longest` is what the model has positions for."""
    tokenizer, config = _load_tokenizer(module, code)
    chat = ChatTemplate.load(
        tokenizer,
        module.options.get("chat"),
        model_type=config.model_type,
        path=module.path,
        pairs=pairs,
    )
    if module.options.get("do_lower_case"):
        _lower_case(tokenizer)
    _refuse_token_types(tokenizer, module)
    _register_prefixes(tokenizer, module.options.get("prefix_tokens") or ())
    rust, tokenize = _verified_tokenize(tokenizer, special_tokens=chat is None)
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    fallback = next((token for token in candidates if token is not None), 0)
    pad_id = tokenizer.pad_token_id
    return TokenizerBackend(
        tokenize=tokenize,
        detokenize=tokenizer.batch_decode,
        size=len(tokenizer),
        pad_id=fallback if pad_id is None else pad_id,
        special_ids=frozenset(tokenizer.all_special_ids),
        add_special_tokens=True,
        empty_ids=(fallback,),
        side="start" if tokenizer.truncation_side == "left" else "end",
        limit=_limit(tokenizer, config, module),
        rust=rust,
        chat=chat,
        spans=None if rust is None or chat is not None else partial(rust_spans, rust),
        pairs=pair_backend(tokenizer) if pairs and chat is None else None,
        empty_of_meaning=frozenset(
            token
            for name in ("cls", "eos", "pad", "unk")
            if (token := getattr(tokenizer, f"{name}_token_id")) is not None
        ),
        fill=query_fill(
            module.options.get("query_expansion"), tokenizer, longest=longest, path=module.path
        ),
        known_id=partial(known_id, tokenizer=tokenizer),
        names=tokenizer.convert_ids_to_tokens,
    )


def _load_tokenizer(module: Module, code: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers tokenizer, and the configuration of its model."""
    if not has_tokenizer(module.path):  # transformers would make an empty one
        raise InvalidCheckpoint(f"{module.path}: there is no tokenizer; add its tokenizer.json")
    options = dict(module.options.get("processor_kwargs") or {})
    options.update(code, local_files_only=True)
    max_seq_length = module.options.get("max_seq_length")
    if max_seq_length is not None:
        options.setdefault("model_max_length", max_seq_length)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(module.path), **options)
        if module.kind == "SparseStaticEmbedding":  # there is no model, whose class it says
            return tokenizer, PretrainedConfig()
        config = AutoConfig.from_pretrained(
            str(module.path),
            **(module.options.get("config_kwargs") or {}),
            **code,
            local_files_only=True,
        )
    except Exception as error:  # transformers raises anything from KeyError to OSError here
        require_whole(module.path / name for name in TOKENIZER_FILES)
        raise InvalidCheckpoint(
            f"{module.path}: its tokenizer cannot be loaded ({type(error).__name__}: {error}); "
            "the folder needs a whole tokenizer.json, or the files the tokenizer's class reads"
        ) from error
    if len(tokenizer) <= _FEW_TOKENS and not _knows_words(tokenizer):
        raise InvalidCheckpoint(
            f"{module.path}: its tokenizer knows no words, only special tokens; "
            "its vocabulary is missing, add its tokenizer.json"
        )
    return tokenizer, config


def _limit(tokenizer: Any, config: Any, module: Module) -> int | None:
    """The checkpoint's own limit: `max_seq_length`, or else the smaller of what the tokenizer
    and the model's configuration say."""
    options = module.options
    given = (options.get("processor_kwargs") or {}).get("model_max_length")
    is_given = given is not None or options.get("max_seq_length") is not None
    limit = tokenizer.model_max_length
    positions = getattr(config, "max_position_embeddings", None)
    if not is_given and isinstance(positions, int) and positions != -1:
        limit = min(limit, positions)
    return None if limit is None or limit >= NO_LIMIT else int(limit)


def _knows_words(tokenizer: Any) -> bool:
    special = set(tokenizer.all_special_ids)
    return any(index not in special for index in tokenizer.get_vocab().values())


def _register_prefixes(tokenizer: Any, prefixes: Sequence[str]) -> None:
    """Make one token of a prefix that the vocabulary has and that text would not give.

    ColBERT puts it in front as a token (`[unused0]`), and here it is text.
    """
    known = {*tokenizer.get_vocab(), *tokenizer.added_tokens_encoder} if prefixes else set()
    found = []
    for value in prefixes:
        candidates = (value, *value.split(None, 1)[:1])
        prefix = next((each for each in candidates if each.strip() and each in known), None)
        if prefix is not None and tokenizer.tokenize(prefix) != [prefix]:
            found.append(AddedToken(prefix, normalized=False, special=True))
    if found:
        tokenizer.add_tokens(found, special_tokens=True)


def _lower_case(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    backend = tokenizer.backend_tokenizer
    present: Any = backend.normalizer
    is_chain = type(present) is normalizers.Sequence
    parts = list(present) if is_chain else [present]
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        kept = [part for part in parts if part is not None]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *kept])


def _refuse_token_types(tokenizer: Any, module: Module) -> None:
    """A text's token types must all be 0, because ids are all that the model is given."""
    encoded = tokenizer("hello")
    if any(encoded.get("token_type_ids", ())):
        raise UnsupportedModel(
            f"{module.path}: {type(tokenizer).__name__} marks the tokens of a single text with "
            "token types other than 0, which Millpond does not pass on"
        )


def _verified_tokenize(tokenizer: Any, *, special_tokens: bool) -> tuple[Tokenizer | None, Any]:
    """The Rust tokenizer behind `tokenizer`, None where it does not give the same ids, and how
    texts are tokenised.

    A Python class may do things around its Rust tokenizer, so a few texts are compared. Padding
    and truncation saved in the checkpoint are cleared: no other code holds this tokenizer.
    """
    by_python = _python_tokenize(tokenizer)
    if not tokenizer.is_fast:
        return None, by_python
    probes = [*_PROBES, " ".join(str(token) for token in tokenizer.all_special_tokens)]
    expected = by_python(probes, special_tokens)
    rust: Tokenizer = tokenizer.backend_tokenizer
    tokenize = rust_tokenize(rust)
    found = [ids_of(row) for row in tokenize(probes, special_tokens)]
    return (rust, tokenize) if found == expected else (None, by_python)


def _python_tokenize(tokenizer: Any) -> Callable[[list[str], bool], list[list[int]]]:
    # A transformers tokenizer sets padding and truncation on itself in every call.
    lock = fork_safe(threading.Lock())

    def tokenize(texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        with lock:
            encoded = tokenizer(
                texts,
                add_special_tokens=add_special_tokens,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        return [list(ids) for ids in encoded["input_ids"]]

    return tokenize
