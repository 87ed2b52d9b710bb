"""`serve`, the command that runs the server, and `main`, which is `python -m millpond.server`.

Only flags are read here; the server and its libraries are imported when it is to run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

import typer

from ..config import EngineConfig, EngineOptions
from ..errors import InvalidOption, MillpondError
from . import flags
from .settings import AppSettings, ListenSettings

__all__ = ["main", "serve"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
USAGE_ERROR = 2
_VLLM_DTYPES = {"float": "float32", "half": "float16"}
_LIBRARIES = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")


def serve(
    models: flags.Models = None,
    *,
    model: flags.ModelFlags = None,
    served_model_name: flags.ServedNames = None,
    host: flags.Host = ListenSettings.host,
    port: flags.Port = ListenSettings.port,
    uds: flags.Uds = None,
    dtype: flags.DType = "auto",
    device: flags.Device = "auto",
    revision: flags.Revision = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    max_model_len: flags.MaxModelLen = None,
    max_num_batched_tokens: flags.MaxBatchTokens = None,
    max_queued_tokens: flags.MaxQueuedTokens = EngineConfig.max_queue_tokens,
    max_query_wait_ms: flags.MaxQueryWait = EngineConfig.max_query_wait_ms,
    gpu_memory_utilization: flags.MemoryUtilization = None,
    tensor_parallel_size: flags.TensorParallelSize = 1,
    api_key: flags.ApiKey = None,
    protect_metrics: flags.ProtectMetrics = False,
    allow_raw_token_ids: flags.AllowRawTokenIds = False,
    cors_origin: flags.CorsOrigin = None,
    root_path: flags.RootPath = "",
    ssl_certfile: flags.SslCertfile = None,
    ssl_keyfile: flags.SslKeyfile = None,
    max_body_bytes: flags.MaxBodyBytes = AppSettings.max_body_bytes,
    request_timeout_s: flags.RequestTimeout = AppSettings.request_timeout_s,
    idle_timeout_s: flags.IdleTimeout = ListenSettings.idle_timeout_s,
    header_timeout_s: flags.HeaderTimeout = ListenSettings.header_timeout_s,
    drain_timeout_s: flags.DrainTimeout = ListenSettings.drain_timeout_s,
    log_level: flags.LogLevel = "info",
    log_format: flags.LogFormat = "text",
) -> None:
    """Serve models over HTTP, as OpenAI's API has embeddings.

    \b
    Example:
      millpond serve sentence-transformers/all-MiniLM-L6-v2 --served-model-name embedding-model
    """
    _require_one_device(tensor_parallel_size)
    options: dict[str, Any] = {
        "dtype": _VLLM_DTYPES.get(dtype, dtype),
        "device": device,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "max_length": max_model_len,
        "max_batch_tokens": "auto" if max_num_batched_tokens is None else max_num_batched_tokens,
        "max_queue_tokens": max_queued_tokens,
        "max_query_wait_ms": max_query_wait_ms,
        "warmup": True,  # a server is ready when it is fast
        **_memory_option(gpu_memory_utilization),
    }
    app_settings = AppSettings(
        api_keys=tuple(api_key or ()),
        protect_metrics=protect_metrics,
        cors_origins=tuple(cors_origin or ()),
        root_path=root_path,
        max_body_bytes=max_body_bytes,
        request_timeout_s=request_timeout_s,
        allow_raw_token_ids=allow_raw_token_ids,
    )
    listen = ListenSettings(
        host=host,
        port=port,
        uds=uds,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        idle_timeout_s=idle_timeout_s,
        header_timeout_s=header_timeout_s,
        drain_timeout_s=drain_timeout_s,
        log_level=log_level,
        log_format=log_format,
    )
    named = _named([*(models or ()), *(model or ())] or [DEFAULT_MODEL], served_model_name or ())
    _run(named, EngineOptions(**options), app_settings, listen)  # type: ignore[typeddict-item]


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
    from .process import ModelPlan, run

    plans = [ModelPlan(model=model, options=options, names=names) for model, names in named]
    raise typer.Exit(run(plans, app_settings, listen))


def _require_one_device(tensor_parallel_size: int) -> None:
    if tensor_parallel_size != 1:
        raise InvalidOption(
            f"--tensor-parallel-size {tensor_parallel_size}: a model runs on one device here; "
            "leave the flag out, or run one server a device behind a load balancer"
        )


def _memory_option(share: float | None) -> dict[str, float]:
    if share is None:
        return {}
    if "memory_utilization" not in EngineOptions.__annotations__:
        raise InvalidOption(
            "--gpu-memory-utilization: this version keeps no memory for keys and values, so there "
            "is nothing to size; leave the flag out"
        )
    return {"memory_utilization": share}


def _named(models: Sequence[str], names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each model with its names: one model has them all, several have one each.

    A model without names goes by its own, so what is wrong is found before anything is loaded.
    """
    if names and len(names) != len(models) > 1:
        raise InvalidOption(
            f"{len(models)} models and {len(names)} names: give --served-model-name once for each"
        )
    served = names or models
    if not all(name.strip() for name in served):
        raise InvalidOption("a name to serve a model under is empty; leave the flag out instead")
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
    """Run `serve` as the command of this process: errors in one line, exit status 2."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(context_settings={"help_option_names": ["--help", "-h"]})(serve)
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
