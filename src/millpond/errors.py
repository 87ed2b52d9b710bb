"""Every exception Millpond raises on purpose, and nothing else.

    MillpondError
    ├── InvalidOption            an engine or call option has a value it cannot have
    │   ├── InvalidDimensions    `dimensions` is not between 1 and the model's own
    │   ├── UnknownPrompt        no prompt of that name is saved or configured
    │   └── UnknownTask          the checkpoint has no route for that task
    ├── UnsupportedCall          the model gives no such result; the message names what to call
    ├── InvalidInput             a text cannot be accepted; `.index` says which
    │   ├── InvalidText          neither a string nor a list of token ids
    │   ├── InvalidTokenIds      a token id is outside the vocabulary, or there are none
    │   └── TextTooLong          longer than the model reads, with truncate="error"
    ├── ModelError               the model cannot be used
    │   ├── ModelNotFound        no folder, cache, hub or package has it
    │   ├── InvalidCheckpoint    a file of it is missing, damaged or contradicts another
    │   └── UnsupportedModel     it is readable, but not something Millpond can run
    ├── EngineError              the engine cannot take or finish the call
    │   ├── EngineClosed         closed before the text was embedded
    │   ├── EngineFailed         its loop or its device died; `.__cause__` says of what
    │   ├── ProcessDied          a process that ran the model for it ended; it says how
    │   ├── QueueFull            the queue bound is reached and the caller would not wait
    │   └── DeadlineExceeded     the call's `timeout` passed first
    └── TextFailed               accepted, but no vector could be computed; `.index` says which
        ├── OutOfMemory          it does not fit in memory even on its own
        ├── NonFiniteVector      the model gave NaN or infinity for it
        └── TextsFailed          several at once: `.errors` maps each index to its TextFailed

Where Python has a type for the same mistake, ours is that type too: an
`InvalidOption` is a `ValueError`, `InvalidText` a `TypeError`, `ModelNotFound` a
`FileNotFoundError`, `DeadlineExceeded` a `TimeoutError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

__all__ = [
    "DeadlineExceeded",
    "EngineClosed",
    "EngineError",
    "EngineFailed",
    "InvalidCheckpoint",
    "InvalidDimensions",
    "InvalidInput",
    "InvalidOption",
    "InvalidText",
    "InvalidTokenIds",
    "MillpondError",
    "ModelError",
    "ModelNotFound",
    "NonFiniteVector",
    "OutOfMemory",
    "ProcessDied",
    "QueueFull",
    "TextFailed",
    "TextTooLong",
    "TextsFailed",
    "UnknownPrompt",
    "UnknownTask",
    "UnsupportedCall",
    "UnsupportedModel",
]


class MillpondError(Exception):
    """The root of everything Millpond raises on purpose."""


class InvalidOption(MillpondError, ValueError):
    """An engine or call option has a value it cannot have."""

    @classmethod
    def require_known(
        cls,
        taker: str,
        options: Mapping[str, Any],
        known: Iterable[str],
        renamed: Mapping[str, str],
    ) -> None:
        """Raise for options that are not known.

        The error says what a name has become, by `renamed`, whose names may be `options["key"]`
        too, or which of the known ones is much like it. `taker` is what takes the known ones.
        """
        names = sorted(known)
        unknown = sorted(options.keys() - set(names))
        if unknown:
            told = ", ".join(_told(name, options[name], names, renamed) for name in unknown)
            raise cls(f"unknown option {told}; {taker} takes {', '.join(names)}")


class InvalidDimensions(InvalidOption):
    """`dimensions` is not between 1 and the model's own number of dimensions."""


class UnknownPrompt(InvalidOption):
    """No prompt of that name is saved in the checkpoint or given to the engine."""


class UnknownTask(InvalidOption):
    """The checkpoint routes by task and has no route for this one."""


class UnsupportedCall(MillpondError, TypeError):
    """The model gives no result of the kind that was asked for; the message names what to call."""


class _AboutOneText(MillpondError):
    """An error that knows the place of its text in the call."""

    def __init__(self, message: str, *, index: int = 0) -> None:
        super().__init__(message)
        self.index = index

    def __str__(self) -> str:
        return f"text {self.index}: {self.args[0]}"

    def at(self, index: int) -> Self:
        """The same error for another place: a part's index becomes the whole call's."""
        return self._moved(type(self)(self.args[0], index=index))

    def _moved(self, there: Self) -> Self:
        there.__cause__ = self.__cause__
        return there.with_traceback(self.__traceback__)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args[0], self.index)


class InvalidInput(_AboutOneText, ValueError):
    """A text that cannot be accepted. `index` is its place in the call."""


class InvalidText(InvalidInput, TypeError):
    """An input that is neither a string nor a list of token ids."""


class InvalidTokenIds(InvalidInput):
    """Token ids outside the vocabulary, or an empty list of them."""


class TextTooLong(InvalidInput):
    """A text longer than the model reads, embedded with truncate="error"."""


class ModelError(MillpondError):
    """The model cannot be used."""


class ModelNotFound(ModelError, FileNotFoundError):
    """No folder, cache, hub or installed package has the model."""


class InvalidCheckpoint(ModelError):
    """A file of the checkpoint is missing, damaged or contradicts another."""


class UnsupportedModel(ModelError):
    """The checkpoint is readable, but not something Millpond can run."""


class EngineError(MillpondError):
    """The engine cannot take or finish the call."""


class EngineClosed(EngineError):
    """The engine was closed before the text was embedded."""


class EngineFailed(EngineError):
    """The engine's loop or device died; `__cause__` says of what."""

    @classmethod
    def by(cls, cause: BaseException | None) -> Self:
        """The engine is lost, and all its calls with it."""
        error = cls(
            f"the engine failed and serves no more calls ({type(cause).__name__}: {cause}); "
            "make a new one"
        )
        error.__cause__ = cause
        return error


class ProcessDied(EngineError):
    """A child process that ran the model ended by itself; the message says how, and its last lines.

    Raised while a model is loaded; later it is the cause of an `EngineFailed` or a `TextFailed`.
    """


class QueueFull(EngineError):
    """The queue bound is reached and the caller would not wait."""


class DeadlineExceeded(EngineError, TimeoutError):
    """The call's `timeout` passed before its texts were embedded."""


class TextFailed(_AboutOneText):
    """An accepted text for which no vector could be computed. `index` is its place in the call."""


class OutOfMemory(TextFailed):
    """A text that does not fit in memory even in a batch of its own."""


class NonFiniteVector(TextFailed):
    """A text for which the model gave NaN or infinity."""


class TextsFailed(TextFailed):
    """Texts of one call that failed. `errors` maps each index to its `TextFailed`."""

    def __init__(self, errors: Mapping[int, TextFailed]) -> None:
        self.errors = dict(sorted(errors.items()))
        first, error = next(iter(self.errors.items()))
        shown = ", ".join(map(str, list(self.errors)[:10])) + (", …" if len(errors) > 10 else "")
        super().__init__(
            f"{len(errors)} of the texts failed (index {shown}), the first "
            f"with {type(error).__name__}: {error}. `submit` gives the results of the others",
            index=first,
        )

    def at(self, index: int) -> Self:
        """The same errors further on: the first one's place becomes `index`."""
        offset = index - self.index
        errors = {place + offset: error.at(place + offset) for place, error in self.errors.items()}
        return self._moved(type(self)(errors))

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errors,)


def _rebuild(error: type[_AboutOneText], message: str, index: int) -> MillpondError:
    return error(message, index=index)


def _told(name: str, value: Any, known: Sequence[str], renamed: Mapping[str, str]) -> str:
    """An option that is not known, each key of a mapping by itself, and what to do about it."""
    if isinstance(value, Mapping) and value:
        keys = [f'{name}["{key}"]' for key in value]
        if any(key in renamed for key in keys):
            return ", ".join(_told(key, None, known, renamed) for key in keys)
    if name in renamed:
        return f"{name} ({renamed[name]})"
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name} (did you mean {close[0]}?)" if close else name


def first_line(error: BaseException) -> str:
    """The first line of another library's error that says anything, at most 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), "")[:200]


def summary(error: BaseException) -> str:
    """The same after the error's type; the type alone where it says nothing."""
    line = first_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
