"""Children that tests share, since each takes a while to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from child_models import task

from millpond.runner.remote.runner import RemoteRunner


@pytest.fixture(scope="module")
def runner() -> Iterator[RemoteRunner]:
    """A fake in a child, for tests that do not harm it."""
    with_child = RemoteRunner.load([task(workers=2, query_workers=1)])
    yield with_child
    with_child.close()
