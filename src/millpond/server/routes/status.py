"""`GET /health`, `/metrics` and `/version`."""

from __future__ import annotations

from importlib.metadata import version as installed_version

from fastapi import Request, Response

from ..errors import ApiError
from ..schemas.embeddings import HealthResponse, VersionResponse

__all__ = ["health", "metrics", "version"]


async def health(request: Request) -> HealthResponse:
    """200 while every engine takes requests; 503 once one has failed, or while draining."""
    state = request.app.state
    state.drain.require_open()
    states = {model.name: str(model.engine.health) for model in state.models}
    for name, health in states.items():
        if health != "ready":
            raise ApiError(503, f"the engine of {name} is {health}", code="unhealthy")
    return HealthResponse(models=states)


async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    content = request.app.state.metrics.text()
    return Response(content, media_type="text/plain; version=0.0.4")


async def version() -> VersionResponse:
    """The installed version of Millpond."""
    return VersionResponse(version=installed_version("millpond"))
