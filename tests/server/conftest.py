"""The real model: served with a key, and in this process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from served_model import KEY, MODEL, NAME, TEXTS
from server_process import ServerProcess, server_process

from millpond import Engine


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ["--model", MODEL, "--served-model-name", NAME, "--dtype", "float32"]
    with server_process(*flags, MILLPOND_API_KEY=KEY) as server:
        yield server
    assert KEY not in "\n".join(server.lines)


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Iterator[Engine]:
    # In bfloat16 the bits of a vector may depend on which texts a client sends together.
    with Engine(MODEL, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(engine: Engine) -> np.ndarray:
    return engine.embed(TEXTS)
