"""Language models that answer whether a document fits a query, by their names.

Saved by sentence-transformers such a model says all of this itself: a LogitScore module and a chat
template. Saved by its authors it looks like any language model, so what its card says is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidCheckpoint
from ..files import read_json_object

__all__ = ["AnswerReranker", "answer_reranker"]


@dataclass(frozen=True, kw_only=True)
class AnswerReranker:
    """A family of such models."""

    name: str
    """A regular expression that finds it in the name of a model or folder."""
    true_token: str
    false_token: str
    template: str
    """A chat template for messages of the roles query, document and, for the instruction,
    system."""

    def token_ids(self, folder: Path) -> tuple[int, int]:
        """The ids of the two answers. Raises `InvalidCheckpoint` where there are none."""
        path = folder / "tokenizer.json"
        vocabulary = (read_json_object(path, required=True).get("model") or {}).get("vocab")
        if isinstance(vocabulary, Mapping):
            found = vocabulary.get(self.true_token), vocabulary.get(self.false_token)
            if all(isinstance(token, int) for token in found):
                return found  # type: ignore[return-value]
        raise InvalidCheckpoint(
            f"{path} has no token {self.true_token!r} or none {self.false_token!r}, which this "
            "kind of reranker answers with"
        )


_ROLES = (
    "{%- set ns = namespace(instruction='', query='', document='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{%- set ns.instruction = message.content -%}"
    "{%- elif message.role == 'query' -%}{%- set ns.query = message.content -%}"
    "{%- elif message.role == 'document' -%}{%- set ns.document = message.content -%}"
    "{%- endif -%}{%- endfor -%}"
)

# Formats and default instruction: the model card of Qwen/Qwen3-Reranker-0.6B.
_QWEN3 = AnswerReranker(
    name=r"qwen3-reranker",
    true_token="yes",
    false_token="no",
    template=_ROLES
    + "{{- '<|im_start|>system\\nJudge whether the Document meets the requirements based on the "
    'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
    "<|im_end|>\\n<|im_start|>user\\n<Instruct>: ' -}}"
    "{{- ns.instruction or 'Given a web search query, retrieve relevant passages that answer the "
    "query' -}}"
    "{{- '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document -}}"
    "{{- '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}",
)

# Formats: mxbai_rerank_v2.py of the package mxbai-rerank (Apache-2.0).
_MXBAI = AnswerReranker(
    name=r"mxbai-rerank-\w+-v2",
    true_token="1",
    false_token="0",
    template=_ROLES
    + "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\\n<|im_start|>user\\n' -}}"
    "{%- if ns.instruction -%}{{- 'instruction: ' + ns.instruction + '\\n' -}}{%- endif -%}"
    "{{- 'query: ' + ns.query + '\\ndocument: ' + ns.document -}}"
    "{{- '\\nYou are a search relevance expert who evaluates how well documents match search "
    "queries. For each query-document pair, carefully analyze the semantic relationship between "
    "them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant)."
    "\\nRelevance:<|im_end|>\\n<|im_start|>assistant\\n' -}}",
)

_KNOWN = (_QWEN3, _MXBAI)


def answer_reranker(name: str, config: Mapping[str, Any]) -> AnswerReranker | None:
    """The family that a model of this name and config.json is of; None for any other."""
    architecture = str((config.get("architectures") or [""])[0])
    if not architecture.endswith(("ForCausalLM", "ForSequenceClassification")):
        return None
    return next((known for known in _KNOWN if re.search(known.name, name.lower())), None)
