"""The architectures the tests run, tiny, and how each is expected to run.

Their weights are drawn wide enough that attention decides what comes out: with the usual 0.02 a
model that mixes up its texts would hardly be noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

__all__ = ["ENCODER", "FAMILIES", "MAX_LENGTH", "WIDTH", "Family"]

WIDTH = 64
MAX_LENGTH = 40


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


ENCODER: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_GROUPED = {**ENCODER, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 16}
_LOCAL_AND_GLOBAL = {
    **_HEADED,
    "query_pre_attn_scalar": 16,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _family(name: str, model: str, config: Mapping[str, Any], **options: Any) -> Family:
    """An encoder, or a decoder where `config` groups its keys."""
    if "num_key_value_heads" in config:
        options = {"tokenizer": "decoder", "pooling": "lasttoken", **options}
    model = model if hasattr(transformers, model) else f"{model}Model"
    return Family(name=name, model=model, config=config, **options)


_ALL: tuple[Family, ...] = (
    _family("bert", "Bert", ENCODER),
    _family("roberta", "Roberta", ENCODER, tokenizer="roberta"),
    _family("xlm_roberta", "XLMRoberta", ENCODER, tokenizer="roberta", pooling="cls"),
    _family("xlm_roberta_xl", "XLMRobertaXL", ENCODER, tokenizer="roberta"),
    _family("camembert", "Camembert", ENCODER, tokenizer="roberta"),
    _family("electra", "Electra", {**ENCODER, "embedding_size": 16}),
    _family("albert", "Albert", {**ENCODER, "embedding_size": 16, "num_hidden_groups": 1}),
    _family("ernie", "Ernie", ENCODER, pooling="cls"),
    _family(
        "distilbert",
        "DistilBert",
        {
            "dim": WIDTH,
            "hidden_dim": 96,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        },
    ),
    _family("data2vec_text", "Data2VecText", ENCODER, tokenizer="roberta"),
    _family("bert_generation", "BertGenerationEncoder", ENCODER),
    _family("roberta_prelayernorm", "RobertaPreLayerNorm", ENCODER, tokenizer="roberta"),
    _family("nomic_bert", "NomicBert", ENCODER),
    _family("gte", "Gte", ENCODER, pooling="cls", tokenizer="roberta"),
    _family("jina_embeddings_v3", "JinaEmbeddingsV3", ENCODER, tokenizer="roberta"),
    _family("layoutlm", "LayoutLM", ENCODER, execution="padded"),
    _family("eurobert", "EuroBert", _GROUPED, pooling="mean", tokenizer="left_padding_decoder"),
    _family(
        "modernbert",
        "ModernBert",
        {
            **ENCODER,
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
    _family(
        "gemma2",
        "Gemma2",
        {**_LOCAL_AND_GLOBAL, "attn_logit_softcapping": None},
        tokenizer="left_padding_decoder",
    ),
    _family(
        "gemma2_softcap",
        "Gemma2",
        {**_LOCAL_AND_GLOBAL, "attn_logit_softcapping": 2.0},
        tokenizer="left_padding_decoder",
        execution="padded",
    ),
    _family("gemma3_text", "Gemma3Text", _LOCAL_AND_GLOBAL, tokenizer="left_padding_decoder"),
    _family(
        "gemma3_text_bidirectional",
        "Gemma3Text",
        {**_LOCAL_AND_GLOBAL, "use_bidirectional_attention": True},
        tokenizer="left_padding_decoder",
        pooling="mean",
    ),
    _family("phi3", "Phi3", _GROUPED),
    _family("phi3_sliding", "Phi3", {**_GROUPED, "sliding_window": 6}),
    _family(
        "qwen2_sliding",
        "Qwen2",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    _family("qwen2_bidirectional", "Qwen2", {**_GROUPED, "is_causal": False}, pooling="mean"),
    _family(
        "llama_bidirectional",
        "Llama",
        {**_GROUPED, "is_causal": False},
        tokenizer="left_padding_decoder",
        pooling="mean",
    ),
    _family(
        "qwen3_moe",
        "Qwen3Moe",
        {**_HEADED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    _family("ministral", "Ministral", _LOCAL_AND_GLOBAL),
    _family("gemma4_text", "Gemma4Text", _LOCAL_AND_GLOBAL, tokenizer="left_padding_decoder"),
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
    _family("olmo3", "Olmo3", _LOCAL_AND_GLOBAL),
    _family(
        "xmod",
        "Xmod",
        {**ENCODER, "languages": ["en_XX"], "default_language": "en_XX"},
        tokenizer="roberta",
    ),
    _family("esm", "Esm", {**ENCODER, "position_embedding_type": "rotary"}, tokenizer="roberta"),
    _family("gpt_neox", "GPTNeoX", ENCODER, tokenizer="decoder", pooling="mean"),
    _family(
        "opt",
        "OPT",
        {**ENCODER, "ffn_dim": 96, "word_embed_proj_dim": WIDTH},
        tokenizer="decoder",
        pooling="lasttoken",
    ),
    _family("mpnet", "MPNet", ENCODER, tokenizer="roberta", execution="padded"),
    _family(
        "deberta_v2",
        "DebertaV2",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        execution="padded",
    ),
    _family(
        "t5",
        "T5Encoder",
        {
            "d_model": WIDTH,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
            # At 3 its scores are so large that float32's rounding alone reaches 1e-5.
            "initializer_factor": 2.0,
        },
        tokenizer="unigram",
        execution="padded",
    ),
    _family("roformer", "RoFormer", ENCODER, execution="padded"),
    _family("megatron_bert", "MegatronBert", ENCODER, execution="padded"),
    _family(
        "mobilebert",
        "MobileBert",
        {
            **ENCODER,
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "normalization_type": "layer_norm",
        },
        execution="padded",
    ),
    _family("rembert", "RemBert", {**ENCODER, "input_embedding_size": 16}, execution="padded"),
    _family(
        "xlnet",
        "XLNet",
        {
            "d_model": WIDTH,
            "d_inner": 96,
            "n_layer": 2,
            "n_head": 4,
            "initializer_range": 0.3,
        },
        execution="padded",
    ),
    _family(
        "longformer",
        "Longformer",
        {**ENCODER, "attention_window": [8, 8]},
        tokenizer="roberta",
        execution="padded",
    ),
    _family(
        "bloom",
        "Bloom",
        {"hidden_size": WIDTH, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
        tokenizer="decoder",
        pooling="weightedmean",
        execution="padded",
    ),
    _family("nemotron", "Nemotron", _GROUPED, execution="padded"),
    _family(
        "lfm2",
        "Lfm2",
        {**_GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        execution="padded",
    ),
    _family(
        "embedding_gemma2",  # its tokens are wider than its layers
        "EmbeddingGemma2Text",
        {
            **_LOCAL_AND_GLOBAL,
            "hidden_size": WIDTH // 2,
            "embedding_dim": WIDTH,
            "hidden_size_per_layer_input": 16,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
        },
        tokenizer="left_padding_decoder",
        pooling="mean",
    ),
    _family(
        "reformer",  # its tokens are twice as wide as its layers
        "Reformer",
        {
            **ENCODER,
            "hidden_size": WIDTH // 2,
            "feed_forward_size": 96,
            "attention_head_size": 16,
            "attn_layers": ["local", "local"],
            "local_attn_chunk_length": 8,
            "axial_pos_embds": False,
        },
        execution="equal_length",
        reference_batch=1,
    ),
    _family(
        "mpt",
        "Mpt",
        {
            "d_model": WIDTH,
            "n_heads": 4,
            "n_layers": 2,
            "expansion_ratio": 2,
            "max_seq_len": 64,
            "initializer_range": 0.3,
        },
        tokenizer="decoder",
        execution="padded",
    ),
    _family("clip_text", "CLIPText", {**ENCODER, "initializer_factor": 15.0}, execution="padded"),
    _family("fnet", "FNet", ENCODER, execution="equal_length", reference_batch=1),
    _family(
        "convbert",
        "ConvBert",
        {**ENCODER, "embedding_size": 16, "conv_kernel_size": 3},
        execution="equal_length",
        reference_batch=1,
    ),
)

FAMILIES = tuple(family for family in _ALL if hasattr(transformers, family.model))
"""Those of the installed transformers; the oldest supported one has all but the youngest."""
