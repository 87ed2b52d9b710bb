"""Options as flags of a command, made of their declaration in a dataclass.

That is `EngineConfig`, the server's settings, or one of the commands' own. A flag has the name, the
type, the default and the description that the option has there (`config.option`). `prompts` has no
flag: one line cannot say it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

from ..config import EngineConfig, EngineOptions
from .errors import CommandError

if TYPE_CHECKING:
    from ..engine.engine import Engine

__all__ = [
    "DEFAULT_MODEL",
    "ModelFlag",
    "engine_options",
    "open_engine",
    "options_of",
    "read_flags",
    "with_flags_of",
]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
ModelFlag = Annotated[
    str, typer.Option("--model", "-m", help="A folder, or a name on the Hugging Face hub.")
]

_INSTEAD = {  # kind of model -> what it gives, and what to call
    "embed": "gives embeddings, not scores: call millpond embed, or name a reranker with --model",
    "score": "is a reranker and gives scores, not embeddings: call millpond rank",
    "classify": "is a classifier, which has no command here: call classify of millpond.Engine in "
    "Python, or millpond serve and /classify",
    "sparse": "gives sparse vectors: call millpond embed with --output-kind sparse",
    "multi_vector": "gives a vector for each token: call millpond rank, or millpond embed with "
    "--output-kind tokens",
}
_LACKS = {  # kind of model -> what a model of another kind lacks
    "sparse": "gives no sparse vectors: name a SPLADE with --model",
    "multi_vector": "gives no token vectors: name a ColBERT with --model",
}
Command = TypeVar("Command", bound=Callable[..., object])
Options = TypeVar("Options")
Names = Mapping[str, Sequence[str]]


def with_flags_of(
    *declared: type, other_names: Names | None = None, **defaults: object
) -> Callable[[Command], Command]:
    """Give a command a flag for every option of these dataclasses, in the place of its `**flags`.

    What the command, or a dataclass before, declares is left to it. `other_names` are further flags
    for an option, and `defaults` those of the command where they are not the declared ones.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        found = dict(list(signature.parameters.items())[:-1])
        for config in declared:
            for parameter in _parameters(config, other_names or {}, defaults):
                found.setdefault(parameter.name, parameter)
        command.__signature__ = signature.replace(parameters=[*found.values()])  # type: ignore[attr-defined]
        return command

    return decorate


def options_of(declared: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags of a command say of the options of a dataclass."""
    given = {option.name: flags.get(option.name) for option in fields(declared)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def read_flags(declared: Callable[..., Options], flags: Mapping[str, Any]) -> Options:
    """The options of a dataclass, as the flags of a command say."""
    return declared(**options_of(declared, flags))


def engine_options(flags: Mapping[str, Any]) -> EngineOptions:
    """What the flags of a command say to an engine."""
    return cast(EngineOptions, options_of(EngineConfig, flags))


def open_engine(model: str, flags: Mapping[str, Any], *, kinds: Sequence[str] = ()) -> Engine:
    """An engine with the options of a command's flags.

    Raises what `Engine` raises, and `CommandError` for a model that is of none of the kinds.
    """
    from ..engine.engine import Engine

    engine = Engine(model, **engine_options(flags))
    if kinds and not set(kinds).intersection(engine.info().kinds):
        engine.close(drain=False)
        lacks = _LACKS.get(kinds[0]) if len(kinds) == 1 else None
        raise CommandError(f"{model} {lacks or _INSTEAD[engine.info().kind]}")
    return engine


def _parameters(
    declared: Any, other_names: Names, defaults: Mapping[str, object]
) -> list[inspect.Parameter]:
    hints = get_type_hints(declared)
    return [
        _parameter(option, kind, other_names.get(option.name, ()), defaults)
        for option in fields(declared)
        if option.name != "model" and (kind := _kind(hints[option.name])) is not None
    ]


def _parameter(
    option: Field[Any], kind: Any, other_names: Sequence[str], defaults: Mapping[str, object]
) -> inspect.Parameter:
    default = defaults.get(option.name, option.default)
    repeated, is_union = get_origin(kind) is list, kind is _NumberOrWord
    flag = option.metadata["flag"] or f"--{option.name.replace('_', '-')}"
    is_switch = bool in (kind, *get_args(kind)) and default is not False
    metavar = "WORD|NUMBER" if is_union else "<str>" if repeated else None
    information = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_switch else flag,
        *other_names,
        help=option.metadata["help"] + " May be repeated." * repeated,
        parser=_number_or_word if is_union else None,
        metavar=metavar,
        min=option.metadata["least"],
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if repeated else default,
        annotation=Annotated[str if is_union else kind, information],
    )


class _NumberOrWord:
    """The kind of an option that takes either."""


def _kind(hint: Any) -> Any:
    """The type of the flag for an option of this type; None for no flag.

    A flag for one or several values is repeated.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    origins = [origin for kind in kinds if isinstance(origin := get_origin(kind), type)]
    if any(issubclass(origin, Mapping) for origin in origins):
        return None
    if any(issubclass(origin, Sequence) for origin in origins):
        return list[str]
    return _NumberOrWord if len(kinds) > 1 else hint


def _number_or_word(value: str) -> int | str:
    try:
        return int(value)
    except ValueError:
        return value
