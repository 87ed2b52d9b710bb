"""How a Transformer module takes its texts: as they are or through a chat template, and how long.

Reads the `modality_config` and `processing_kwargs` of its sentence_bert_config.json, in the
format of sentence-transformers 6, and refuses by name what is not text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpoint, UnsupportedModel
from .files import whole_number

__all__ = ["QueryExpansion", "chat_options", "length_options", "query_expansion"]

_TEXT = frozenset({"text", "message"})
_FORMATS = ("auto", "flat", "structured")
_WHOLE = (True, "longest_first", "only_first")  # how a single text may be truncated

_IGNORED_CALL_KEYS = frozenset(
    {
        "logits_to_keep",
        "pad_to_multiple_of",
        "padding",
        "padding_side",
        "return_attention_mask",
        "return_tensors",
    }
)

_PRODUCED = {
    "fill-mask": ("forward", "logits", "token_embeddings"),
    "feature-extraction": ("forward", "last_hidden_state", "token_embeddings"),
    "sequence-classification": ("forward", "logits", "scores"),
    "text-generation": ("forward", "logits", "causal_logits"),
}
_SIZE_KEYS = frozenset({"max_length", "truncation"})

# They decide what comes back from the template, or are given by the reference itself.
_REFUSED_CHAT_KEYS = frozenset(
    {
        "common_kwargs",
        "conversation",
        "return_assistant_tokens_mask",
        "return_dict",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
    }
)


def chat_options(saved: Mapping[str, Any], path: Path, *, whole: bool) -> dict[str, Any] | None:
    """The chat template's part of a Transformer's options, or None for texts as they are.

    `format` of the messages (`auto`, `flat` or `structured`), `arguments` for the template,
    `restore_suffix`, and whether a template is `required`. `whole`: the module was not saved by
    sentence-transformers, so its tokenizer's template is used if it has one.
    """
    modalities = saved.get("modality_config")
    if whole:
        return {"format": "auto", "arguments": {}, "restore_suffix": True, "required": False}
    if modalities is None:  # of the days before templates
        return None
    if not isinstance(modalities, Mapping):
        raise InvalidCheckpoint(f"{path}: modality_config is not an object")
    how = modalities.get("message", modalities.get("text"))
    if not isinstance(how, Mapping):
        raise UnsupportedModel(f"{path}: takes {', '.join(map(str, modalities))}, but no text")
    _require_usual_output(how, saved, path)
    if "message" not in modalities:
        return None
    others = [str(name) for name in modalities if name not in _TEXT]
    if others:
        raise UnsupportedModel(
            f"{path}: its chat template is that of a model for {', '.join(others)} too; only "
            "those of models for text alone are supported"
        )
    message_format = how.get("format", "auto")
    if message_format not in _FORMATS:
        raise InvalidCheckpoint(
            f"{path}: the format of its messages is {message_format!r}; "
            f"it must be one of {', '.join(_FORMATS)}"
        )
    arguments = _chat_arguments(saved, path)
    restore = bool(arguments.pop("restore_suffix", True))
    return {
        "format": message_format,
        "arguments": arguments,
        "restore_suffix": restore,
        "required": True,
    }


def _require_usual_output(how: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    output = how.get("method_output_name")
    output = output[0] if isinstance(output, list) and len(output) == 1 else output
    produced = (how.get("method"), output, saved.get("module_output_name"))
    expected = _PRODUCED[saved.get("transformer_task", "feature-extraction")]
    if produced != expected:
        raise UnsupportedModel(
            f"{path}: text goes through {produced[0]!r} to {produced[1]!r} as {produced[2]!r}; "
            f"only the {expected[1]} of forward, as {expected[2]}, is supported"
        )


def _chat_arguments(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
    arguments = _bucket(saved, "chat_template", path)
    ignored = _IGNORED_CALL_KEYS | _SIZE_KEYS
    arguments = {key: value for key, value in arguments.items() if key not in ignored}
    refused = sorted(_REFUSED_CHAT_KEYS & set(arguments))
    if refused:
        raise UnsupportedModel(
            f"{path}: processing_kwargs gives its chat template {', '.join(refused)}, "
            "which is not supported"
        )
    return arguments


def length_options(
    saved: Mapping[str, Any], path: Path, *, has_chat: bool
) -> dict[str, int | None]:
    """`query_length`, `document_length` and `call_length`, for every other task, in tokens.

    Raises `UnsupportedModel` for other arguments of the tokenizer's calls.
    """
    text = _call_arguments(saved, "text", path)
    common = _call_arguments(saved, "common", path)
    # Where the reference hands the arguments of two buckets to one call, one of them wins.
    first, last = common, {}
    if has_chat:
        first, last = _sizes(_bucket(saved, "chat_template", path)), common
    before = [_call_length(arguments, path) for arguments in (first, text)]
    after = _call_length(last, path)

    def length(task_length: int | None) -> int | None:
        return next((n for n in (*before, task_length, after) if n is not None), None)

    return {
        "query_length": length(whole_number(saved, "query_length", path, of="tokens")),
        "document_length": length(whole_number(saved, "document_length", path, of="tokens")),
        "call_length": length(None),
    }


def _bucket(saved: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    processing = saved.get("processing_kwargs") or {}
    bucket = (processing.get(name) or {}) if isinstance(processing, Mapping) else None
    if not isinstance(bucket, Mapping):
        raise InvalidCheckpoint(f"{path}: processing_kwargs is not an object of objects")
    return dict(bucket)


def _call_arguments(saved: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    arguments = _bucket(saved, name, path)
    unknown = sorted(set(arguments) - _IGNORED_CALL_KEYS - _SIZE_KEYS)
    if unknown:
        raise UnsupportedModel(
            f"{path}: processing_kwargs asks the tokenizer for {', '.join(unknown)}, "
            "which is not supported"
        )
    return _sizes(arguments)


def _sizes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key in _SIZE_KEYS}


def _call_length(arguments: Mapping[str, Any], path: Path) -> int | None:
    if arguments.get("truncation", True) not in _WHOLE:
        raise UnsupportedModel(
            f"{path}: processing_kwargs asks the tokenizer for "
            f"truncation={arguments['truncation']!r}, which is not supported"
        )
    return whole_number(arguments, "max_length", path, of="tokens")


@dataclass(frozen=True, kw_only=True)
class QueryExpansion:
    """Queries are filled up with a token, whose vectors take part in the score (ColBERT)."""

    length: int
    """Tokens of a query at the least."""
    is_fixed: bool
    """Whether longer queries are cut to that length."""
    attended: bool = False
    """Whether the other tokens attend to those that fill up; those attend to the query anyway."""
    token: str | None = None
    """None for the tokenizer's `[MASK]` or else the end of a text."""


def query_expansion(saved: Mapping[str, Any], path: Path) -> QueryExpansion | None:
    """From the `query_expansion` of a Transformer. Raises `InvalidCheckpoint`."""
    found, query_length = saved.get("query_expansion"), saved.get("query_length")
    if found is None:
        return None
    if not isinstance(found, Mapping) or found.get("strategy") not in ("fixed", "min"):
        raise InvalidCheckpoint(
            f"{path}: query_expansion is {found!r}; it needs a strategy, 'fixed' or 'min'"
        )
    length, token, attend = found.get("length"), found.get("token"), found.get("attend", False)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InvalidCheckpoint(f"{path}: query_expansion has length={length!r}, not tokens")
    if query_length is not None and query_length < length:
        raise InvalidCheckpoint(
            f"{path}: query_length={query_length} is below the length of query_expansion, {length}"
        )
    if not isinstance(token, str | None) or not isinstance(attend, bool):
        raise InvalidCheckpoint(f"{path}: query_expansion has token={token!r}, attend={attend!r}")
    return QueryExpansion(
        length=length, is_fixed=found["strategy"] == "fixed", attended=attend, token=token
    )
