"""Rotary embeddings that depend on the longest text: a text's vector does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import reference, save_checkpoint, save_transformer
from families import FAMILIES, WIDTH
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import Gemma3TextConfig, Gemma3TextModel, LlamaConfig, LlamaModel

from millpond import Engine
from millpond.layers.rotary import RotaryState, rotates_by_length

TRAINED = 64  # tokens; beyond them positions are rotated otherwise
LONGEST = 256
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
BY_NAME = {family.name: family for family in FAMILIES}
BY_LENGTH: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": TRAINED, "rope_parameters": DYNAMIC},
    "phi3": {
        "max_position_embeddings": LONGEST,
        "original_max_position_embeddings": TRAINED,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [3.0] * 8,
            "original_max_position_embeddings": TRAINED,
        },
    },
}
STORY = "the stone grinds the grain of the mill while the water of the pond falls"
WORDS = STORY.split() * 9
TEXTS = ["a mill", *(" ".join(WORDS[:count]) for count in (5, 20, 45, 70))]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_text_has_its_vector_beside_longer_ones_and_after_them(tmp_path: Path, name: str) -> None:
    family = BY_NAME[name]
    config = {**family.config, **BY_LENGTH[name], "initializer_range": 0.1}
    bare = save_transformer(
        tmp_path / "bare", model=family.model, tokenizer=family.tokenizer, config=config
    )
    modules = [Transformer(str(bare), max_seq_length=LONGEST), Pooling(WIDTH, "lasttoken")]
    folder = save_checkpoint(tmp_path / "saved", modules)
    first = np.stack([encoded(folder, text) for text in TEXTS])
    with Engine(folder, device="cpu", dtype="float32", max_length=LONGEST) as engine:
        assert engine.info().execution == "equal_length"
        assert "rotary embedding depends on the longest text" in engine.info().reason
        assert engine.info().prefix_cache is None
        counts = engine.submit(TEXTS).result().token_counts
        assert TRAINED < counts[-2] < counts[-1]
        together, alone = engine.embed(TEXTS), [engine.embed(text) for text in reversed(TEXTS)]
        assert np.array_equal(together, alone[::-1])
        assert float(np.abs(together - first).max()) <= 1e-5


def encoded(folder: Path, text: str) -> Any:
    """The reference's vector of a text that is the first it sees."""
    official = reference(folder)
    official.max_seq_length = LONGEST
    return official.encode(text)


def llama(**rope: Any) -> LlamaModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=TRAINED,
            rope_parameters={"rope_theta": 10_000.0, "factor": 2.0, **rope},
        )
    )


def gemma(kind: str) -> Gemma3TextModel:
    """A kind for every type of layer."""
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    return Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            intermediate_size=8,
            max_position_embeddings=TRAINED,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "sliding_attention": plain,
                "full_attention": {**plain, "rope_type": kind, "factor": 2.0},
            },
        )
    )


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_most_kinds_do_not_depend_on_it(kind: str) -> None:
    scaled = {"original_max_position_embeddings": TRAINED}
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    assert not rotates_by_length(llama(rope_type=kind, **scaled, **bands))


@pytest.mark.parametrize("model", [llama(**DYNAMIC), gemma("dynamic")])
def test_what_a_long_text_changed_is_put_back(model: Any) -> None:
    assert rotates_by_length(model)
    start = RotaryState(model)
    rotary = model.rotary_emb
    layer_type = () if isinstance(model, LlamaModel) else ("full_attention",)

    def rotated(length: int) -> list[Any]:
        positions = np.arange(length)[None]
        rows = model.embed_tokens.weight[:1].expand(length, -1)[None]
        tensor = rows.new_tensor(positions)
        return [each[0, : TRAINED + 9].tolist() for each in rotary(rows, tensor, *layer_type)]

    before = rotated(TRAINED + 9)
    start.restore()
    assert rotated(3 * TRAINED) != before
    start.restore()
    assert rotated(TRAINED + 9) == before
