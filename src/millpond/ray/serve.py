"""`deployment`: Millpond's server as a deployment of Ray Serve.

Each replica runs the application of `millpond serve` over engines of its own. Requests are not
batched in front of it, since the engine batches them. Serve adds replicas while tokens queue.

    serve run millpond.ray.serve:app model=BAAI/bge-base-en-v1.5 gpus=1 num_replicas=1:8
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from ray import serve

from ..config import EngineConfig, EngineOptions
from ..engine.engine import Engine
from ..errors import EngineFailed, InvalidOption
from ..server.app import create_app
from ..server.models import ServedModel
from ..server.settings import AppSettings
from .actors import engine_options
from .autoscaling import QUEUED_TOKENS, QueuedTokens

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["app", "deployment"]

Model = str | os.PathLike[str]
KEYS = "MILLPOND_API_KEY"


def deployment(
    model: Model | Sequence[Model],
    *,
    served_model_name: str | Sequence[str] | None = None,
    name: str = "millpond",
    num_replicas: int | tuple[int, int] = 1,
    gpus: float = 0,
    cpus: float = 1,
    target_queued_tokens: int = 100_000,
    drain_timeout_s: float = 30.0,
    max_ongoing_requests: int = 1024,
    settings: AppSettings | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    **options: Unpack[EngineOptions],
) -> serve.Application:
    """An application for `serve.run`, with the routes of `millpond serve`.

    ```python
    app = deployment("BAAI/bge-base-en-v1.5", num_replicas=(1, 8), gpus=1)   # serve run module:app
    ```

    - `model`: a name on the hub, or a folder that every machine has; several are served by each
      replica. `served_model_name`: what clients call it, or each of several.
    - `num_replicas`: how many, or the least and the most. Between them Serve aims at
      `target_queued_tokens` waiting for each replica: what one computes in the time that a request
      may wait.
    - `gpus`, `cpus`: what each replica has; without GPUs it computes on the CPU.
    - `drain_timeout_s`: the longest that a replica which is to stop finishes its requests.
    - `max_ongoing_requests`: requests in a replica before Serve holds others back. The engine needs
      many to make large batches.
    - `settings`: options of the application, such as API keys.
    - `autoscaling`: further fields of Serve's `AutoscalingConfig`, such as `upscale_delay_s`.
    - `ray_actor_options`: further options of the replicas' actors, such as `runtime_env`.
    - `options`: the engine's, the fields of `EngineConfig`.

    Raises `InvalidOption`.
    """
    models = _models(model, served_model_name)
    placed = [(each, names, engine_options(each, options, gpus)) for each, names in models]
    app_settings = settings or AppSettings()

    def build() -> FastAPI:
        return _application(placed, app_settings)

    decorated = serve.deployment(
        name=name,
        **_replicas(num_replicas, target_queued_tokens, autoscaling or {}),
        max_ongoing_requests=max_ongoing_requests,
        graceful_shutdown_timeout_s=drain_timeout_s,
        graceful_shutdown_wait_loop_s=min(1.0, drain_timeout_s),
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus, **(ray_actor_options or {})},
    )(serve.ingress(build)(Replica))
    return decorated.bind()


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """`deployment` for `serve run` and Serve's config files: `args` are its options by name.

    Values may be strings, as `serve run` gives them: `num_replicas=1:8`. API keys come from the
    variable `MILLPOND_API_KEY` of the process that starts the application.
    """
    given = {name: _value(value) for name, value in arguments.items()}
    if "model" not in given:
        raise InvalidOption("name a model: serve run millpond.ray.serve:app model=NAME")
    if isinstance(given.get("num_replicas"), str | list):
        given["num_replicas"] = _bounds(given["num_replicas"])
    settings = AppSettings(api_keys=tuple(os.environ.get(KEYS, "").split()))
    return deployment(settings=settings, **given)


class Replica:
    """What Serve asks of a replica; its application is built after it."""

    app: FastAPI  # of Serve's wrapper

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tokens that wait in the replica's engines."""
        stats = [model.engine.stats() for model in self.app.state.models]
        waiting = (each.waiting_interactive_tokens + each.waiting_bulk_tokens for each in stats)
        return {QUEUED_TOKENS: float(sum(waiting))}

    async def check_health(self) -> None:
        """Raise where an engine has failed, so that Serve starts another replica."""
        for model in self.app.state.models:
            if model.engine.health != "ready":
                raise EngineFailed(f"the engine of {model.name} is {model.engine.health}")

    async def __del__(self) -> None:
        models = [] if "_asgi_app" not in vars(self) else self.app.state.models
        for model in models:  # Serve has waited for the requests
            await asyncio.to_thread(model.engine.close, drain=False)


def _application(
    models: Sequence[tuple[str, tuple[str, ...], EngineOptions]], settings: AppSettings
) -> FastAPI:
    served = [ServedModel.of(Engine(model, **options), names) for model, names, options in models]
    return create_app(served, settings)


def _models(
    model: Model | Sequence[Model], names: str | Sequence[str] | None
) -> list[tuple[str, tuple[str, ...]]]:
    several = [model] if isinstance(model, str | os.PathLike) else list(model)
    given = [names] if isinstance(names, str) else list(names or ())
    if not several:
        raise InvalidOption("name a model")
    if given and len(given) != len(several):
        raise InvalidOption(
            f"{len(several)} models and {len(given)} names: give served_model_name once for each"
        )
    paths = [EngineConfig.of(each, {}).model for each in several]
    return [(path, tuple(given[place : place + 1])) for place, path in enumerate(paths)]


def _replicas(
    replicas: int | tuple[int, int], target: float, autoscaling: Mapping[str, Any]
) -> dict[str, Any]:
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if isinstance(replicas, bool) or not 1 <= least <= most:
        raise InvalidOption(f"num_replicas={replicas!r}: give a number, or the least and the most")
    if isinstance(target, bool) or not 0 < target < math.inf:
        raise InvalidOption(f"target_queued_tokens={target!r}: it must be a number above 0")
    if least == most:
        return {"num_replicas": least}
    policy = {"policy_function": QueuedTokens, "policy_kwargs": {"target_tokens": target}}
    config = {"min_replicas": least, "max_replicas": most, "policy": policy, **autoscaling}
    return {"autoscaling_config": config}


def _value(value: Any) -> Any:
    """A value of the command line, where everything is a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value, value)


def _bounds(replicas: str | Sequence[int]) -> tuple[int, int]:
    parts = replicas.split(":") if isinstance(replicas, str) else replicas
    try:
        least, most = map(int, parts)
    except ValueError:
        raise InvalidOption(f"num_replicas={replicas!r}: give a number, or 1:8") from None
    return least, most
