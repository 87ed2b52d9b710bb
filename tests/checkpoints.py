"""Tiny checkpoints with random weights, written by transformers and sentence-transformers.

`FAMILIES` lists the architectures. Their weights are drawn wide enough that attention decides
what comes out: with the usual 0.02 a model that mixes up its texts would hardly be noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
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
    "FAMILIES",
    "MAX_LENGTH",
    "TEXTS",
    "WIDTH",
    "Family",
    "reference",
    "save_checkpoint",
    "save_family",
    "save_transformer",
]

WIDTH = 32
MAX_LENGTH = 40
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
    " ".join(_SENTENCES),
    "",
)
"""No text, one word, emoji, CJK, word orders, longer than `MAX_LENGTH`, unknown, duplicates."""


# Tokenizers.


def _trained(tokenizer: Tokenizer, kind: type, special: Sequence[str], **options: Any) -> None:
    trainer = kind(
        vocab_size=VOCABULARY, special_tokens=list(special), show_progress=False, **options
    )
    tokenizer.train_from_iterator(_SENTENCES * 3, trainer)


def _framed(tokenizer: Tokenizer, single: str) -> None:
    names = [part for part in single.split() if part != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


@cache
def _word_piece() -> PreTrainedTokenizerFast:
    """BERT's: `[PAD]` is 0, and a text stands between `[CLS]` and `[SEP]`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    _trained(tokenizer, trainers.WordPieceTrainer, special)
    _framed(tokenizer, "[CLS] $A [SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=False)),
        mask_token="[MASK]",
    )


def _byte_pairs(special: Sequence[str], single: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(tokenizer, trainers.BpeTrainer, special, initial_alphabet=alphabet)
    _framed(tokenizer, single)
    return tokenizer


@cache
def _roberta() -> PreTrainedTokenizerFast:
    """RoBERTa's: `<pad>` is 1, and a text stands between `<s>` and `</s>`."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s> $A </s>"),
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
    "left_padding_decoder": _left_padding_decoder,
    "unigram": _unigram,
}


# Architectures.


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture, tiny."""

    name: str
    model: str
    """The class of transformers."""
    tokenizer: str = "word_piece"
    pooling: str = "mean"
    execution: str = "packed"
    reference_batch: int = 32
    """1 where the padding of a batch changes the reference's own vectors."""
    config: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


_ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_GROUPED = {**_ENCODER, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_LOCAL_AND_GLOBAL = {
    **_HEADED,
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _family(name: str, model: str, config: Mapping[str, Any], **options: Any) -> Family:
    """An encoder, or a decoder where `config` groups its keys."""
    if "num_key_value_heads" in config:
        options = {"tokenizer": "decoder", "pooling": "lasttoken", **options}
    return Family(name=name, model=f"{model}Model", config=config, **options)


FAMILIES: tuple[Family, ...] = (
    _family("bert", "Bert", _ENCODER),
    _family("roberta", "Roberta", _ENCODER, tokenizer="roberta"),
    _family("xlm_roberta", "XLMRoberta", _ENCODER, tokenizer="roberta", pooling="cls"),
    _family("xlm_roberta_xl", "XLMRobertaXL", _ENCODER, tokenizer="roberta"),
    _family("camembert", "Camembert", _ENCODER, tokenizer="roberta"),
    _family("electra", "Electra", {**_ENCODER, "embedding_size": 16}),
    _family("albert", "Albert", {**_ENCODER, "embedding_size": 16, "num_hidden_groups": 1}),
    _family("ernie", "Ernie", _ENCODER, pooling="cls"),
    _family(
        "distilbert",
        "DistilBert",
        {
            "dim": WIDTH,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        },
    ),
    _family("data2vec_text", "Data2VecText", _ENCODER, tokenizer="roberta"),
    _family("bert_generation", "BertGenerationEncoder", _ENCODER),
    _family("roberta_prelayernorm", "RobertaPreLayerNorm", _ENCODER, tokenizer="roberta"),
    _family("nomic_bert", "NomicBert", _ENCODER),
    _family("gte", "Gte", _ENCODER, pooling="cls", tokenizer="roberta"),
    _family("jina_embeddings_v3", "JinaEmbeddingsV3", _ENCODER, tokenizer="roberta"),
    _family("layoutlm", "LayoutLM", _ENCODER),
    _family("eurobert", "EuroBert", _GROUPED, pooling="mean", tokenizer="left_padding_decoder"),
    _family(
        "modernbert",
        "ModernBert",
        {
            **_ENCODER,
            "num_hidden_layers": 3,
            "local_attention": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "initializer_cutoff_factor": 3.0,
        },
        pooling="cls",
    ),
    _family("qwen2", "Qwen2", _GROUPED),
    _family("qwen3", "Qwen3", _HEADED, tokenizer="left_padding_decoder"),
    _family("llama", "Llama", _GROUPED, pooling="mean"),
    _family("mistral", "Mistral", {**_HEADED, "sliding_window": 6}),
    _family("gemma", "Gemma", _HEADED),
    _family("gemma2", "Gemma2", _LOCAL_AND_GLOBAL, tokenizer="left_padding_decoder"),
    _family("gemma3_text", "Gemma3Text", _LOCAL_AND_GLOBAL, tokenizer="left_padding_decoder"),
    _family(
        "gemma3_text_bidirectional",
        "Gemma3Text",
        {**_LOCAL_AND_GLOBAL, "use_bidirectional_attention": True},
        tokenizer="left_padding_decoder",
        pooling="mean",
    ),
    _family("phi3", "Phi3", _GROUPED),
    _family("granite", "Granite", {**_GROUPED, "attention_multiplier": 0.2}),
    _family("olmo2", "Olmo2", _GROUPED),
    _family("smollm3", "SmolLM3", _GROUPED),
    _family("glm4", "Glm4", _HEADED),
    _family("cohere2", "Cohere2", {**_LOCAL_AND_GLOBAL, "logit_scale": 1.0}),
    _family(
        "gpt2",
        "GPT2",
        {
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.3,
        },
        tokenizer="decoder",
        pooling="weightedmean",
    ),
    _family("mpnet", "MPNet", _ENCODER, tokenizer="roberta", execution="padded"),
    _family(
        "deberta_v2",
        "DebertaV2",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        execution="padded",
    ),
    _family(
        "t5",
        "T5Encoder",
        {
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
        },
        tokenizer="unigram",
        execution="padded",
    ),
    _family("roformer", "RoFormer", _ENCODER, execution="padded"),
    _family("megatron_bert", "MegatronBert", _ENCODER, execution="padded"),
    _family(
        "mobilebert",
        "MobileBert",
        {**_ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16},
        execution="padded",
    ),
    _family(
        "convbert",
        "ConvBert",
        {**_ENCODER, "embedding_size": 16, "conv_kernel_size": 3},
        execution="equal_length",
        reference_batch=1,
    ),
)


def _config_class(model: type) -> type:
    config_class: type = model.config_class  # type: ignore[attr-defined]
    return config_class


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
    config: Mapping[str, Any] = _ENCODER,
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
