"""The flags of `serve` with their help; docs/server.md explains them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = [
    "VLLM_NAMES",
    "AllowRawTokenIds",
    "ApiKey",
    "Convert",
    "CorsOrigin",
    "DType",
    "DisableLogRequests",
    "DisableLogStats",
    "DrainTimeout",
    "EnablePrefixCaching",
    "EnforceEager",
    "HeaderTimeout",
    "Host",
    "IdleTimeout",
    "IgnoreUnknownFields",
    "LoadFormat",
    "LogFormat",
    "LogLevel",
    "MaxBodyBytes",
    "MaxNumSeqs",
    "ModelFlags",
    "Models",
    "Port",
    "ProtectMetrics",
    "RequestTimeout",
    "RootPath",
    "RunnerKind",
    "Seed",
    "ServedNames",
    "SslCertfile",
    "SslKeyfile",
    "SslKeyfilePassword",
    "Task",
    "TensorParallelSize",
    "Uds",
]

Names = list[str] | None

VLLM_NAMES = {
    "cache_dir": ("--download-dir",),
    "max_batch_tokens": ("--max-num-batched-tokens",),
    "max_length": ("--max-model-len",),
    "memory_utilization": ("--gpu-memory-utilization",),
}
"""Options of an engine that have a flag of vLLM's name, too."""

Models = Annotated[Names, typer.Argument(metavar="MODEL", help="Folders, or names on the hub.")]
ModelFlags = Annotated[Names, typer.Option("--model", help="The same; may be repeated.")]
ServedNames = Annotated[
    Names,
    typer.Option(
        "--served-model-name",
        help="Names for clients: all for one model, or one for each of several.",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")]
Port = Annotated[
    int, typer.Option(envvar="MILLPOND_PORT", help="Port to listen on; 0 for any that is free.")
]
Uds = Annotated[str | None, typer.Option(help="Unix domain socket instead of host and port.")]
DType = Annotated[
    Literal["auto", "float32", "float16", "bfloat16", "int8", "float", "half"],
    typer.Option("--dtype", help="Precision of the transformer."),
]

TensorParallelSize = Annotated[
    int,
    typer.Option("--tensor-parallel-size", "-tp", help="Devices per model: only 1."),
]
EnablePrefixCaching = Annotated[
    bool | None,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="vLLM's: --prefix-cache auto, or off.",
        show_default=False,
    ),
]

# Of vLLM's, with the one meaning that they have here; any other value is an error.
Task = Annotated[
    Literal["auto", "embed", "embedding"],
    typer.Option("--task", help="vLLM's: models embed."),
]
RunnerKind = Annotated[
    Literal["auto", "pooling"], typer.Option("--runner", help="vLLM's: models embed.")
]
Convert = Annotated[
    Literal["auto", "embed", "none"], typer.Option("--convert", help="vLLM's: models embed.")
]
LoadFormat = Annotated[
    Literal["auto", "safetensors"],
    typer.Option("--load-format", help="vLLM's: weights are read as they are."),
]

# vLLM's, without an effect here.
MaxNumSeqs = Annotated[
    int | None, typer.Option("--max-num-seqs", help="vLLM's, ignored: tokens bound a batch.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="vLLM's, ignored: nothing here is random.")
]
EnforceEager = Annotated[
    bool, typer.Option("--enforce-eager", help="vLLM's, ignored: CUDA graphs stay.")
]
DisableLogRequests = Annotated[
    bool, typer.Option("--disable-log-requests", help="vLLM's, ignored: no text is ever logged.")
]
DisableLogStats = Annotated[
    bool, typer.Option("--disable-log-stats", help="vLLM's, ignored: no statistics are logged.")
]
ApiKey = Annotated[
    Names,
    typer.Option(
        "--api-key",
        envvar="MILLPOND_API_KEY",
        help="Key that clients must send; may be repeated. Better given in the environment, "
        "where process lists do not show it.",
    ),
]
ProtectMetrics = Annotated[
    bool, typer.Option("--protect-metrics", help="Require the API key at /metrics too.")
]
AllowRawTokenIds = Annotated[
    bool,
    typer.Option(
        "--allow-raw-token-ids", help="Accept token ids without the model's special tokens."
    ),
]
IgnoreUnknownFields = Annotated[
    bool,
    typer.Option("--ignore-unknown-fields", help="Ignore unknown fields of a body."),
]
CorsOrigin = Annotated[
    Names, typer.Option("--cors-origin", help="Origin whose pages may call; may be repeated.")
]
RootPath = Annotated[str, typer.Option(help="Prefix under which a proxy publishes the server.")]
SslCertfile = Annotated[str | None, typer.Option(help="Certificate chain, to speak HTTPS.")]
SslKeyfile = Annotated[str | None, typer.Option(help="Its private key.")]
SslKeyfilePassword = Annotated[
    str | None,
    typer.Option(
        envvar="MILLPOND_SSL_KEYFILE_PASSWORD",
        help="The key's passphrase. Better given in the environment.",
    ),
]
MaxBodyBytes = Annotated[int, typer.Option(help="Largest request body.")]
RequestTimeout = Annotated[float, typer.Option(help="Longest time for a request.")]
IdleTimeout = Annotated[
    float, typer.Option("--idle-timeout-s", help="Longest time a connection may be idle.")
]
HeaderTimeout = Annotated[
    float, typer.Option("--header-timeout-s", help="Longest time for the headers of a request.")
]
DrainTimeout = Annotated[float, typer.Option(help="Longest time to finish requests after SIGTERM.")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(help="Lowest level to log.")
]
LogFormat = Annotated[Literal["text", "json"], typer.Option(help="Format of log lines.")]
