"""`serve`, the command that runs the server, and `main` for `python -m millpond.server`.

The server's libraries are imported after the flags are valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NoReturn

import typer

from ..config import EngineConfig, EngineOptions
from ..errors import InvalidOption, MillpondError
from ..server.settings import AppSettings, ListenSettings
from .errors import exit_after
from .flags import DEFAULT_MODEL, engine_options, options_of, with_flags_of
from .serve_command import ServeCommand

__all__ = ["main", "serve"]

VLLM_DTYPES: dict[str, Any] = {"float": "float32", "half": "float16"}
VLLM_NAMES = {
    "cache_dir": ("--download-dir",),
    "max_batch_tokens": ("--max-num-batched-tokens",),
    "max_length": ("--max-model-len",),
    "memory_utilization": ("--gpu-memory-utilization",),
    "tensor_parallel_size": ("-tp",),
}
"""Options of an engine that have a flag of vLLM's name, too."""
_LIBRARIES = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")


@with_flags_of(
    ListenSettings, AppSettings, EngineConfig, other_names=VLLM_NAMES, warmup=True
)  # a server is ready when it is fast
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
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8", "float", "half"],
        typer.Option("--dtype", help="Precision of the transformer."),
    ] = "auto",
    enable_prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="vLLM's: --prefix-cache auto, or off.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        Literal["auto", "embed", "embedding", "score", "classify"],
        typer.Option("--task", help="vLLM's: the checkpoint says."),
    ] = "auto",
    runner: Annotated[
        Literal["auto", "pooling"], typer.Option("--runner", help="vLLM's: no model generates.")
    ] = "auto",
    convert: Annotated[
        Literal["auto", "embed", "classify", "none"],
        typer.Option("--convert", help="vLLM's: the checkpoint says."),
    ] = "auto",
    load_format: Annotated[
        Literal["auto", "safetensors"],
        typer.Option("--load-format", help="vLLM's: weights are read as they are."),
    ] = "auto",
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", help="vLLM's, ignored: tokens bound a batch.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="vLLM's, ignored: nothing here is random.")
    ] = None,
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="vLLM's, ignored: CUDA graphs stay.")
    ] = False,
    disable_log_requests: Annotated[
        bool,
        typer.Option("--disable-log-requests", help="vLLM's, ignored: no text is ever logged."),
    ] = False,
    disable_log_stats: Annotated[
        bool, typer.Option("--disable-log-stats", help="vLLM's, ignored: no statistics are logged.")
    ] = False,
    **flags: Any,
) -> None:
    """Serve models over HTTP, compatible with OpenAI's embeddings API.

    Every flag can be given in the environment instead: --max-length as MILLPOND_MAX_LENGTH. What is
    on the command line wins.

    \b
    Example:
      millpond serve sentence-transformers/all-MiniLM-L6-v2 --served-model-name embedding-model
    """
    _warn_of_ignored(
        max_num_seqs=max_num_seqs,
        seed=seed,
        enforce_eager=enforce_eager,
        disable_log_requests=disable_log_requests,
        disable_log_stats=disable_log_stats,
    )
    options = engine_options(flags)
    options["dtype"] = VLLM_DTYPES.get(dtype, dtype)
    if enable_prefix_caching is not None:
        options["prefix_cache"] = "auto" if enable_prefix_caching else "off"
    app_settings = AppSettings(**options_of(AppSettings, flags))
    listen = ListenSettings(**options_of(ListenSettings, flags))
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


def _warn_of_ignored(**given: object) -> None:
    """Print which of the given flags have no effect; `--help` says why."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if names:
        typer.echo(f"millpond: ignored, without an effect here: {', '.join(names)}", err=True)


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
