"""The options of an engine as flags of a command, made of `EngineConfig`'s own declaration.

Each has the name, the type, the default and the description that it has there. `prompts` has no
flag: one line cannot say it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import typer

from ..config import EngineConfig, EngineOptions

__all__ = ["engine_options", "with_engine_flags"]

Command = TypeVar("Command", bound=Callable[..., object])
Names = Mapping[str, Sequence[str]]


def with_engine_flags(
    other_names: Names | None = None, **defaults: object
) -> Callable[[Command], Command]:
    """Give a command a flag for every option of an engine, in the place of its `**options`.

    A parameter that the command declares itself is left to it. `other_names` are further flags
    for an option, and `defaults` those of the command where they are not the engine's.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        *own, _ = signature.parameters.values()
        flags = _flags(other_names or {}, defaults)
        flags = [flag for flag in flags if flag.name not in signature.parameters]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def engine_options(flags: Mapping[str, Any]) -> EngineOptions:
    """What the flags of a command say to an engine."""
    return cast(EngineOptions, {name: flag for name, flag in flags.items() if flag is not None})


def _flags(other_names: Names, defaults: Mapping[str, object]) -> list[inspect.Parameter]:
    hints = get_type_hints(EngineConfig)
    flags = []
    for option in fields(EngineConfig):
        kind, parser = _kind(hints[option.name])
        if option.name == "model" or kind is None:
            continue
        default = defaults.get(option.name, option.default)
        repeated = get_origin(kind) is list
        name = option.name.replace("_", "-")
        flag = typer.Option(
            f"--{name}/--no-{name}" if default is True else f"--{name}",
            *other_names.get(option.name, ()),
            help=option.metadata["help"] + " May be repeated." * repeated,
            parser=parser,
            metavar=parser and "WORD|NUMBER",
        )
        parameter = inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if repeated else default,
            annotation=Annotated[kind, flag],
        )
        flags.append(parameter)
    return flags


def _kind(hint: Any) -> tuple[Any, Callable[[str], int | str] | None]:
    """The type of the flag for an option of this type, None for no flag, and its parser.

    A flag for one or several values is repeated.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    by_origin = {get_origin(kind): kind for kind in kinds}
    if Mapping in by_origin:
        return None, None
    if Sequence in by_origin:
        return list[str], None
    if len(kinds) > 1:
        return str, _number_or_word
    return hint, None


def _number_or_word(value: str) -> int | str:
    try:
        return int(value)
    except ValueError:
        return value
