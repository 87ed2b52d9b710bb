"""A checkpoint's own head, on hidden states, and what it may do in a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification, Qwen3Config, Qwen3ForCausalLM

from millpond.model.heads.checkpoint_head import CheckpointHead

WIDTH = 32
SIZES = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
# What brings a value of Python's to a device, or one of a device to Python.
COPIES = {"aten.index.Tensor", "aten.lift_fresh.default", "aten._local_scalar_dense.default"}


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def language_model() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16)).eval()


def classifier() -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=1)).eval()


@pytest.mark.parametrize("answers", [(5, 9), (5,)])
def test_an_answer_scores_as_its_logits_say(answers: tuple[int, ...]) -> None:
    ids = torch.randint(10, 60, (3, 6), generator=torch.Generator().manual_seed(1))
    whole = language_model()
    with torch.inference_mode():
        logits = whole(input_ids=ids).logits[:, -1]
        hidden = whole.base_model(input_ids=ids).last_hidden_state
    head = CheckpointHead.detach(whole, hidden_size=WIDTH, answer_ids=answers)
    with torch.inference_mode():
        found = head(hidden[:, -1])
    expected = logits[:, answers[0]] - (logits[:, answers[1]] if len(answers) > 1 else 0)
    assert found.shape == (3, 1)
    torch.testing.assert_close(found[:, 0], expected)


@pytest.mark.parametrize(
    ("model", "answers"), [(language_model, (5, 9)), (language_model, (5,)), (classifier, None)]
)
def test_a_pass_brings_nothing_to_the_device(
    model: Callable[[], Any], answers: tuple[int, ...] | None
) -> None:
    """A CUDA graph cannot be captured of one that does."""
    head = CheckpointHead.detach(model(), hidden_size=WIDTH, answer_ids=answers)
    with torch.inference_mode(), Operators() as ran:
        head(torch.ones(4, WIDTH))
    assert ran.names
    assert not ran.names & COPIES
