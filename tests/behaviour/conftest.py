"""What tests of the engine's behaviour share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """Faults are not logged; what is logged about them is tested elsewhere."""
    logger = logging.getLogger("millpond")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before
