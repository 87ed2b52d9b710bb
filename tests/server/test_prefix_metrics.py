"""What the server's metrics say of the prefix cache of a decoder that is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import embed, request

from millpond import Engine
from millpond.runner import kv_cache_config as prefix_memory
from millpond.server.app import create_app
from millpond.server.models import ServedModel

BLOCKS = 12
PROMPTS = {"query": "Instruct: find what the miller wrote about the mill by the pond\nQuery: "}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def served(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServedModel]:
    """A tiny decoder with a small cache."""
    monkeypatch.setattr(prefix_memory, "MOST_BLOCKS", BLOCKS)
    monkeypatch.setattr(prefix_memory, "FEWEST_BLOCKS", 0)
    folder = checkpoint("qwen3")
    with Engine(folder, device="cpu", dtype="float32", max_length=64, prompts=PROMPTS) as engine:
        yield ServedModel.of(engine)


def test_metrics_of_a_prefix_cache_that_is_used(served: ServedModel) -> None:
    app = create_app([served])
    for number in range(20):
        body = {"input": f"{number} stones grind the grain of {number}", "input_type": "query"}
        assert embed(app, body).is_success
    other = "the water of the pond falls while the stone of the mill grinds the grain"
    for number in range(20):
        assert embed(app, {"input": f"{number} {other}"}).is_success
    found = {
        (sample.name.removeprefix("millpond_"), sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(request(app, "GET", "/metrics").text)
        for sample in family.samples
    }
    stats = served.engine.stats()
    assert stats.prefix_cache is not None
    looked_up = found["prefix_cache_looked_up_tokens_total", None]
    hit = found["prefix_cache_hit_tokens_total", None]
    assert 0 < hit == stats.prefix_cache.hit_tokens < looked_up
    assert found["cached_tokens_total", None] == hit
    assert found["tokens_total", None] == looked_up == stats.tokens
    assert found["prefix_cache_evictions_total", None] == stats.prefix_cache.evictions > 0
    blocks = {state: found["prefix_cache_blocks", state] for state in ("in_use", "cached", "empty")}
    assert sum(blocks.values()) == BLOCKS
    assert blocks["in_use"] == stats.prefix_cache.blocks_pinned > 0
    assert blocks["cached"] > 0
