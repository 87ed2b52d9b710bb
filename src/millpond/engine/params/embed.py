"""`EmbedParams`: the options of a call, and what may be handed in as texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from ...checkpoint.routes import Route
from ...checkpoint.spec import ModelSpec
from ...config import require_bool
from ...embeddings import OutputDType, OutputSpec
from ...errors import (
    InvalidInput,
    InvalidOption,
    InvalidText,
    InvalidTokenIds,
    UnknownTask,
    UnsupportedCall,
)
from ...scheduler.request import Priority, TruncateSide
from ...stats import ProgressHook

__all__ = [
    "NO_TEXTS",
    "CallOptions",
    "EmbedParams",
    "TextInput",
    "TextOptions",
    "Texts",
    "TextsInput",
    "each_taken",
    "params_of",
    "require_count",
    "require_known",
    "require_lists_of_ids",
    "unsupported",
]


TextInput = str | Sequence[int] | npt.NDArray[np.integer[Any]]
"""One text: a string, or its token ids."""


TextsInput = TextInput | Sequence[TextInput]
"""One text or several."""


NO_TEXTS = (bytes, bytearray, memoryview)  # sequences of integers, and no token ids


NO_IDS = np.empty(0, dtype=np.int32)


_KINDS = {
    "embed": ("embeddings", "embed"),
    "score": ("a score", "score or rank with pairs"),
    "classify": ("classes", "classify"),
    "sparse": ("sparse vectors", "embed_sparse"),
    "multi_vector": ("a vector for each token", "embed_tokens, score or rank"),
}
"""What models of a kind give, and the calls for it."""


class TextOptions(TypedDict, total=False):
    """The options of any call for texts, as `Engine.embed` explains them."""

    task: str | None
    prompt: str | None
    prompt_name: str | None
    truncate: TruncateSide | None
    priority: Priority | str | None
    timeout: float | None


class CallOptions(TextOptions, total=False):
    """The options of one call, as `Engine.embed` explains them."""

    dimensions: int | None
    normalize: bool | None
    output_dtype: OutputDType


@dataclass(frozen=True, kw_only=True)
class EmbedParams:
    """The options of one call."""

    task: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    truncate: TruncateSide | None = None
    output_dtype: OutputDType = "float32"
    priority: Priority | str | None = None
    timeout: float | None = None
    progress: ProgressHook | None = None
    reports_truncation: bool = False

    def validate(self, spec: ModelSpec) -> None:
        """Raise `InvalidOption` or a subclass for an option that cannot be meant."""
        if self.truncate is not None and not (
            isinstance(self.truncate, str) and self.truncate in get_args(TruncateSide)
        ):
            raise InvalidOption(
                f"truncate={self.truncate!r}: choose 'end', 'start' or 'error', or leave it out "
                "for the checkpoint's own side"
            )
        if self.normalize is not None:
            require_bool("normalize", self.normalize)
        if self.timeout is not None and not _is_duration(self.timeout):
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
        if self.prompt is not None and not _is_unicode(self.prompt):
            raise InvalidOption(
                f"prompt={self.prompt!r}: it holds half of a surrogate pair, no Unicode text"
            )
        if self.priority is not None:
            self.priority_of(1)

    @staticmethod
    def require(spec: ModelSpec, call: str) -> None:
        """Raise `UnsupportedCall` for a model that gives no embeddings."""
        if spec.kind != "embed":
            raise unsupported(spec, call, "embeddings")

    def route(self, spec: ModelSpec) -> Route:
        """The route that the texts take. Raises `UnknownTask`."""
        return spec.route_for(self.task)

    def output(self, spec: ModelSpec, dimension: int) -> Any:
        """What becomes of the model's vectors of `dimension` numbers."""
        return OutputSpec(
            dimension=dimension,
            dimensions=self.dimensions,
            saved_dimensions=spec.truncate_dim,
            normalize=self.normalize,
            dtype=self.output_dtype,
        )

    def prompt_text(self, spec: ModelSpec, tokenized: bool) -> str:
        """What stands in front of every text. Raises `InvalidOption` before token ids."""
        prompt = spec.prompt_text(task=self.task, prompt=self.prompt, prompt_name=self.prompt_name)
        if prompt and tokenized:
            raise InvalidOption(
                f"the prompt {prompt!r} cannot be put in front of token ids; pass prompt='' if "
                "the ids hold it already, or pass strings"
            )
        return prompt

    def priority_of(self, texts: int) -> Priority:
        """Of a call with that many texts. Raises `InvalidOption`."""
        if self.priority is None:
            return Priority.INTERACTIVE if self.task == "query" or texts == 1 else Priority.BULK
        try:
            return Priority(self.priority)
        except ValueError:
            raise InvalidOption(
                f"priority={self.priority!r}: choose 'interactive' or 'bulk'"
            ) from None


Params = TypeVar("Params", bound=EmbedParams)


def unsupported(
    spec: ModelSpec, call: str, needs: str, *, kind: str | None = None, then: str = ""
) -> UnsupportedCall:
    """The error of a call that the model, taken as one of that kind, does not give."""
    gives, instead = _KINDS[kind or spec.kind]
    return UnsupportedCall(
        f"{spec.name} gives {gives}, and {call} needs {needs}; call {instead}{then}"
    )


def params_of(kind: type[Params], known: Any, options: Mapping[str, Any], **added: Any) -> Params:
    """Options of a dictionary type that is `known`, with what the engine has added.

    Raises `TypeError` for an option that there is not.
    """
    require_known(options, known)
    return kind(**options, **added)


def require_known(options: Mapping[str, Any], known: Any) -> None:
    """Raise `TypeError` for an option that is not of a dictionary type."""
    if not options.keys() <= known.__annotations__.keys():
        unknown = sorted(set(options) - set(known.__annotations__))
        names = ", ".join(known.__annotations__)
        raise TypeError(f"unknown option {', '.join(unknown)}; a call takes {names}")


@dataclass(frozen=True)
class Texts:
    """What a caller handed in, text by text."""

    items: Sequence[Any]
    """Strings, token ids or pairs; in place of one that was refused, an empty one."""
    is_single: bool = False
    are_ids: bool = False
    are_pairs: bool = False
    refused: Mapping[int, InvalidInput] = field(default_factory=dict)


def take_texts(texts: TextsInput, *, several: bool) -> Texts:
    """Raises `InvalidText` for what holds no texts; with `several` it is not one text's ids."""
    if isinstance(texts, str):
        return Texts([texts], is_single=True)
    is_sequence = isinstance(texts, Sequence) or (isinstance(texts, np.ndarray) and texts.ndim > 0)
    if isinstance(texts, NO_TEXTS) or not is_sequence:
        raise InvalidText(
            f"expected a string, a list of strings or token ids, not {type(texts).__name__}; "
            + _hint(texts)
        )
    if isinstance(texts, np.ndarray) and texts.ndim == 1 and texts.dtype.kind in "UOT":
        texts = texts.tolist()
    if len(texts) == 0:
        return Texts([])
    if {str}.issuperset(map(type, texts)):
        return Texts(list(texts))
    if not several and _is_integer(texts[0]):
        items, refused = each_taken([texts], _token_ids, NO_IDS)
        return Texts(items, is_single=True, are_ids=True, refused=refused)
    are_ids = next(filter(None, map(_kind, texts)), "") == "ids"
    take, instead = (_token_ids, NO_IDS) if are_ids else (_string, "")
    items, refused = each_taken(texts, take, instead)
    return Texts(items, are_ids=are_ids, refused=refused)


def _hint(texts: object) -> str:
    if isinstance(texts, NO_TEXTS):
        return "decode it to a string first"
    if callable(getattr(texts, "tolist", None)):  # a pandas Series, a tensor
        return "pass its .tolist()"
    return "a generator or an iterator of texts goes to embed_iter"


def _kind(text: object) -> str:
    """As what the others of a list are expected."""
    if isinstance(text, str):
        return "string"
    return "ids" if _may_be_ids(text) else ""


def each_taken(
    texts: Iterable[Any], take: Callable[[Any, int], Any], instead: Any
) -> tuple[list[Any], dict[int, InvalidInput]]:
    """What `take` makes of each; in place of one that it refuses `instead`, and the error."""
    items, refused = [], {}
    for index, text in enumerate(texts):
        try:
            items.append(take(text, index))
        except InvalidInput as error:
            items.append(instead)
            refused[index] = error.with_traceback(None)  # which would hold all of this
    return items, refused


def require_lists_of_ids(ids: object) -> None:
    """Raise `InvalidTokenIds` unless it is a list of lists, or of arrays."""
    if not _may_be_ids(ids):
        raise InvalidTokenIds(f"expected a list of lists of ids, not {type(ids).__name__}")
    for index, row in enumerate(ids):  # type: ignore[arg-type, var-annotated]
        if not _may_be_ids(row):
            raise InvalidTokenIds(f"expected a list of ids, not {type(row).__name__}", index=index)


def take_strings(texts: Any) -> list[str]:
    """Raises `InvalidText` for what is no string."""
    return [_string(text, index) for index, text in enumerate(texts)]


def _string(text: Any, index: int) -> str:
    if not isinstance(text, str):
        raise InvalidText(
            f"expected a string like the other texts, not {type(text).__name__}", index=index
        )
    return text


def _token_ids(ids: Any, index: int) -> npt.NDArray[np.int32]:
    if not _may_be_ids(ids):
        raise InvalidText(
            f"expected a string or a list of token ids, not {type(ids).__name__}", index=index
        )
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError):  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise InvalidTokenIds("expected a flat, non-empty list of whole numbers", index=index)
    limits = np.iinfo(np.int32)
    if array.min() < limits.min or array.max() > limits.max:
        raise InvalidTokenIds("a token id is outside any vocabulary", index=index)
    return array.astype(np.int32)


def _may_be_ids(ids: object) -> bool:
    if isinstance(ids, np.ndarray):
        return ids.ndim > 0
    return isinstance(ids, Sequence) and not isinstance(ids, (str, *NO_TEXTS))


def require_count(name: str, value: Any) -> None:
    """Raise `InvalidOption` for what is neither None nor a whole number above 0."""
    if value is not None and not (_is_integer(value) and value >= 1):
        raise InvalidOption(f"{name}={value!r}: it must be a whole number above 0, or left out")


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    exact = value if isinstance(value, int) else float(value)  # float16 has no such limit
    return 0 < exact <= threading.TIMEOUT_MAX


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
