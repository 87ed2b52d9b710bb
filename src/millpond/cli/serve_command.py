"""`ServeCommand`: flags from the environment, and several names after one flag."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise, takewhile
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import InvalidOption, MillpondError

__all__ = ["ServeCommand"]

_NAMES_FLAG = "--served-model-name"
_PREFIX = "MILLPOND_"
# What is on the command line replaces the other, where that is in the environment.
_REPLACES = {
    "models": ("model",),
    "prefix_cache": ("enable_prefix_caching",),
    "memory_bytes": ("memory_utilization",),
    "memory_utilization": ("memory_bytes",),
    "host": ("uds",),
    "port": ("uds",),
}


class ServeCommand(TyperCommand):
    """Takes every flag from the environment, too: `--max-length` as `MILLPOND_MAX_LENGTH`.

    Several values of one variable are separated by spaces. Takes several names after one
    `--served-model-name`, as vLLM does.
    """

    def __init__(self, *positional: Any, **options: Any) -> None:
        super().__init__(*positional, **options)
        for option in self._options():
            option.envvar = [_variable(flag) for flag in option.opts if flag.startswith("--")]
            option.show_envvar = False  # the help says it once for all

    def _options(self) -> Iterator[Any]:
        return (one for one in self.params if one.opts[0].startswith("-") and one.name != "help")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        switches = {
            name
            for option in self.params
            if getattr(option, "is_flag", False)
            for name in (*option.opts, *option.secondary_opts)
        }
        try:
            return super().parse_args(ctx, _one_name_a_flag(args, switches))
        except typer.BadParameter as error:
            if error.param is not None and _is_from(ctx, error.param.name, "ENVIRONMENT"):
                _name_variable(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        self._refuse_misspelt()
        for name, others in _REPLACES.items():
            for other in others:
                if _is_from(ctx, name, "COMMANDLINE") and _is_from(ctx, other, "ENVIRONMENT"):
                    ctx.params[other] = None
        try:
            return super().invoke(ctx)
        except MillpondError as error:
            named = ", ".join(self._variables_in(ctx, str(error)))
            if not named:
                raise
            raise InvalidOption(f"{error} (from {named} in the environment)") from error

    def _refuse_misspelt(self) -> None:
        """Raise `InvalidOption` for a variable that is nearly one: a key unread would be no key."""
        known = [
            name.removeprefix(_PREFIX)
            for option in self._options()
            for name in option.envvar or ()  # Typer's own, for completion, have none
        ]
        found = {name.removeprefix(_PREFIX) for name in os.environ if name.startswith(_PREFIX)}
        for name in sorted(found.difference(known)):
            for meant in get_close_matches(name, known, n=1, cutoff=0.8):
                raise InvalidOption(
                    f"{_PREFIX}{name} in the environment is no flag's variable; did you mean "
                    f"{_PREFIX}{meant}? Rename or unset it"
                )

    def _variables_in(self, ctx: Any, message: str) -> Iterator[str]:
        """The variables that gave an option, or its value, that an error is about."""
        for option in self._options():
            if _is_from(ctx, option.name, "ENVIRONMENT"):
                variable = _variable_set(option)
                values = [repr(value) for value in os.environ[variable].split()]
                if any(one in message for one in (f"{option.name}=", *option.opts, *values)):
                    yield variable


def _name_variable(error: typer.BadParameter) -> None:
    """Of an error about a value of the environment."""
    variable = _variable_set(error.param)
    error.param_hint = f"{variable} in the environment"
    if os.environ[variable].startswith("tcp://"):
        error.message += (
            " Kubernetes sets it for a service called millpond: give the pod enableServiceLinks: "
            "false, or the service another name."
        )


def _variable(flag: str) -> str:
    return _PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def _variable_set(option: Any) -> str:
    """Of the variables of an option the one that is read: the first that is set."""
    found: str = next(name for name in option.envvar if os.environ.get(name))
    return found


def _is_from(ctx: Any, name: str, source: str) -> bool:
    found = ctx.get_parameter_source(name)
    return found is not None and found.name == source


def _one_name_a_flag(arguments: Sequence[str], switches: Collection[str] = ()) -> list[str]:
    """Repeat the flag before each of its names; `switches` are the flags that take no value.

    Unless the model is named before, what follows the first name is the model.
    """
    arguments = list(arguments)
    if arguments.count(_NAMES_FLAG) != 1:
        return arguments
    start = arguments.index(_NAMES_FLAG) + 1
    is_named = any(one.partition("=")[0] == "--model" for one in arguments) or any(
        not one.startswith("-")
        and (not before.startswith("-") or "=" in before or before in switches)
        for before, one in pairwise(["", *arguments[: start - 1]])
    )
    names = list(takewhile(lambda one: not one.startswith("-"), arguments[start:]))
    if not is_named or len(names) < 2:
        return arguments
    flagged = [part for name in names[1:] for part in (_NAMES_FLAG, name)]
    return [*arguments[: start + 1], *flagged, *arguments[start + len(names) :]]
