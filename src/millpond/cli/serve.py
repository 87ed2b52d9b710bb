"""`serve`, the command that runs the server, and `main` for `python -m millpond.server`.

The server's libraries are imported after the flags are valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn

import typer

from ..config import EngineConfig, EngineOptions
from ..errors import InvalidOption, MillpondError
from ..server.settings import AppSettings, ListenSettings
from .errors import exit_after, say
from .flags import DEFAULT_MODEL, engine_options, read_flags, with_flags_of
from .serve_command import ServeCommand
from .vllm_flags import VLLM_NAMES, VllmFlags

__all__ = ["main", "serve"]

_LIBRARIES = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")


@with_flags_of(
    VllmFlags,
    ListenSettings,
    AppSettings,
    EngineConfig,
    other_names=VLLM_NAMES,
    warmup=True,  # a server is ready when it is fast
)
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Folders, or names on the hub.")
    ] = None,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="<str>", help="The same; may be repeated."),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            metavar="<str>",
            help="Names for clients: all for one model, or one for each of several.",
        ),
    ] = None,
    **flags: Any,
) -> None:
    """Serve models over HTTP, compatible with OpenAI's embeddings API.

    Every flag can be given in the environment instead: --max-length as MILLPOND_MAX_LENGTH. What is
    on the command line wins.

    \b
    Example:
      millpond serve sentence-transformers/all-MiniLM-L6-v2 --served-model-name embedding-model
    """
    of_vllm = read_flags(VllmFlags, flags)
    if of_vllm.ignored():
        say(f"ignored, without an effect here: {', '.join(of_vllm.ignored())}")
    options = of_vllm.engine_options(engine_options(flags))
    app_settings, listen = read_flags(AppSettings, flags), read_flags(ListenSettings, flags)
    named = _named([*(models or ()), *(model or ())] or [DEFAULT_MODEL], served_model_name or ())
    _run(named, options, app_settings, listen)


def _run(
    named: Sequence[tuple[str, tuple[str, ...]]],
    options: EngineOptions,
    app_settings: AppSettings,
    listen: ListenSettings,
) -> NoReturn:
    missing = [library for library in _LIBRARIES if find_spec(library) is None]
    if missing:
        raise MillpondError(
            f'{", ".join(missing)} is not installed: pip install "millpond[server]"'
        )
    from ..server.process.run import ModelPlan, run

    plans = [ModelPlan(model=model, options=options, names=names) for model, names in named]
    raise typer.Exit(run(plans, app_settings, listen))


def _named(models: Sequence[str], names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each model with its names: one model has all, several have one each.

    Raises `InvalidOption`, before any model is loaded.
    """
    if names and len(names) != len(models) > 1:
        raise InvalidOption(
            f"{len(models)} models and {len(names)} names: give --served-model-name once for each; "
            "several names of one model follow it, or the flag is repeated"
        )
    served = names or models
    if not all(name.strip() for name in served):
        raise InvalidOption("--served-model-name is empty; leave the flag out instead")
    twice = next((name for name in served if served.count(name) > 1), None)
    if twice is not None:
        raise InvalidOption(
            f"{twice!r} would be served twice: give each model a --served-model-name of its own"
        )
    if not names:
        return [(model, ()) for model in models]
    if len(models) == 1:
        return [(models[0], tuple(names))]
    return [(model, (name,)) for model, name in zip(models, names, strict=True)]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `python -m millpond.server`."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(cls=ServeCommand, context_settings={"help_option_names": ["--help", "-h"]})(serve)
    exit_after(
        partial(app, arguments, prog_name="python -m millpond.server", standalone_mode=False)
    )
