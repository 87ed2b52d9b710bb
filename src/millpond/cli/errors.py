"""`CommandError`, what a command says on stderr, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from ..errors import MillpondError

__all__ = ["INTERRUPTED", "CommandError", "exit_after", "is_terminal", "say"]

INTERRUPTED = 130  # 128 + SIGINT, as in shells
USAGE_ERROR = 2
EXTRA_LIBRARIES = ("orjson", "pyarrow")


class CommandError(MillpondError):
    """Its message is printed as one line."""


def exit_after(run: Callable[[], Any]) -> NoReturn:
    """Run a command and exit with its status; an error is one line on stderr, and status 2."""
    try:
        status = run()
    except typer.TyperException as error:
        _fail(f"{_one_line(error.format_message())}{_help_hint(error)}")
    except MillpondError as error:
        _fail(_one_line(str(error)))
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_LIBRARIES:
            raise
        _fail(f'{error.name} is not installed: pip install "millpond[cli]"')
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except typer.Abort:
        _fail("aborted")
    sys.exit(status or 0)


def say(message: str) -> None:
    """A line on stderr, where there is one."""
    if sys.stderr is not None:
        print(f"millpond: {message}", file=sys.stderr)


def is_terminal() -> bool:
    """Whether stderr is one."""
    return sys.stderr is not None and sys.stderr.isatty()


def _fail(message: str) -> NoReturn:
    say(f"error: {message}")
    sys.exit(USAGE_ERROR)


def _one_line(message: str) -> str:
    """The lines of a list are joined by semicolons."""
    lines = [" ".join(line.split()).removeprefix("- ") for line in message.splitlines()]
    joined = ""
    for line in filter(None, lines):
        between = " " if not joined or joined[-1] in ":;,." else "; "
        joined = f"{joined}{between}{line}".strip()
    return joined


def _help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f" See '{context.command_path} --help'." if context is not None else ""
