"""Millpond's server as a deployment of Ray Serve, asked by OpenAI's client."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from ray import serve
from ray.serve.config import AutoscalingPolicy
from ray_cluster import cluster

from millpond import Engine, InvalidOption
from millpond.ray import deployment
from millpond.ray.autoscaling import QUEUED_TOKENS, QueuedTokens
from millpond.ray.serve import app
from millpond.server.settings import AppSettings

pytestmark = pytest.mark.slow

PATIENCE_S = 60
TEXTS = ["the stone grinds the grain", "", "東京は日本の首都です。"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def bert(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("bert"))


@pytest.fixture(scope="module")
def address(bert: str) -> Iterator[str]:
    port = free_port()
    with cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        served = deployment(
            bert,
            served_model_name="small",
            num_replicas=(1, 2),
            cpus=0.5,
            target_queued_tokens=1000,
            settings=AppSettings(api_keys=("secret",)),
            autoscaling={"upscale_delay_s": 0, "metrics_interval_s": 0.2, "look_back_period_s": 1},
            dtype="float32",
        )
        serve.run(served, name="pond", route_prefix="/pond")
        try:
            yield f"http://127.0.0.1:{port}/pond"
        finally:
            serve.shutdown()


def test_a_client_gets_the_engine_s_vectors(address: str, bert: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
    answer = client.embeddings.create(model="small", input=TEXTS)
    with Engine(bert, device="cpu", dtype="float32") as engine:
        expected = engine.embed(TEXTS)
    assert np.array_equal(np.float32([one.embedding for one in answer.data]), expected)
    assert [model.id for model in client.models.list()] == ["small"]
    assert httpx.get(f"{address}/health").json()["status"] == "ready"
    assert httpx.get(f"{address}/v1/models").status_code == 401
    client.close()


def test_queued_tokens_add_a_replica(address: str) -> None:
    body = {"input": ["word " * 60] * 1000}
    headers = {"authorization": "Bearer secret"}
    until_s = time.monotonic() + PATIENCE_S

    def ask(_: int) -> set[int]:
        statuses = set()
        with httpx.Client(timeout=PATIENCE_S, headers=headers) as client:
            while replicas() < 2 and time.monotonic() < until_s:
                statuses.add(client.post(f"{address}/v1/embeddings", json=body).status_code)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(ask, range(4))) == {200}
    assert replicas() == 2


def replicas() -> int:
    """How many of them run."""
    states = serve.status().applications["pond"].deployments["millpond"].replica_states
    return states.get("RUNNING", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_replicas": 0}, "num_replicas=0"),
        ({"num_replicas": (3, 2)}, "num_replicas="),
        ({"target_queued_tokens": 0}, "target_queued_tokens=0"),
        ({"served_model_name": ["a", "b"]}, "1 models and 2 names"),
        ({"dtyp": "float32"}, "unknown option dtyp"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        deployment("some/model", **options)


def test_the_command_line_of_serve_gives_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_API_KEY", "one two")
    given = {"model": "some/model", "num_replicas": "1:8", "gpus": "1", "warmup": "true"}
    options = app(given)._bound_deployment
    config = options._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (1, 8)
    assert options.ray_actor_options["num_gpus"] == 1
    with pytest.raises(InvalidOption, match="name a model"):
        app({})
    with pytest.raises(InvalidOption, match="num_replicas='1:many'"):
        app({"model": "some/model", "num_replicas": "1:many"})


def test_the_policy_counts_the_replicas_that_run() -> None:
    policy = AutoscalingPolicy(
        policy_function=QueuedTokens, policy_kwargs={"target_tokens": 1000}
    ).get_policy()(target_tokens=1000)
    context = SimpleNamespace(
        aggregated_metrics={QUEUED_TOKENS: {"a": 2500.0, "b": 1400.0, "gone": 10**9}},
        running_replicas=["a", "b", "new"],
        target_num_replicas=3,
    )
    assert policy(context) == (4, {})
    context.aggregated_metrics = {}
    assert policy(context) == (1, {})
