"""What the tests of both folders start from: no network, and the real model loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")  # Chroma's

from checkpoints import save_transformer
from families import ENCODER

from millpond import Engine

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def real_engine() -> Iterator[Engine]:
    """Holds the engine of `MillpondEmbeddings(model=MODEL)`, so that it is loaded once."""
    with Engine.shared(MODEL) as engine:
        yield engine


@pytest.fixture
def model(real_engine: Engine) -> str:
    """The name of the real model, which is loaded."""
    return MODEL


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that gives a score."""
    return save_transformer(
        tmp_path_factory.mktemp("tiny_reranker"),
        model="BertForSequenceClassification",
        config={**ENCODER, "num_labels": 1},
    )
