"""What a folder without modules.json is run as, by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UnsupportedModel
from ..module_config import transformer_config
from ..modules import Chain, Module
from ..routes import pooling_module, transformer_of_folder
from .answer_rerankers import AnswerReranker, answer_reranker

__all__ = ["default_chain"]

# What a model's class is called that scores, and what transformers loads it for.
_SCORING_TASKS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
}
# What a model's class is called that does neither, and what it gives instead.
_OTHER_TASKS = {
    "ForQuestionAnswering": "the place of an answer",
    "ForMultipleChoice": "a score for each of several choices",
    "ForNextSentencePrediction": "whether one sentence follows another",
}


def default_chain(root: Path, *, name: str = "", pooling: tuple[str, ...] | None = None) -> Chain:
    """What a folder without modules.json is run as: a transformer, then a pooling or its own head.

    The mean, or the last token of a model that was trained to predict the next one; where its
    tokenizer has a chat template, texts go through it. A model with a head for classes or scores
    keeps that, unless the user asks for a `pooling`; so does one that is known by its `name`.
    Raises `UnsupportedModel` for a folder that is no text model, or one for another task.
    """
    config = transformer_config(root)
    other = [name for name in ("vision_config", "audio_config") if config.get(name)]
    if other:
        raise UnsupportedModel(
            f"{root / 'config.json'} has a {other[0]}, and there is no modules.json that says "
            "how it embeds text"
        )
    architectures = config.get("architectures") or [""]
    if pooling is None and (scoring := _scoring_transformer(root, name, config)) is not None:
        return (scoring,)
    for task, gives in _OTHER_TASKS.items() if pooling is None else ():
        if str(architectures[0]).endswith(task):
            raise UnsupportedModel(
                f"{root / 'config.json'} is of a {architectures[0]}, which gives {gives}, and no "
                "embeddings; name an embedding model, or embed with its encoder all the same by "
                'pooling="mean"'
            )
    is_causal = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    modes = ("lasttoken" if is_causal else "mean",)
    return transformer_of_folder(root), pooling_module(root, modes)


def _scoring_transformer(root: Path, name: str, config: Mapping[str, Any]) -> Module | None:
    """The one module of a folder whose model scores or classifies; None for any other."""
    architecture = str((config.get("architectures") or [""])[0])
    endings = [ending for ending in _SCORING_TASKS if architecture.endswith(ending)]
    answers = answer_reranker(name, config)
    if not endings and answers is None:
        return None
    task = _SCORING_TASKS[endings[0]] if endings else "text-generation"
    transformer = transformer_of_folder(root, task)
    if answers is None:
        return transformer
    options = {**transformer.options, "chat": _answer_chat(answers)}
    if not endings:
        options["answer_ids"] = answers.token_ids(root)
    return replace(transformer, options=options)


def _answer_chat(answers: AnswerReranker) -> dict[str, Any]:
    arguments = {"chat_template": answers.template}
    return {"format": "flat", "arguments": arguments, "restore_suffix": True, "required": True}
