"""Which models can be split among ranks, and by which rules: `split_plan`.

A plan says of each linear layer whether it is split by its outputs or by its inputs. transformers
ships one with the configuration of most decoders; those of some encoders are here. What stands in
config.json decides, so that nothing has to be loaded to refuse a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint.remote_code import classes_of
from ...checkpoint.spec import ModelSpec
from ...config import EngineConfig
from ...errors import UnsupportedModel, summary

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

__all__ = ["COLUMNS", "JOINED", "ROWS", "refuse_unsplittable", "split_plan"]

COLUMNS, ROWS = "colwise", "rowwise"
"""By outputs, and by inputs, as transformers calls them."""
JOINED = {2: "packed_colwise", 3: "millpond_packed_3"}
"""By outputs, where a layer joins that number of parts of one size."""
WHOLE = "replicated_with_grad_allreduce"  # every rank has it; what the name says is for training
STYLES = frozenset({COLUMNS, ROWS, WHOLE, JOINED[2], JOINED[3]})

_BERT: Mapping[str, str] = {
    "encoder.layer.*.attention.self.query": COLUMNS,
    "encoder.layer.*.attention.self.key": COLUMNS,
    "encoder.layer.*.attention.self.value": COLUMNS,
    "encoder.layer.*.attention.output.dense": ROWS,
    "encoder.layer.*.intermediate.dense": COLUMNS,
    "encoder.layer.*.output.dense": ROWS,
}
_MODERNBERT: Mapping[str, str] = {
    "layers.*.attn.Wqkv": JOINED[3],
    "layers.*.attn.Wo": ROWS,
    "layers.*.mlp.Wi": JOINED[2],
    "layers.*.mlp.Wo": ROWS,
}
PLANS: Mapping[str, Mapping[str, str]] = {
    "bert": _BERT,
    "camembert": _BERT,
    "modernbert": _MODERNBERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""Plans for what transformers has none for, by the type of model."""

REPLICAS = (
    "leave tensor_parallel_size out; for throughput replicas serve it better, one on each device"
)


def split_plan(config: PretrainedConfig, ranks: int) -> Mapping[str, str]:
    """How a model is split, by names of its base model's layers with `*` for a number.

    Raises `UnsupportedModel` where it cannot be split, or not among that number.
    """
    plan = PLANS.get(config.model_type) or config.base_model_tp_plan or {}
    kind = config.model_type
    if not plan:
        raise UnsupportedModel(f"a {kind} cannot be split, there is no plan for it; {REPLICAS}")
    unknown = sorted(set(plan.values()) - STYLES)
    if unknown:
        raise UnsupportedModel(
            f"a {kind} cannot be split: its plan has layers of a kind that Millpond does not run "
            f"({', '.join(unknown)}); {REPLICAS}"
        )
    if kind == "modernbert" and (config.attention_bias or config.mlp_bias):
        raise UnsupportedModel(f"a {kind} with biases cannot be split; {REPLICAS}")
    inner = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        number = getattr(inner, name, None)
        if isinstance(number, int) and number % ranks:
            raise UnsupportedModel(
                f"a {kind} with {name}={number} cannot be split among {ranks}: choose a "
                f"tensor_parallel_size that divides it, or {REPLICAS}"
            )
    return plan


def refuse_unsplittable(spec: ModelSpec, config: EngineConfig) -> None:
    """Raise `UnsupportedModel` for a model that cannot be split as the configuration wants it."""
    if config.dtype in ("int8", "fp8"):
        raise UnsupportedModel(
            f"dtype={config.dtype!r} and tensor_parallel_size={config.tensor_parallel_size}: a "
            f"quantised model is not split; leave one of them out"
        )
    for route in spec.routes:
        if route.encoder.kind == "StaticEmbedding":
            raise UnsupportedModel(
                f"{spec.name} is a table of vectors, which cannot be split; {REPLICAS}"
            )
        _refuse(route.encoder.path, config)


def _refuse(folder: Path, config: EngineConfig) -> None:
    if config.trust_remote_code and classes_of(folder):
        raise UnsupportedModel(f"{folder} runs code of its own and cannot be split; {REPLICAS}")
    from transformers import AutoConfig  # only where a model is to be split

    from ..quiet import quiet_transformers

    try:
        with quiet_transformers():
            read: Any = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise UnsupportedModel(
            f"{folder} cannot be split: transformers itself does not know this kind of model "
            f"({summary(error)}); {REPLICAS}"
        ) from error
    split_plan(read, config.tensor_parallel_size)
