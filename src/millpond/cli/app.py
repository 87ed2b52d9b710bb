"""The `millpond` command: its subcommands and their errors.

A `MillpondError` or `OSError` becomes one line on stderr and exit code 2; a broken pipe ends the
command silently.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version as installed_version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .embed import embed
from .errors import exit_after
from .info import info
from .rank import rank
from .serve import serve
from .serve_command import ServeCommand

__all__ = ["app", "main"]

BROKEN_PIPE = 141  # 128 + SIGPIPE, as in shells


class Commands(TyperGroup):
    """The subcommands. Called without one, it shows the help."""

    def main(self, args: Sequence[str] | None = None, *positional: Any, **options: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        options["standalone_mode"] = False
        exit_after(partial(super().main, arguments, *positional, **options))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `millpond … | head`
            _discard_standard_output()
            ctx.exit(BROKEN_PIPE)


def _discard_standard_output() -> None:
    """Redirect it, so that flushing it when the interpreter exits does not fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


app = typer.Typer(
    cls=Commands,
    name="millpond",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(short_help="Embed a file of texts into a file of vectors.")(embed)
app.command(short_help="Show a checkpoint's settings and how it runs here.")(info)
app.command(short_help="Order the texts of a file by a query.")(rank)
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
    """Embed and rank texts with sentence-transformers models.

    \b
    Example:
      millpond embed reviews.jsonl -o reviews.parquet
    """


def main() -> None:
    """Entry point of the `millpond` script."""
    app(prog_name="millpond")
