"""A transformer by transformers' own model code: `load_pretrained`.

It chooses the class, checks that every weight came from the checkpoint, and finds out what the
model is; it never runs it.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from ...checkpoint.files import require_whole
from ...checkpoint.modules import Module
from ...checkpoint.remote_code import classes_of, code_repositories
from ...checkpoint.weights import non_finite, refuse_non_finite
from ...errors import (
    InvalidCheckpoint,
    ModelError,
    UnsupportedModel,
    first_line,
    summary,
)
from ..heads.checkpoint_head import CheckpointHead
from ..heads.vocabulary_head import MaskedLanguageHead
from ..overflow import DoesNotFit
from ..quiet import quiet_transformers
from .loaded import LoadedTransformer

if TYPE_CHECKING:
    from ..split.ranks import RankGroup

__all__ = ["load_pretrained"]

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d+")

# Translation and summarising models of which the reference runs the encoder alone. Others of
# the kind, BART for one, it runs whole, and their vectors are those of the decoder.
_ENCODER_ONLY = frozenset(
    {
        "blenderbot",
        "blenderbot-small",
        "longt5",
        "m2m_100",
        "marian",
        "pegasus",
        "pegasus_x",
        "prophetnet",
        "switch_transformers",
        "t5gemma2",
    }
)

_POSITION_TABLES = frozenset(
    {
        "char_position_embeddings",
        "embed_positions",
        "position_embedding",
        "position_embeddings",
        "positions_embed",
        "wpe",
    }
)


_WITH_HEAD = {
    "fill-mask": AutoModelForMaskedLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "text-generation": AutoModelForCausalLM,
    "token-classification": AutoModelForTokenClassification,
}


def load_pretrained(
    module: Module,
    files: Sequence[Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    code: dict[str, Any],
    ranks: RankGroup | None = None,
) -> LoadedTransformer:
    """Load the transformer in `module.path`, whose weights are in `files`. Prints nothing.

    `code` is where code of its own may come from. Raises what `load_transformer` does.
    """
    path = module.path
    with quiet_transformers():
        try:
            config = _load_config(module, code)
            require_whole(files)
            model, missing, left_out = _load_model(module, config, dtype, code, ranks)
        except ModelError:
            raise
        # Whatever a damaged checkpoint trips over inside transformers, torch or its own code.
        except Exception as error:
            raise _load_error(path, error) from error
    if left_out:
        logger.warning(
            "%s: %d weights were left out, such as %s: its config.json has fewer layers than its "
            "weights; if that is not meant, download the checkpoint again",
            path,
            len(left_out),
            min(left_out),
        )
    has_head = module.options.get("task") in _WITH_HEAD
    _check_complete(
        path, model, missing, ignores_code=not code["trust_remote_code"], pooler=has_head
    )
    if dtype == torch.float16 and not _is_finite(model, ranks):
        _refuse_too_large(module, config, code, ranks)
    refuse_non_finite(path, model.named_parameters())
    torch.nn.Module.to(model.train(False).requires_grad_(False), device)
    return _with_head(model, module) if has_head else _describe(model)


def _with_head(whole: PreTrainedModel, module: Module) -> LoadedTransformer:
    """The base model of one for scores, classes or masked words, and its head apart."""
    base: Any = whole.base_model
    if base is whole:
        raise UnsupportedModel(
            f"{module.path}: {type(whole).__name__} has no base model that its head stands on"
        )
    described = _describe(base)
    with quiet_transformers():
        if module.options["task"] == "fill-mask":
            return replace(described, vocabulary=MaskedLanguageHead.detach(whole))
        head = CheckpointHead.detach(
            whole,
            hidden_size=described.hidden_size,
            answer_ids=module.options.get("answer_ids"),
            per_token=module.options["task"] == "token-classification",
        )
    return replace(described, head=head)


def _is_finite(model: PreTrainedModel, ranks: RankGroup | None) -> bool:
    """Whether every weight is, on every rank."""
    finite = non_finite(model.named_parameters()) is None
    return finite if ranks is None else ranks.all_of(finite)


def _refuse_too_large(
    module: Module, config: PretrainedConfig, code: dict[str, Any], ranks: RankGroup | None
) -> None:
    """Raise `DoesNotFit` where it is float16 alone that some weight is infinite in."""
    with quiet_transformers():
        model, *_ = _load_model(module, config, torch.float32, code, ranks)
    if _is_finite(model, ranks):
        raise DoesNotFit(
            f"{module.path} has weights too large for float16; use dtype='bfloat16' or 'float32'"
        )


def _load_config(module: Module, code: dict[str, Any]) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(
        module.path,
        local_files_only=True,
        **code,
        **module.options.get("config_kwargs", {}),
    )
    _disable_cache(config)
    if config.model_type == "t5gemma":
        config.is_encoder_decoder = False  # its encoder class insists on it
    return config  # type: ignore[no-any-return]


def _disable_cache(config: PretrainedConfig) -> None:
    """A cache of keys and values would be filled by every forward and read by none."""
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig):
            _disable_cache(inner)


def _load_model(
    module: Module,
    config: PretrainedConfig,
    dtype: torch.dtype,
    code: dict[str, Any],
    ranks: RankGroup | None,
) -> tuple[PreTrainedModel, set[str], list[str]]:
    """The model on the CPU, the names of weights that the checkpoint did not have, and of those
    that only more layers would have a place for."""
    loader = _WITH_HEAD.get(module.options.get("task", "")) or _loader(config)
    model, report = loader.from_pretrained(
        module.path,
        config=config,
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
        **code,
        **module.options.get("model_kwargs", {}),
        **_split_options(config, ranks),
    )
    if ranks is not None:
        from ..split.loading import as_plain_model

        as_plain_model(model, config, ranks)
    left_out = _of_more_layers(model, report["unexpected_keys"])
    missing = set(report["missing_keys"]) | {name for name, *_ in report["mismatched_keys"]}
    if config.model_type in _ENCODER_ONLY and loader is AutoModel:
        whole, model = model, model.get_encoder()
        used = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        names = {k for k, v in whole.state_dict(keep_vars=True).items() if id(v) in used}
        missing &= names
    return model, missing, left_out


def _split_options(config: PretrainedConfig, ranks: RankGroup | None) -> dict[str, Any]:
    if ranks is None:
        return {}
    from ..split.loading import loading_options  # torch's distributed tensors

    return dict(loading_options(config, ranks))


def _of_more_layers(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Weights like the model's own but for the number of their layer.

    Those of a head for another task are like none of them.
    """
    alike = {_NUMBER.sub("*", name) for name in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    return [n for n in unexpected if _NUMBER.sub("*", n.removeprefix(prefix)) in alike]


def _loader(config: PretrainedConfig) -> Any:
    """The class whose `from_pretrained` reads this checkpoint."""
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding
    if config.model_type in _ENCODER_ONLY and config.architectures:
        with torch.device("meta"):
            whole: Any = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
            encoder = type(whole.get_encoder())
        if encoder.__name__ in config.architectures:  # saved without the rest of the model
            return encoder
    return AutoModel


def _check_complete(
    path: Path,
    model: PreTrainedModel,
    missing: set[str],
    *,
    ignores_code: bool,
    pooler: bool = False,
) -> None:
    """Random weights give vectors that look fine; a `pooler` is looked at by heads alone."""
    needed = sorted(name for name in missing if pooler or "pooler" not in name.split("."))
    if needed:
        shown = ", ".join(needed[:3]) + (", …" if len(needed) > 3 else "")
        if ignores_code and classes_of(path):
            raise UnsupportedModel(
                f"{path}: {len(needed)} weights of transformers' own {type(model).__name__} are "
                f"missing ({shown}), and config.json names Python code that its weights are for; "
                "pass trust_remote_code=True if you trust that to run in this process"
            )
        raise InvalidCheckpoint(
            f"{path}: {len(needed)} weights of {type(model).__name__} are missing from the "
            f"checkpoint or have another shape ({shown}); it belongs to another model, or its "
            "config.json does"
        )


def _load_error(path: Path, error: Exception) -> ModelError:
    elsewhere = code_repositories(path)
    if elsewhere and isinstance(error, OSError):
        return UnsupportedModel(
            f"{path} runs Python code of the repository {' and '.join(sorted(elsewhere))}, which "
            "is not on this machine; download that repository too "
            f"({first_line(error)})"
        )
    reason = summary(error)
    if "trust_remote_code" in str(error):
        return UnsupportedModel(
            f"{path} comes with Python code of its own; pass trust_remote_code=True if you trust "
            "it to run in this process"
        )
    if isinstance(error, ImportError):
        return UnsupportedModel(f"{path} needs a package that is not installed ({reason})")
    if "does not recognize this architecture" in str(error) or "Unrecognized" in str(error):
        return UnsupportedModel(
            f"{path}: the installed transformers does not know this kind of model; a newer one "
            f"may ({reason})"
        )
    return InvalidCheckpoint(f"{path} cannot be loaded ({reason})")


def _describe(model: PreTrainedModel) -> LoadedTransformer:
    config = model.config
    inner = (config, config.get_text_config(), getattr(config, "encoder", None))
    text_config = next((part for part in inner if hasattr(part, "hidden_size")), None)
    if text_config is None:
        raise UnsupportedModel(
            f"{model.name_or_path}: a {config.model_type} has no hidden state for each token"
        )
    return LoadedTransformer(
        model=model,
        config=config,
        hidden_size=int(text_config.hidden_size),
        vocab_size=_vocab_size(model, text_config),
        max_positions=_max_positions(model),
        needs_token_type_ids=_needs_token_type_ids(model),
    )


def _vocab_size(model: PreTrainedModel, config: PretrainedConfig) -> int:
    try:
        weight: Any = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        weight = range(getattr(config, "vocab_size", None) or 0)
    if not len(weight):
        raise UnsupportedModel(
            f"{type(model).__name__} has no table of tokens: its ids are of another kind, such as "
            "characters, and Millpond does not run it"
        )
    return len(weight)


def _max_positions(model: PreTrainedModel) -> int | None:
    """The rows of the position table, less those in front of the first token's position.

    RoBERTa begins after the padding id, BART and OPT after a fixed offset, Nystromformer
    after the first of its saved position ids.
    """
    limits = []
    for path, table in model.named_modules():
        parent, _, name = path.rpartition(".")
        if name not in _POSITION_TABLES or not isinstance(table, torch.nn.Embedding):
            continue
        position_ids = getattr(model.get_submodule(parent), "position_ids", None)
        skipped = [0, int(getattr(table, "offset", 0))]
        if table.padding_idx is not None:
            skipped.append(table.padding_idx + 1)
        if isinstance(position_ids, torch.Tensor) and position_ids.numel():
            skipped.append(int(position_ids.min()))
        limits.append(table.num_embeddings - max(skipped))
    if not limits and model.config.model_type == "mpt":  # it makes no more biases than these
        return int(model.config.max_seq_len)
    return min(limits) if limits else None


def _needs_token_type_ids(model: PreTrainedModel) -> bool:
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    return any(name.endswith("token_type_embeddings") for name, _ in model.named_modules())
