"""BERT from its files: bit for bit what transformers computes, or left to transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ENCODER
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

from millpond.checkpoint.modules import Module
from millpond.model.loading.bert import Bert, load_bert

SETTINGS = {**ENCODER, "vocab_size": 60, "type_vocab_size": 3}
LENGTHS = (1, 5, 17, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bert")
    BertModel(BertConfig(**SETTINGS)).save_pretrained(found)
    return found


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Bert | None:
    module = Module(kind="Transformer", path=folder, options=options, class_name="Transformer")
    return load_bert(module, dtype)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Bert:
    found = load(folder, dtype)
    assert found is not None
    return found


def ids_of(*shape: int) -> Tensor:
    return torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_it_computes_what_transformers_does(folder: Path, dtype: torch.dtype) -> None:
    ours = loaded(folder, dtype)
    theirs: Any = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    for length in LENGTHS:
        ids = ids_of(3, length)
        positions = torch.arange(length).flip(0).unsqueeze(0)
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = length == 1
        for inputs in (
            {},
            {"attention_mask": torch.ones_like(ids)},
            {"attention_mask": mask},
            {"position_ids": positions, "token_type_ids": ids % 3},
        ):
            found, wanted = (
                model(ids, **inputs, output_hidden_states=True) for model in (ours, theirs)
            )
            assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
            assert all(map(torch.equal, found.hidden_states, wanted.hidden_states))
            assert len(found.hidden_states) == len(wanted.hidden_states)


def test_a_checkpoint_with_a_head_has_the_same_encoder(tmp_path: Path) -> None:
    whole = BertForMaskedLM(BertConfig(**SETTINGS))
    whole.save_pretrained(tmp_path)
    expected = whole.bert.state_dict()
    found = loaded(tmp_path).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_it_is_in_the_dtype_asked_for_and_not_in_training(folder: Path) -> None:
    model = loaded(folder, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {model.dtype, torch.bfloat16}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_new"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"model_type": "roberta"},
        {"auto_map": {"AutoModel": "own.Model"}},
        {"quantization_config": {}},
        {"of_the_future": 1},
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"num_hidden_layers": True},
        {"num_attention_heads": 3},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"vocab_size": 61},
        {"layer_norm_eps": 0},
    ],
    ids=str,
)
def test_any_other_setting_is_left_to_transformers(copy: Path, changes: dict[str, Any]) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert load(copy) is None


def _without_one(weights: dict[str, Tensor]) -> None:
    del weights["encoder.layer.1.output.dense.bias"]


def _one_more(weights: dict[str, Tensor]) -> None:
    weights["encoder.layer.0.adapter.weight"] = torch.zeros(2)


def _old_names(weights: dict[str, Tensor]) -> None:
    weights["embeddings.LayerNorm.gamma"] = weights.pop("embeddings.LayerNorm.weight")


def _whole_numbers(weights: dict[str, Tensor]) -> None:
    name = "encoder.layer.0.output.dense.weight"
    weights[name] = weights[name].to(torch.int8)


def _twice(weights: dict[str, Tensor]) -> None:
    name = "embeddings.LayerNorm.weight"
    weights[f"bert.{name}"] = weights[name] + 1


@pytest.mark.parametrize("change", [_without_one, _one_more, _old_names, _whole_numbers, _twice])
def test_any_other_weights_are_left_to_transformers(
    copy: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file({name: value.clone() for name, value in weights.items()}, path)
    assert load(copy) is None


def test_a_damaged_file_is_left_to_transformers(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert load(copy) is None


@pytest.mark.parametrize(
    "options",
    [
        {"task": "sequence-classification"},
        {"model_kwargs": {"attn_implementation": "eager"}},
        {"config_kwargs": {"num_hidden_layers": 1}},
    ],
    ids=str,
)
def test_options_of_the_checkpoint_are_left_to_transformers(
    folder: Path, options: dict[str, Any]
) -> None:
    assert load(folder, **options) is None
    assert load(folder, torch.float16) is None
