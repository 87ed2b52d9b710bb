"""The exception tree: as drawn, catchable as Python's own kinds, and whole after a pickle."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

from millpond import errors
from millpond.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidOption,
    InvalidText,
    MillpondError,
    ModelNotFound,
    NonFiniteVector,
    OutOfMemory,
    TextFailed,
    TextsFailed,
    first_line,
    summary,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]


def drawn_tree() -> dict[str, str | None]:
    """Class to parent, as the module's docstring draws them."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        parents[match[2]] = path[depth - 1] if depth else None
    return parents


def public_parent(error: type) -> str | None:
    """The nearest ancestor that is a public error."""
    return next((base.__name__ for base in error.__mro__[1:] if base in CLASSES), None)


def make(error: type[Any]) -> Any:
    if error is TextsFailed:
        return TextsFailed({4: OutOfMemory("too large", index=4), 2: TextFailed("bad", index=2)})
    if issubclass(error, InvalidInput | TextFailed):
        return error("what is wrong", index=3)
    return error("what is wrong")


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert drawn_tree() == {error.__name__: public_parent(error) for error in CLASSES}


def test_nothing_public_is_left_out_of_all() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_explained(error: type) -> None:
    assert (error.__doc__ or "").strip().endswith(".")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidOption, ValueError),
        (InvalidInput, ValueError),
        (InvalidText, TypeError),
        (ModelNotFound, FileNotFoundError),
        (DeadlineExceeded, TimeoutError),
    ],
)
def test_an_error_is_of_pythons_own_kind_too(error: type, kind: type) -> None:
    assert issubclass(error, kind)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_survives_pickling(error: type) -> None:
    original = make(error)
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is type(original)
    assert str(copy) == str(original)
    assert getattr(copy, "index", None) == getattr(original, "index", None)
    assert str(getattr(copy, "errors", None)) == str(getattr(original, "errors", None))


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_a_millpond_error_with_a_message(error: type) -> None:
    made = make(error)
    assert isinstance(made, MillpondError)
    assert str(made)


@pytest.mark.parametrize("error", [e for e in CLASSES if issubclass(e, InvalidInput | TextFailed)])
def test_an_error_about_a_text_can_be_moved_to_another_place(error: type) -> None:
    original = make(error)
    original.__cause__ = cause = KeyError("below")
    moved = original.at(original.index + 100)
    assert type(moved) is error
    assert moved.index == original.index + 100
    assert moved.__cause__ is cause
    assert original.index in (2, 3), "the original stays as it was"


def test_an_error_about_a_text_says_which() -> None:
    assert str(InvalidText("it is no text", index=7)) == "text 7: it is no text"
    assert InvalidText("it is no text").index == 0


def test_several_failed_texts_are_named_in_order_and_moved_together() -> None:
    several = make(TextsFailed)
    assert list(several.errors) == [2, 4]
    assert several.index == 2
    assert "2 of the texts failed (index 2, 4)" in str(several)
    assert "TextFailed: text 2: bad" in str(several)
    moved = several.at(12)
    assert {place: error.index for place, error in moved.errors.items()} == {12: 12, 14: 14}
    assert isinstance(moved.errors[14], OutOfMemory)


def test_of_many_failed_texts_the_first_ten_are_named() -> None:
    several = TextsFailed({n: NonFiniteVector("bad", index=n) for n in range(30)})
    assert "30 of the texts" in str(several)
    assert "8, 9, …)" in str(several)


@pytest.mark.parametrize(
    ("words", "line", "said"),
    [
        ("no such kernel\n  at line 3", "no such kernel", "RuntimeError: no such kernel"),
        ("\n  \n what it means \n", "what it means", "RuntimeError: what it means"),
        ("", "", "RuntimeError"),
        ("x" * 300, "x" * 200, "RuntimeError: " + "x" * 200),
    ],
)
def test_of_another_librarys_error_the_first_line_is_said(words: str, line: str, said: str) -> None:
    assert first_line(RuntimeError(words)) == line
    assert summary(RuntimeError(words)) == said
