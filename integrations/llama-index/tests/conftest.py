"""Models for the tests, and the warnings of others that are not ours to mend.

`MODEL` is real and comes from an installed package. `tiny` is random, has its tokenizer, and
saves prompts for queries and documents.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from llama_index.core import Settings
from llama_index.embeddings.millpond import MillpondEmbedding
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel

from millpond import Engine, StatsHook

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PROMPTS = {"query": "search for: ", "document": "passage: "}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def pytest_configure(config: pytest.Config) -> None:
    # Python 3.12 says so of the processes that `IngestionPipeline.arun` forks.
    config.addinivalue_line(
        "filterwarnings",
        "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
    )


@pytest.fixture(scope="session")
def real_engine() -> Iterator[Engine]:
    """Holds the real model for the session, so that it is loaded once."""
    with Engine.shared(MODEL, dtype="float32") as engine:
        yield engine


@pytest.fixture
def real(real_engine: Engine) -> MillpondEmbedding:
    return MillpondEmbedding(model_name=MODEL, dtype="float32")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, real_engine: Engine) -> str:
    """A checkpoint of 16 dimensions that does not normalise."""
    folder = tmp_path_factory.mktemp("tiny")
    base = folder / "base"
    base.mkdir()
    for name in TOKENIZER_FILES:
        source = Path(real_engine.info().model.path) / name
        if source.is_file():
            shutil.copy(source, base / name)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(base)
    modules = [Transformer(str(base), max_seq_length=32), Pooling(16, pooling_mode="mean")]
    SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu").save(
        str(folder / "model"), create_model_card=False
    )
    return str(folder / "model")


@pytest.fixture(scope="session")
def tiny_engine(tiny: str) -> Iterator[Engine]:
    """The engine that `MillpondEmbedding(model_name=tiny)` shares, held for the session."""
    with Engine.shared(tiny) as engine:
        yield engine


@pytest.fixture
def hook(tiny_engine: Engine) -> Iterator[Callable[[StatsHook], None]]:
    """Adds a stats hook to `tiny_engine` until the test is over."""
    added: list[StatsHook] = []

    def add(hook: StatsHook) -> None:
        added.append(hook)
        tiny_engine.add_stats_hook(hook)

    yield add
    for hook in added:
        tiny_engine.remove_stats_hook(hook)


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    before = Settings._embed_model
    yield
    Settings._embed_model = before
