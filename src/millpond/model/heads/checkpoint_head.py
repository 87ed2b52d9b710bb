"""`CheckpointHead`: a checkpoint's own head for scores or classes, on hidden states of any origin.

The head is the model's own `forward` with a stub in the place of its base model. The stub gives
back the hidden states that it is handed as embeddings, so no line of any model's code is repeated
here. Of a language model only the rows of a few answers are kept in its last layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...errors import UnsupportedModel, summary
from ...layers.parts import linear_of
from ...pooler.pooling import TokenRows, pool

__all__ = ["CheckpointHead", "Stub", "agree", "probe_ids"]

# What stands for a text: the first of them whose row alone gives what all of its rows give.
_POOLINGS = ("cls", "lasttoken", "mean", "max")


_PROBE_LENGTHS = (7, 4)


_PROBE_VOCABULARY = 1000  # of ids; special ones are the first, or are far beyond


_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class CheckpointHead:
    """The logits of texts by the checkpoint's own head, in float32.

    `pooling` says which of a text's rows, or what of them, the head reads (None: every row, for
    logits of tokens); with `is_late` it is the logits of all rows that are pooled. `width` is how
    many logits it gives. It never changes once it is detached, so any thread may use it.
    """

    def __init__(self, head: Any, *, per_token: bool, answers: int) -> None:
        self._head = head
        self._answers = answers
        self.per_token = per_token
        self._gives_ids = False
        self.pooling: str | None = None
        self.is_late = False
        self.width = 0

    @classmethod
    @torch.inference_mode()
    def detach(
        cls,
        whole: Any,
        *,
        hidden_size: int,
        answer_ids: Sequence[int] | None = None,
        per_token: bool = False,
    ) -> CheckpointHead:
        """Take the head off a model of transformers, whose base model is then to be run alone.

        `answer_ids` are the tokens whose logits a language model is asked for: one logit, or the
        first less the second. Raises `UnsupportedModel` for a head that needs more than hidden
        states, or other ones than the base model gives by itself.
        """
        base, answers = whole.base_model, answer_ids or ()
        ids = probe_ids(whole)
        mask = torch.ones_like(ids)
        expected = _answered(whole(input_ids=ids, attention_mask=mask).logits, answers)
        whole.config = copy.deepcopy(whole.config)
        whole.config.get_text_config().pad_token_id = 0  # without one it takes one text at a time
        if answer_ids is not None:
            _keep_answers(whole, answer_ids)
        setattr(whole, whole.base_model_prefix, Stub(base))
        head = cls(whole.float(), per_token=per_token, answers=len(answers))
        try:
            head._find_pooling(hidden_size, whole.device)
        except Exception:  # whatever a model's code objects with that looks at ids too
            head._gives_ids = True
            try:
                head._find_pooling(hidden_size, whole.device)
            except Exception as error:
                raise UnsupportedModel(
                    f"{type(whole).__name__} does not give its scores of hidden states alone "
                    f"({summary(error)})"
                ) from error
        found = head._of_text(base(input_ids=ids, attention_mask=mask).last_hidden_state.float())
        if bool(expected.isfinite().all()) and not agree(found, expected.float(), base.dtype):
            raise UnsupportedModel(
                f"{type(whole).__name__} gives other scores than its head does of what its base "
                "model gives by itself; it tells the base model more than the text"
            )
        return head

    @property
    def looks_past_padding(self) -> bool:
        """Whether it reads the last token of a text that is not the one to pad with."""
        return self.pooling == "lasttoken" and not self._answers

    def __call__(self, rows: Tensor) -> Tensor:
        """Logits float32 [n, width] of what `pooling` makes of texts, float32 [n, hidden_size]."""
        return self._logits(rows.unsqueeze(1))

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of texts of equal length, [n, length, hidden_size]."""
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        ids = {"input_ids": self._ids_like(mask)} if self._gives_ids else {}
        found = self._head(inputs_embeds=hidden, attention_mask=mask, return_dict=True, **ids)
        logits = _score_of(found.logits[:, -1]) if self._answers else found.logits
        return logits[:, 0] if self.per_token and hidden.shape[1] == 1 else logits

    def _of_text(self, hidden: Tensor) -> Tensor:
        """Of one text `[1, length, hidden_size]` by what of it the head reads."""
        if self.pooling is None:
            return self._logits(hidden)
        if self.is_late:
            return self(hidden[0]).mean(0, keepdim=True)
        return self(_pooled(hidden[0], self.pooling))

    def _ids_like(self, ones: Tensor) -> Tensor:
        """Ids of no meaning, but for the end of each text: some heads read the row of that."""
        end = getattr(self._head.config.get_text_config(), "eos_token_id", None)
        ids = ones + 1 if end == 1 else ones.clone()
        if isinstance(end, int):
            ids[:, -1] = end
        return ids

    def _find_pooling(self, hidden_size: int, device: torch.device) -> None:
        texts = [_random_rows(length, hidden_size).to(device) for length in _PROBE_LENGTHS]
        whole = [self._logits(rows.unsqueeze(0)) for rows in texts]
        self.width = whole[0].shape[-1]
        if self.per_token:
            if not all(agree(self(rows), each[0]) for rows, each in zip(texts, whole, strict=True)):
                raise ValueError("its head looks from one token at others")
            return
        for pooling in _POOLINGS:
            found = [self(_pooled(rows, pooling)) for rows in texts]
            if all(map(agree, found, whole)):
                self.pooling = pooling
                return
        if all(map(agree, [self(rows).mean(0, keepdim=True) for rows in texts], whole)):
            self.pooling, self.is_late = "mean", True
            return
        raise ValueError("its head reads more of a text than one row of it")

    def __repr__(self) -> str:
        name = type(self._head).__name__
        return f"CheckpointHead({name}, pooling={self.pooling!r}, width={self.width})"


class _StubOutput(BaseModelOutputWithPooling):
    """The output of a base model that has nothing of what some models look for beside."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Stub(nn.Module):
    """In the place of a base model: its hidden states are those it is handed as embeddings."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        pooler = getattr(base, "pooler", None)
        self.pooler = copy.deepcopy(pooler) if isinstance(pooler, nn.Module) else None
        self.activation = copy.deepcopy(getattr(base, "pooler_activation", None))  # ALBERT's

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _StubOutput:
        pooled = None
        if isinstance(self.pooler, nn.Linear) and self.activation is not None:
            pooled = self.activation(self.pooler(inputs_embeds[:, 0]))
        elif self.pooler is not None:
            pooled = self.pooler(inputs_embeds)
        return _StubOutput(last_hidden_state=inputs_embeds, pooler_output=pooled)


def probe_ids(model: Any) -> Tensor:
    """A text, `[1, length]`, that ends with the model's own id for it if it has one."""
    config = model.config.get_text_config()
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    size = len(model.get_input_embeddings().weight)
    ordinary = [token for token in range(min(size, _PROBE_VOCABULARY)) if token not in special]
    ids, end = ordinary[-_PROBE_LENGTHS[0] :], getattr(config, "eos_token_id", None)
    has_end = isinstance(end, int) and end < size and end != getattr(config, "pad_token_id", None)
    return torch.tensor([[*ids, end] if has_end else ids], device=model.device)


def _answered(logits: Tensor, answers: Sequence[int]) -> Tensor:
    """The score of the first of these answers at the end of each text; without any, all logits."""
    if not answers:
        return logits
    return _score_of(logits[:, -1, list(answers)])


def _score_of(answers: Tensor) -> Tensor:
    """Of the logits of one answer or two, `[n, 1 or 2]`, by slices alone: an index would be copied
    to a GPU in each pass, and a pass that copies cannot be captured as a CUDA graph."""
    return answers[:, :1] - answers[:, 1:] if answers.shape[1] > 1 else answers


def _keep_answers(model: Any, token_ids: Sequence[int]) -> None:
    """A last layer that knows these tokens alone."""
    full = model.get_output_embeddings()
    if full is None or max(token_ids) >= len(full.weight):
        raise UnsupportedModel(
            f"{type(model).__name__} has no logit for each of the tokens {list(token_ids)}"
        )
    weight, bias = full.weight[list(token_ids)], full.bias
    model.set_output_embeddings(linear_of(weight, None if bias is None else bias[list(token_ids)]))


def _random_rows(length: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn((length, width), generator=generator)


def _pooled(rows: Tensor, pooling: str) -> Tensor:
    starts = torch.zeros(1, dtype=torch.int64, device=rows.device)
    lengths = torch.full_like(starts, len(rows))
    return pool(TokenRows.of(rows, starts, lengths, None), [pooling])


def agree(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether logits are the same, up to the rounding of a precision."""
    if found.shape != expected.shape:
        return False
    scale = float(expected.abs().max().clamp(min=1.0))
    return bool((found - expected).abs().max() <= _TOLERANCE[dtype] * scale)
