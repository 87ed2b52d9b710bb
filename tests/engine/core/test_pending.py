"""What is known of waiting queries without the engine's lock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from millpond.engine.core.pending import PendingRequests
from millpond.scheduler.request import Priority


@pytest.mark.parametrize(
    ("arrived", "queued", "waits"),
    [
        ((), 0, False),
        ((Priority.BULK, Priority.BULK), 0, False),
        ((Priority.BULK, Priority.INTERACTIVE), 0, True),
        ((), 7, True),
    ],
)
def test_queries_wait_and_texts_of_ingestion_do_not(
    arrived: tuple[Priority, ...], queued: int, waits: bool
) -> None:
    queues = {Priority.BULK: SimpleNamespace(waiting_tokens=500)}
    queues[Priority.INTERACTIVE] = SimpleNamespace(waiting_tokens=queued)
    scheduler: Any = SimpleNamespace(queues=queues)
    pending = PendingRequests(scheduler)
    for priority in arrived:
        request: Any = SimpleNamespace(priority=priority)
        pending.add(request, None)
    assert pending.has_waiting_queries is waits
