"""The command line, `millpond …`: one module per command, and what `embed` is made of.

A command turns its flags into calls of `Engine` and prints what comes back. Nothing heavy is
imported before a command runs, so that `millpond --help` answers at once.
"""

from .app import app, main

__all__ = ["app", "main"]
