"""Where token ids come from: the tokenizer files of a checkpoint's module.

A static embedding has a bare tokenizer.json. BERT's is read without transformers where its files
allow it (`bert`); what reads any other is transformers' own code (`from_transformers`), which is
imported for it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tokenizers import Tokenizer

from ...checkpoint.files import require_whole
from ...checkpoint.modules import Module
from ...errors import InvalidCheckpoint
from .backend import TokenizerBackend, rust_tokenize
from .bert import bert_source

__all__ = ["load_source"]


def load_source(
    module: Module,
    *,
    trust_remote_code: bool,
    cache_dir: str | None = None,
    pairs: bool = False,
    longest: int | None = None,
) -> TokenizerBackend:
    """The tokenizer in the folder of a `Transformer` or `StaticEmbedding` module.

    `longest` is what the model has positions for.
    """
    if module.kind == "StaticEmbedding":
        return _static_source(module)
    found = None if pairs or module.kind != "Transformer" else bert_source(module)
    if found is not None:
        return found
    from .from_transformers import transformers_source  # only now that it is needed

    code = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    source = transformers_source(module, code, pairs=pairs, longest=longest)
    if module.kind == "SparseStaticEmbedding":  # its weights are of the tokens of text alone
        return replace(source, add_special_tokens=False, empty_ids=())
    return source


def _static_source(module: Module) -> TokenizerBackend:
    path = module.path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        require_whole([path])
        raise InvalidCheckpoint(f"{path}: no tokenizer can be read from it: {error}") from error
    truncation = tokenizer.truncation or {}
    return TokenizerBackend(
        tokenize=rust_tokenize(tokenizer),
        detokenize=partial(tokenizer.decode_batch, skip_special_tokens=False),
        size=tokenizer.get_vocab_size(with_added_tokens=True),
        pad_id=0,
        special_ids=frozenset(
            index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        ),
        add_special_tokens=False,
        empty_ids=(),
        side="start" if truncation.get("direction") == "left" else "end",
        limit=truncation.get("max_length"),
        rust=tokenizer,
    )
