"""The command line, `millpond …`: a module per command, and `files/` for `millpond embed`.

A command turns its flags into calls of `Engine` and prints the results. Large libraries are
imported only when a command runs, so that `millpond --help` is quick.
"""

from .app import app, main

__all__ = ["app", "main"]
