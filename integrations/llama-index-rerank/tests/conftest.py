"""A reranker of random weights for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import save_transformer
from families import ENCODER


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that gives a score."""
    folder: Path = save_transformer(
        tmp_path_factory.mktemp("tiny_reranker"),
        model="BertForSequenceClassification",
        config={**ENCODER, "num_labels": 1},
    )
    return str(folder)
