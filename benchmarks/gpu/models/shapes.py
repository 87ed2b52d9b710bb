"""Checkpoints with random weights at the shapes of real models, made on the spot.

Nothing is downloaded: the tokenizer's words are those of the standard library's docstrings.
Random weights give no meaning, and the same arithmetic and the same agreement between engines.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from docstrings import gather_passages

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
P95 = 1.645  # standard deviations


@dataclass(frozen=True)
class Shape:
    """What a checkpoint is made of."""

    model: str
    config: Mapping[str, Any]
    max_length: int
    pooling: str
    dtype: torch.dtype = torch.float16

    @property
    def is_decoder(self) -> bool:
        return self.model.startswith("Qwen")


def _bert(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "vocab_size": 30522,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
    }


_QWEN = {
    "vocab_size": 151_669,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000,
}
_XLM_R = {**_bert(1024, 24, 16), "vocab_size": 250_002, "max_position_embeddings": 514}
SHAPES: Mapping[str, Shape] = {
    "MiniLM-L6": Shape("BertModel", _bert(384, 6, 12), 256, "mean"),
    "bge-base": Shape("BertModel", _bert(768, 12, 12), 512, "cls"),
    "bge-large": Shape("BertModel", _bert(1024, 24, 16), 512, "cls"),
    "XLM-R-large": Shape("XLMRobertaModel", {**_XLM_R, "pad_token_id": 0}, 512, "cls"),
    "Qwen3-0.6B": Shape("Qwen3Model", _QWEN, 8192, "lasttoken", torch.bfloat16),
}
TINY: Mapping[str, Shape] = {
    "tiny BERT": Shape("BertModel", _bert(128, 2, 4), 256, "mean"),
    "tiny XLM-R": Shape("XLMRobertaModel", {**_bert(128, 2, 4), "pad_token_id": 0}, 256, "cls"),
    "tiny Qwen3": Shape(
        "Qwen3Model",
        {**_QWEN, "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
        512,
        "lasttoken",
        torch.bfloat16,
    ),
}


def save(shape: Shape, folder: Path, words: Sequence[str]) -> Path:
    """A SentenceTransformer of this shape, its weights random, in `folder`."""
    bare = save_bare(shape, folder / "bare", tokenizer_of(words, decoder=shape.is_decoder))
    encoder = Transformer(
        str(bare), max_seq_length=shape.max_length, model_kwargs={"dtype": shape.dtype}
    )
    pooling = Pooling(encoder.get_embedding_dimension(), shape.pooling)
    SentenceTransformer(modules=[encoder, pooling, Normalize()], device="cpu").save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def save_bare(
    shape: Shape,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    prepare: Callable[[Any], object] | None = None,
) -> Path:
    """The model of transformers, on which `prepare` may put its hand before, and a tokenizer."""
    torch.manual_seed(20)
    model_class = getattr(transformers, shape.model)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = model_class(model_class.config_class(**shape.config)).eval()
    if prepare is not None:
        prepare(model)
    model.to(shape.dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder


def tokenizer_of(
    words: Sequence[str], *, decoder: bool, special: Sequence[str] = (), **options: Any
) -> PreTrainedTokenizerFast:
    """WordPiece over whole words and letters: BERT's work a text without BERT's files.

    `special` are tokens beside those of `SPECIAL`; `options` are those of the class.
    """
    letters = sorted({letter for word in words for letter in word.lower() if letter.isascii()})
    common = [word for word, _ in Counter(word.lower() for word in words).most_common(20_000)]
    pieces = [*SPECIAL, *special, *letters, *(f"##{letter}" for letter in letters), *common]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]" if decoder else "[CLS] $A [SEP]",
        pair=None if decoder else "[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=list(special),
        padding_side="left" if decoder else "right",
        **options,
    )


# Texts.


def english_words() -> list[str]:
    """The words of the standard library's docstrings, in their order."""
    return [word for passage in gather_passages() for word in passage.text.split()]


@dataclass(frozen=True)
class Texts:
    """Texts of drawn lengths, cut from running English; `words_per_token` of the tokenizer."""

    words: Sequence[str]
    words_per_token: float

    def queries(self, count: int, seed: int = 1) -> list[str]:
        """Log-normal: a median of 9 tokens, 25 at the 95th percentile."""
        return self._log_normal(count, 9, 25, seed)

    def passages(self, count: int, seed: int = 2) -> list[str]:
        """Log-normal: a median of 70 tokens, 160 at the 95th percentile."""
        return self._log_normal(count, 70, 160, seed)

    def of_length(self, tokens: int, seed: int = 4) -> str:
        """One text of about so many tokens."""
        return self._text(tokens, random.Random(seed))

    def chunks(self, count: int, *, longest: int, seed: int = 3) -> list[str]:
        """256 to 512 tokens, a tenth of them short tails, and 2 % of 2k to 8k where they fit."""
        rng = random.Random(seed)
        return [self._text(self._chunk_length(rng, longest), rng) for _ in range(count)]

    def _chunk_length(self, rng: random.Random, longest: int) -> int:
        kind = rng.random()
        if kind < 0.02 and longest >= 8192:
            return rng.randint(2048, 8192)
        return rng.randint(16, 255) if kind < 0.12 else rng.randint(256, 512)

    def _log_normal(self, count: int, median: int, p95: int, seed: int) -> list[str]:
        rng, spread = random.Random(seed), log(p95 / median) / P95
        lengths = [round(median * exp(rng.gauss(0, spread))) for _ in range(count)]
        return [self._text(length, rng) for length in lengths]

    def _text(self, tokens: int, rng: random.Random) -> str:
        length = max(1, round((tokens - 2) * self.words_per_token))
        start = rng.randrange(len(self.words) - length)
        return " ".join(self.words[start : start + length])
