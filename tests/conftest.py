"""What several test files share: tiny checkpoints, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import save_family, save_transformer
from families import FAMILIES


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, by the family's name."""
    families = {family.name: family for family in FAMILIES}

    @cache
    def folder(name: str) -> Path:
        return save_family(families[name], tmp_path_factory.mktemp(name))

    return folder


@pytest.fixture(scope="session")
def bare_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as transformers saves it: no modules.json."""
    return save_transformer(tmp_path_factory.mktemp("bare_bert"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on one thread: two only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
