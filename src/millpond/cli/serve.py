"""`serve`, the command that runs the server, and `main` for `python -m millpond.server`.

The server's libraries are imported after the flags are valid.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from itertools import pairwise, takewhile
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from ..config import EngineOptions
from ..errors import InvalidOption, MillpondError
from ..server.settings import AppSettings, ListenSettings
from . import serve_options as flags
from .engine_flags import engine_options, with_engine_flags

__all__ = ["ServeCommand", "main", "serve"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
USAGE_ERROR = 2
_NAMES_FLAG = "--served-model-name"
VLLM_DTYPES: dict[str, Any] = {"float": "float32", "half": "float16"}
_LIBRARIES = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")


@with_engine_flags(flags.VLLM_NAMES, warmup=True)  # a server is ready when it is fast
def serve(
    models: flags.Models = None,
    *,
    model: flags.ModelFlags = None,
    served_model_name: flags.ServedNames = None,
    host: flags.Host = ListenSettings.host,
    port: flags.Port = ListenSettings.port,
    uds: flags.Uds = None,
    dtype: flags.DType = "auto",
    tensor_parallel_size: flags.TensorParallelSize = 1,
    enable_prefix_caching: flags.EnablePrefixCaching = None,
    task: flags.Task = "auto",
    runner: flags.RunnerKind = "auto",
    convert: flags.Convert = "auto",
    load_format: flags.LoadFormat = "auto",
    max_num_seqs: flags.MaxNumSeqs = None,
    seed: flags.Seed = None,
    enforce_eager: flags.EnforceEager = False,
    disable_log_requests: flags.DisableLogRequests = False,
    disable_log_stats: flags.DisableLogStats = False,
    api_key: flags.ApiKey = None,
    protect_metrics: flags.ProtectMetrics = False,
    allow_raw_token_ids: flags.AllowRawTokenIds = False,
    ignore_unknown_fields: flags.IgnoreUnknownFields = False,
    cors_origin: flags.CorsOrigin = None,
    root_path: flags.RootPath = "",
    ssl_certfile: flags.SslCertfile = None,
    ssl_keyfile: flags.SslKeyfile = None,
    ssl_keyfile_password: flags.SslKeyfilePassword = None,
    max_body_bytes: flags.MaxBodyBytes = AppSettings.max_body_bytes,
    request_timeout_s: flags.RequestTimeout = AppSettings.request_timeout_s,
    idle_timeout_s: flags.IdleTimeout = ListenSettings.idle_timeout_s,
    header_timeout_s: flags.HeaderTimeout = ListenSettings.header_timeout_s,
    drain_timeout_s: flags.DrainTimeout = ListenSettings.drain_timeout_s,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
    **engine_flags: Any,
) -> None:
    """Serve models over HTTP, compatible with OpenAI's embeddings API.

    \b
    Example:
      millpond serve sentence-transformers/all-MiniLM-L6-v2 --served-model-name embedding-model
    """
    _require_one_device(tensor_parallel_size)
    _warn_of_ignored(
        max_num_seqs=max_num_seqs,
        seed=seed,
        enforce_eager=enforce_eager,
        disable_log_requests=disable_log_requests,
        disable_log_stats=disable_log_stats,
    )
    options = engine_options(engine_flags)
    options["dtype"] = VLLM_DTYPES.get(dtype, dtype)
    if enable_prefix_caching is not None:
        options["prefix_cache"] = "auto" if enable_prefix_caching else "off"
    app_settings = AppSettings(
        api_keys=tuple(api_key or ()),
        protect_metrics=protect_metrics,
        cors_origins=tuple(cors_origin or ()),
        root_path=root_path,
        max_body_bytes=max_body_bytes,
        request_timeout_s=request_timeout_s,
        allow_raw_token_ids=allow_raw_token_ids,
        ignore_unknown_fields=ignore_unknown_fields,
    )
    listen = ListenSettings(
        host=host,
        port=port,
        uds=uds,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        ssl_keyfile_password=ssl_keyfile_password,
        idle_timeout_s=idle_timeout_s,
        header_timeout_s=header_timeout_s,
        drain_timeout_s=drain_timeout_s,
        log_level=log_level,
        log_format=log_format,
    )
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
    from ..server.process import ModelPlan, run

    plans = [ModelPlan(model=model, options=options, names=names) for model, names in named]
    raise typer.Exit(run(plans, app_settings, listen))


def _require_one_device(tensor_parallel_size: int) -> None:
    if tensor_parallel_size != 1:
        raise InvalidOption(
            f"--tensor-parallel-size {tensor_parallel_size}: tensor parallelism is not "
            "supported; leave the flag out, or run one server per device behind a load balancer"
        )


def _warn_of_ignored(**given: object) -> None:
    """Print which of the given flags have no effect; `--help` says why."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if names:
        typer.echo(f"millpond: ignored, without an effect here: {', '.join(names)}", err=True)


class ServeCommand(TyperCommand):
    """Takes several names after one `--served-model-name`, as vLLM does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        switches = {
            name
            for option in self.params
            if getattr(option, "is_flag", False)
            for name in (*option.opts, *option.secondary_opts)
        }
        return super().parse_args(ctx, _one_name_a_flag(args, switches))


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
    """Entry point of `python -m millpond.server`: errors are one line, with exit status 2."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(cls=ServeCommand, context_settings={"help_option_names": ["--help", "-h"]})(serve)
    try:
        status = app(arguments, prog_name="python -m millpond.server", standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except MillpondError as error:
        _fail(str(error))
    sys.exit(status or 0)


def _fail(message: str) -> NoReturn:
    print(f"millpond: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USAGE_ERROR)
