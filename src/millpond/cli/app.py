"""The `millpond` command: its subcommands and their errors.

A `MillpondError` or `OSError` becomes one line on stderr and exit code 2; a broken pipe ends the
command silently.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import MillpondError
from .embed import embed
from .info import info
from .serve import ServeCommand, serve

__all__ = ["app", "main"]

USAGE_ERROR = 2
BROKEN_PIPE = 141  # 128 + SIGPIPE, as in shells
EXTRA_LIBRARIES = ("orjson", "pyarrow")


class Commands(TyperGroup):
    """The subcommands. Called without one, it shows the help."""

    def main(self, args: Sequence[str] | None = None, *positional: Any, **options: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        try:
            status = super().main(arguments or ["--help"], *positional, **options)
        except typer.TyperException as error:
            self._fail(f"{_one_line(error.format_message())}{_help_hint(error)}")
        except MillpondError as error:
            self._fail(_one_line(str(error)))
        except ModuleNotFoundError as error:
            if error.name not in EXTRA_LIBRARIES:
                raise
            self._fail(f'{error.name} is not installed: pip install "millpond[cli]"')
        except OSError as error:
            self._fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except typer.Abort:
            self._fail("aborted")
        sys.exit(status or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `millpond … | head`
            _discard_standard_output()
            ctx.exit(BROKEN_PIPE)

    def _fail(self, message: str) -> NoReturn:
        if sys.stderr is not None:
            print(f"millpond: error: {message}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _discard_standard_output() -> None:
    """Redirect it, so that flushing it when the interpreter exits does not fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


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


app = typer.Typer(
    cls=Commands,
    name="millpond",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(short_help="Embed a file of texts into a file of vectors.")(embed)
app.command(short_help="Show a checkpoint's settings and how it runs here.")(info)
app.command(cls=ServeCommand, short_help="Serve models over HTTP.")(serve)


def _version(requested: bool) -> None:
    if requested:
        print(f"millpond {installed_version('millpond')}")
        raise typer.Exit()


@app.callback()
def millpond(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Embed texts with sentence-transformers models.

    \b
    Example:
      millpond embed reviews.jsonl -o reviews.parquet
    """


def main() -> None:
    """Entry point of the `millpond` script."""
    app(prog_name="millpond")
