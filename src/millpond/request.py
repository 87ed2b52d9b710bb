"""The door: what a caller hands in becomes a `Job`, or is refused with an error that says why."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from .embeddings import OutputDType, OutputFormat
from .errors import InvalidOption, InvalidText, InvalidTokenIds, UnknownTask
from .models.spec import ModelSpec
from .runner import BatchRunner
from .scheduling.job import Job, Lane, TruncateSide
from .stats import ProgressHook

__all__ = ["Request", "TextInput", "TextsInput"]

LONG_TEXT_TOKENS = 2**16  # that a longer text counts in the queue, if the model will not read it

TextInput = str | Sequence[int] | npt.NDArray[np.integer[Any]]
"""One text: a string, or its token ids."""
TextsInput = TextInput | Sequence[TextInput]
"""One text or several."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one call."""

    task: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    truncate: TruncateSide | None = None
    output_dtype: OutputDType = "float32"
    lane: Lane | str | None = None
    timeout: float | None = None
    progress: ProgressHook | None = None
    reports_truncation: bool = False

    def job(
        self, texts: TextsInput, *, spec: ModelSpec, runner: BatchRunner, now_s: float
    ) -> tuple[Job, bool]:
        """The job, and whether the caller gave a single text.

        Raises `InvalidOption` and its kin, or `InvalidInput` with the index of the text.
        """
        self._validate(spec)
        items, single, tokenized = _normalized(texts)
        route = self._route(spec, runner)
        prompt = self._prompt(spec, tokenized)
        longest = runner.routes[route].max_length
        output = OutputFormat(
            dimension=runner.routes[route].dimension,
            dimensions=self.dimensions,
            saved_dimensions=spec.truncate_dim,
            normalize=self.normalize,
            dtype=self.output_dtype,
        )
        output.require_enough(len(items))
        job = Job(
            items,
            lane=self._lane(len(items)),
            output=output,
            route=route,
            prompt=prompt,
            task=self.task,
            prompt_tokens=runner.prompt_tokens(route, prompt) if prompt else 0,
            shared_tokens=runner.shared_tokens(route, prompt, self.task) if prompt else 0,
            is_pinned=prompt in spec.prompts.values(),
            truncate=self.truncate,
            max_length=spec.max_length_for(self.task),
            most_tokens=None if longest is None else max(longest, LONG_TEXT_TOKENS),
            reads_tokens=runner.routes[route].max_length,
            tokenized=tokenized,
            progress=self.progress,
            reports_truncation=self.reports_truncation,
            arrived_s=now_s,
            deadline_s=None if self.timeout is None else now_s + self.timeout,
        )
        return job, single

    def token_ids(
        self, texts: Sequence[str], *, spec: ModelSpec, runner: BatchRunner, special_tokens: bool
    ) -> list[list[int]]:
        """What the tokenizer makes of the texts with their prompt in front, nothing cut."""
        self._validate(spec)
        if isinstance(texts, str):
            raise InvalidText("expected a list of strings; put the one text into a list")
        prompt = self._prompt(spec, tokenized=False)
        return runner.token_ids(
            self._route(spec, runner),
            _strings(texts),
            prompt=prompt,
            task=self.task,
            special_tokens=special_tokens,
        )

    def _route(self, spec: ModelSpec, runner: BatchRunner) -> int:
        name = spec.route_for(self.task).name
        return next(index for index, info in enumerate(runner.routes) if info.name == name)

    def _validate(self, spec: ModelSpec) -> None:
        if self.truncate not in (None, *get_args(TruncateSide)):
            raise InvalidOption(
                f"truncate={self.truncate!r}: choose 'end', 'start' or 'error', or leave it out "
                "for the checkpoint's own side"
            )
        if self.timeout is not None and not (
            isinstance(self.timeout, int | float) and 0 < self.timeout <= threading.TIMEOUT_MAX
        ):
            raise InvalidOption(
                f"timeout={self.timeout!r}: it must be a number of seconds above 0; "
                "leave it out to wait as long as it takes"
            )
        known = {"query", "document", *spec.task_routes}
        if self.task is not None and not (isinstance(self.task, str) and self.task in known):
            names = ", ".join(sorted(repr(name) for name in known if name is not None))
            raise UnknownTask(f"task={self.task!r}: this model knows {names}")
        for name in ("prompt", "prompt_name"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidOption(f"{name}={value!r}: it must be a string")

    def _prompt(self, spec: ModelSpec, tokenized: bool) -> str:
        prompt = spec.prompt_text(task=self.task, prompt=self.prompt, prompt_name=self.prompt_name)
        if prompt and tokenized:
            raise InvalidOption(
                f"the prompt {prompt!r} cannot be put in front of token ids; pass prompt='' if "
                "the ids hold it already, or pass strings"
            )
        return prompt

    def _lane(self, texts: int) -> Lane:
        if self.lane is None:
            return Lane.INTERACTIVE if self.task == "query" or texts == 1 else Lane.BULK
        try:
            return Lane(self.lane)
        except ValueError:
            raise InvalidOption(f"lane={self.lane!r}: choose 'interactive' or 'bulk'") from None


def _normalized(texts: TextsInput) -> tuple[Sequence[Any], bool, bool]:
    """The texts as a list, whether the caller gave one alone, and whether they are token ids."""
    if isinstance(texts, str):
        return [texts], True, False
    is_sequence = isinstance(texts, Sequence) or (isinstance(texts, np.ndarray) and texts.ndim > 0)
    if isinstance(texts, bytes) or not is_sequence:
        raise InvalidText(
            f"expected a string, a list of strings or token ids, not {type(texts).__name__}; "
            "a generator or an iterator of texts goes to embed_iter"
        )
    if isinstance(texts, np.ndarray) and texts.ndim == 1 and texts.dtype.kind in "UO":
        texts = texts.tolist()
    if len(texts) == 0:
        return [], False, False
    if _is_integer(texts[0]):
        return [_token_ids(texts, 0)], True, True
    if isinstance(texts[0], str):
        return _strings(texts), False, False
    return [_token_ids(text, index) for index, text in enumerate(texts)], False, True


def _strings(texts: Any) -> list[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidText(
                f"expected a string like the first text, not {type(text).__name__}", index=index
            )
    return list(texts)


def _token_ids(ids: Any, index: int) -> npt.NDArray[np.int32]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence | np.ndarray):
        raise InvalidText(
            f"expected a string or a list of token ids, not {type(ids).__name__}", index=index
        )
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise InvalidTokenIds("expected a flat, non-empty list of whole numbers", index=index)
    limits = np.iinfo(np.int32)
    if array.min() < limits.min or array.max() > limits.max:
        raise InvalidTokenIds("a token id is outside any vocabulary", index=index)
    return array.astype(np.int32)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
