"""Tiny checkpoints with random weights, written by transformers and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from families import ENCODER, MAX_LENGTH, WIDTH, Family
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

__all__ = [
    "TEXTS",
    "TOKENIZERS",
    "reference",
    "save_checkpoint",
    "save_family",
    "save_transformer",
]

VOCABULARY = 400

_SENTENCES = (
    "the stone grinds the grain of the mill while the water of the pond falls",
    "requests gather in the pond and the engine draws full batches out of it",
    "A query never waits behind ingestion, and every request ends exactly once.",
    "naïve café — 3.14 € and a 2nd, CamelCase, snake_case, kebab-case word",
    "東京は日本の首都です。 北京是中国的首都。",
    "🦊 jumps over 🐶 — family: 👨‍👩‍👧‍👦 flag: 🇳🇱",
    "def embed(self, texts): return [self.vector(text) for text in texts]",
)
TEXTS = (
    "",
    "mill",
    "🦊🦊 family: 👨‍👩‍👧‍👦",
    "東京は日本の首都です。",
    "the stone grinds the grain",
    "the grain grinds the stone",
    "A query never waits behind ingestion",
    " ".join(_SENTENCES[:2] * 4),
    "mill",
    "  two  spaces,\ta tab\nand a line ",
    "x" * 300,
    "the stone grinds the grain",
    " ".join(reversed(_SENTENCES)),
    "",
)
"""No text, one word, emoji, CJK, word orders, longer than `MAX_LENGTH`, unknown, duplicates."""


# Tokenizers.


def _trained(tokenizer: Tokenizer, kind: type, special: Sequence[str], **options: Any) -> None:
    trainer = kind(
        vocab_size=VOCABULARY, special_tokens=list(special), show_progress=False, **options
    )
    tokenizer.train_from_iterator(_SENTENCES * 3, trainer)


def _framed(tokenizer: Tokenizer, single: str, pair: str | None = None) -> None:
    """`pair` names what stands around two texts; None for a tokenizer that puts nothing there."""
    names = {part for part in single.split() if part != "$A"}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(names)],
    )


@cache
def _word_piece() -> PreTrainedTokenizerFast:
    """BERT's: `[PAD]` is 0, and a text stands between `[CLS]` and `[SEP]`."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    # Not trained, because two trainings on the same sentences give two vocabularies.
    text = " ".join(_SENTENCES).lower()
    letters = sorted({*text} - {" "})
    pieces = [*letters, *(f"##{letter}" for letter in letters), "##ing", "##ts", "##in"]
    words = dict.fromkeys(word for word in text.split()[::2] if word.isalpha())
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*special, *pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _framed(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=False)),
        mask_token="[MASK]",
    )


def _byte_pairs(special: Sequence[str], single: str, pair: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(tokenizer, trainers.BpeTrainer, special, initial_alphabet=alphabet)
    _framed(tokenizer, single, pair)
    return tokenizer


@cache
def _roberta() -> PreTrainedTokenizerFast:
    """RoBERTa's: `<pad>` is 1, and a text stands between `<s>` and `</s>`."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(
            ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
            "<s> $A </s>",
            "<s> $A </s> </s> $B </s>",
        ),
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


@cache
def _decoder() -> PreTrainedTokenizerFast:
    """An embedding decoder's: the end of the text is a token, which also pads."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(("<|endoftext|>",), "$A <|endoftext|>"),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@cache
def _chat() -> PreTrainedTokenizerFast:
    """Qwen's: a message stands between two tokens. A chat template is saved beside it."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(special, "$A <|endoftext|>"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )


@cache
def _left_padding_decoder() -> PreTrainedTokenizerFast:
    """Qwen3-Embedding's: the same, padding on the left with a token of its own."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(("<pad>", "<bos>", "<eos>"), "<bos> $A <eos>"),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


@cache
def _unigram() -> PreTrainedTokenizerFast:
    """T5's: `<pad>` is 0, and `</s>` follows the text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ("<pad>", "</s>", "<unk>")
    _trained(tokenizer, trainers.UnigramTrainer, special, unk_token="<unk>")
    _framed(tokenizer, "$A </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "word_piece": _word_piece,
    "roberta": _roberta,
    "decoder": _decoder,
    "chat": _chat,
    "left_padding_decoder": _left_padding_decoder,
    "unigram": _unigram,
}


# Models.


@torch.no_grad()
def _random_model(name: str, config: Mapping[str, Any], seed: int) -> Any:
    """A model whose biases and norms are random too: left at 0 and 1 they would prove nothing."""
    model_class = getattr(transformers, name)
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**config))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def save_transformer(
    folder: Path,
    *,
    model: str = "BertModel",
    tokenizer: str = "word_piece",
    config: Mapping[str, Any] = ENCODER,
    seed: int = 20,
) -> Path:
    """A model and its tokenizer as transformers saves them, without modules.json."""
    words = TOKENIZERS[tokenizer]()
    tokens = {
        name: getattr(words, name)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        if getattr(words, name) is not None
    }
    with torch.random.fork_rng():
        whole = _random_model(model, {"vocab_size": len(words), **tokens, **config}, seed)
    whole.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_checkpoint(folder: Path, modules: Sequence[torch.nn.Module], **options: Any) -> Path:
    """`modules` as sentence-transformers saves them; `options` are its own."""
    model = SentenceTransformer(modules=list(modules), device="cpu", **options)
    model.save(str(folder), create_model_card=False)
    return folder


def save_family(family: Family, folder: Path) -> Path:
    """The checkpoint of a family, a Transformer and a Pooling; its transformer is in `bare`."""
    bare = save_transformer(
        folder / "bare", model=family.model, tokenizer=family.tokenizer, config=family.config
    )
    encoder = Transformer(str(bare), max_seq_length=MAX_LENGTH)
    return save_checkpoint(folder / "saved", [encoder, Pooling(WIDTH, family.pooling)])


def reference(folder: Path, **options: Any) -> SentenceTransformer:
    """The checkpoint as sentence-transformers runs it, in float32 on the CPU."""
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)
