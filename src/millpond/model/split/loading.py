"""A rank's part of a model: transformers loads it, and what comes out is an ordinary model.

transformers reads each rank's part of a weight from the file and no more, and hands out modules
whose forward is wrapped and whose weights are `DTensor`s. Here they become plain tensors: narrower
linear layers, and `RowSplitLinear`. So everything that looks at layers, or replaces them, sees a
model with fewer heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.configuration_utils import PretrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES, PackedColwiseParallel

from ...layers.split import RowSplitLinear
from .plan import JOINED, ROWS, WHOLE, split_plan
from .ranks import RankGroup

__all__ = ["as_plain_model", "loading_options"]


def loading_options(config: PretrainedConfig, ranks: RankGroup) -> dict[str, Any]:
    """What `from_pretrained` is to be called with; the plan is put into the configuration.

    Raises `UnsupportedModel` for a model that cannot be split.
    """
    styles: Any = ALL_PARALLEL_STYLES
    styles.register(JOINED[3], PackedColwiseParallel(split_factor=3))
    vars(config)["base_model_tp_plan"] = dict(split_plan(config, ranks.size))
    return {"distributed_config": DistributedConfig(tp_size=ranks.size)}


@torch.no_grad()
def as_plain_model(model: nn.Module, config: PretrainedConfig, ranks: RankGroup) -> None:
    """Turn what transformers has split into plain tensors and layers, in place.

    What is split by another rule than the plan's, as the table of tokens or a head, is made whole.
    """
    rules = list(_rules(split_plan(config, ranks.size)))
    whole: dict[int, nn.Parameter] = {}  # by the split one, which several modules may share
    for name, module in list(model.named_modules()):
        vars(module).pop("forward", None)
        style = next((style for pattern, style in rules if pattern.search(name)), None)
        for key, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(weight, DTensor):
                continue
            if style is None and id(weight) not in whole:
                whole[id(weight)] = _parameter(weight.full_tensor())
            plain = whole[id(weight)] if style is None else _parameter(weight.to_local())
            module.register_parameter(key, plain)
        if isinstance(module, nn.Linear):
            own: Any = module
            module.out_features, module.in_features = module.weight.shape
            if style == ROWS:
                split = RowSplitLinear(own.weight, own.bias, ranks)
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, split)


def _rules(plan: Mapping[str, str]) -> Iterator[tuple[re.Pattern[str], str]]:
    for name, style in plan.items():
        if style != WHOLE:
            number = re.escape(name).replace(r"\*", r"\d+")
            yield re.compile(rf"(?:^|\.){number}$"), style


def _parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)
