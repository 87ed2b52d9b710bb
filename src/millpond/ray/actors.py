"""`ActorPool`: how many actors hold an engine, and what Ray reserves for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from ..config import EngineConfig, EngineOptions, is_count, is_number, require

__all__ = ["BATCH_ROWS", "ActorPool", "ActorsOption", "engine_options"]

ActorsOption = int | tuple[int, int | None]
"""A number of actors, or the least and the most; None is as many as the cluster has room for."""

BATCH_ROWS = 4096
"""Rows that a call of an actor is handed. The engine makes its own batches, by tokens."""

CALLS_AT_A_TIME = 2  # of an actor: while one call's rows are embedded, those of the next are ready
CALLS_WAITING = 2  # whose rows Ray has brought to the actor's machine


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """Actors of one dataset. Raises `InvalidOption` for a value that cannot be meant."""

    actors: ActorsOption = (1, None)
    gpus: float | None = None
    """GPUs of each actor, or a share of one; None is one where the cluster has any, and else 0."""
    cpus: float | None = None
    """CPUs of each actor, which a model on the CPU has as threads; None is Ray's default, 1."""
    ray_options: Mapping[str, Any] | None = None
    """Further arguments of `Dataset.map_batches`, such as `runtime_env` or `accelerator_type`."""

    def __post_init__(self) -> None:
        least, most = self._bounds()
        require(
            is_count(least) and (most is None or (is_count(most) and most >= least)),
            f"actors={self.actors!r}: give a number of actors, or the least and the most, (1, 8)",
        )
        for name in ("gpus", "cpus"):
            value = getattr(self, name)
            require(
                value is None or (is_number(value) and value >= 0),
                f"{name}={value!r}: it must be a number, 0 or more",
            )
        require(
            self.gpus is None or self.gpus <= 1 or float(self.gpus).is_integer(),
            f"gpus={self.gpus!r}: above 1 Ray takes whole numbers",
        )

    def _bounds(self) -> tuple[Any, Any]:
        if isinstance(self.actors, tuple | list):
            require(len(self.actors) == 2, f"actors={self.actors!r}: give the least and the most")
            return self.actors[0], self.actors[1]
        return self.actors, self.actors

    def gpus_each(self) -> float:
        """GPUs of each actor; asks the cluster where nothing was given."""
        if self.gpus is None:
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            return 1.0 if resources.get("GPU", 0) else 0.0
        return float(self.gpus)

    def lack(self) -> str | None:
        """What no machine of the cluster has now and an actor needs; None where there is one."""
        wanted = {"GPU": self.gpus_each(), "CPU": 1.0 if self.cpus is None else float(self.cpus)}
        alive = [node["Resources"] for node in _nodes() if node["Alive"]]
        for name, count in wanted.items():
            most = max((resources.get(name, 0) for resources in alive), default=0)
            if count > most:
                return f"an actor needs {count:g} {name}s and no machine has more than {most:g}"
        return None

    def map_options(self, gpus: float) -> dict[str, Any]:
        """The arguments of `Dataset.map_batches`."""
        least, most = self._bounds()
        resources = {"num_gpus": gpus or None, "num_cpus": self.cpus}
        return {
            "compute": ActorPoolStrategy(
                min_size=least,
                max_size=most,
                max_tasks_in_flight_per_actor=CALLS_AT_A_TIME + CALLS_WAITING,
                max_concurrent_calls_per_actor=CALLS_AT_A_TIME,
                enable_true_multi_threading=True,
            ),
            **{name: value for name, value in resources.items() if value is not None},
            **(self.ray_options or {}),
        }


def engine_options(model: Any, options: EngineOptions, gpus: float) -> EngineOptions:
    """The options of an actor's engine: on its GPUs if it has any, else on the CPU.

    Raises `InvalidOption` for one that is not known or cannot be meant.
    """
    placed: EngineOptions = {"device": "cuda" if gpus else "cpu", **options}
    EngineConfig.of(model, placed)
    return placed


def _nodes() -> list[dict[str, Any]]:
    return ray.nodes()  # type: ignore[no-untyped-call, no-any-return]
