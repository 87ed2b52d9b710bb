"""The proof at load that a model may go on from cached prefixes, and what it says of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn

from millpond import Engine
from millpond.model.pooling_model import PoolingModel
from millpond.model.verify.prefix import PrefixSupport, verify_prefixes

DECODERS = (
    *("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("phi3_sliding", "qwen2_sliding", "qwen3_moe", "ministral", "granite", "olmo2", "smollm3"),
    *("glm4", "cohere2", "gpt2", "olmo3", "gpt_neox"),
)
BIDIRECTIONAL = (
    *("bert", "roberta", "modernbert", "eurobert", "jina_embeddings_v3"),
    *("gemma3_text_bidirectional", "qwen2_bidirectional", "llama_bidirectional"),
)
INSTALLED = {family.name for family in FAMILIES}
IDS = range(10, 90)

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[PoolingModel]:
    """The one route of a checkpoint, its vectors made of the last token unless `options` say."""
    with Engine(
        folder, **{"device": "cpu", "dtype": "float32", "pooling": "lasttoken", **options}
    ) as engine:
        yield engine._instance.runners[0].models[0]


def attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "layer_idx")]


@pytest.mark.parametrize("name", [name for name in DECODERS if name in INSTALLED])
def test_prefixes_of_a_decoder_may_be_cached(checkpoint: Callable[[str], Path], name: str) -> None:
    with loaded(checkpoint(name)) as pipeline:
        support = pipeline.prefixes
    assert support.reason == "it agrees with the whole run"
    assert support.cache is not None
    assert support.cache.bytes_per_slot > 0


@pytest.mark.parametrize("name", [name for name in BIDIRECTIONAL if name in INSTALLED])
def test_those_of_a_model_that_sees_what_follows_may_not(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    with loaded(checkpoint(name)) as pipeline:
        assert pipeline.prefixes.cache is None
        assert pipeline.prefixes.reason == "NotImplementedError: its attention is not causal"
        assert pipeline.info().prefixes == pipeline.prefixes.reason


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("qwen2", {"prefix_cache": "off"}, "turned off"),
        ("qwen2", {"pooling": "mean"}, "a vector needs all tokens of its text"),
        ("qwen2", {"pooling": ("lasttoken", "mean")}, "a vector needs all tokens of its text"),
        ("gemma2_softcap", {}, "does not run packed"),
        ("mpnet", {}, "does not run packed"),
    ],
)
def test_where_it_is_not_even_tried(
    checkpoint: Callable[[str], Path], name: str, options: dict[str, Any], reason: str
) -> None:
    with loaded(checkpoint(name), **options) as pipeline:
        assert pipeline.prefixes.cache is None
        assert reason in pipeline.prefixes.reason


def proven(pipeline: PoolingModel) -> PrefixSupport:
    return verify_prefixes(pipeline.encoder, token_ids=IDS)  # type: ignore[arg-type]


def test_attention_that_does_not_know_its_layer_refuses_it(
    checkpoint: Callable[[str], Path],
) -> None:
    with loaded(checkpoint("qwen2")) as pipeline:
        for module in attentions(pipeline.encoder.model):  # type: ignore[union-attr]
            module.layer_idx = None
        support = proven(pipeline)
    assert support.cache is None
    assert "does not say which layer it is in" in support.reason


def test_layers_of_one_number_refuse_it(checkpoint: Callable[[str], Path]) -> None:
    """They would read each other's keys."""
    with loaded(checkpoint("qwen2")) as pipeline:
        for module in attentions(pipeline.encoder.model):  # type: ignore[union-attr]
            module.layer_idx = 0
        support = proven(pipeline)
    assert support.cache is None
    assert "with a cached prefix hidden states differ" in support.reason


def test_tokens_that_mix_outside_attention_refuse_it(checkpoint: Callable[[str], Path]) -> None:
    def mix(module: nn.Module, inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden.roll(1, dims=1)

    with loaded(checkpoint("qwen2")) as pipeline:
        layer = pipeline.encoder.model.layers[0].mlp  # type: ignore[union-attr]
        with layer.register_forward_hook(mix):
            support = proven(pipeline)
        assert proven(pipeline).cache is not None
    assert support.cache is None
    assert "with a cached prefix hidden states differ" in support.reason


def test_whatever_a_model_s_code_objects_with_is_the_reason(
    checkpoint: Callable[[str], Path],
) -> None:
    def object_to(*_: Any) -> None:
        raise KeyError("the cache of an older release\nand more")

    with loaded(checkpoint("qwen2")) as pipeline:
        pipeline.encoder.model.register_forward_pre_hook(object_to)  # type: ignore[union-attr]
        support = proven(pipeline)
    assert support.cache is None
    assert support.reason.startswith("KeyError: ")


def test_the_cache_has_a_place_for_every_layer(checkpoint: Callable[[str], Path]) -> None:
    with loaded(checkpoint("qwen3")) as pipeline:
        cache = pipeline.prefixes.cache
    assert cache is not None
    shapes = cache.shapes
    assert sorted(shapes) == [0, 1]
    assert {(shape.heads, shape.key_size, shape.value_size) for shape in shapes.values()} == {
        (2, 16, 16)
    }
