"""What several test files share: tiny checkpoints, made once a session."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from processor import own_processor

# torch and transformers are imported where a test first wants them: the process that hands tests
# out to other processes needs neither.

# The same examples in every run, however long one takes on a busy machine.
settings.register_profile("millpond", deadline=None, derandomize=True)
settings.load_profile("millpond")

TESTS = Path(__file__).parent
# What is tested with models or with torch itself. Everything else runs on fakes, or on a tiny model
# where what is tested begins with a checkpoint.
RUN_MODELS = (
    *("attention", "cpu", "layers", "model", "pooler", "runner"),
    "behaviour/kinds",
    "behaviour/models",
    "behaviour/test_replicas.py",
    "behaviour/test_same_bits.py",
    "engine/test_multi_vector.py",
    "multi_vector/test_token_pooling.py",
    "server/routes/test_pooling.py",
    "tokenization/test_chat_template.py",
    "tokenization/test_pairs.py",
)

RUN_FAKES = ("runner/remote",)  # among those folders
assert all((TESTS / name).exists() for name in (*RUN_MODELS, *RUN_FAKES)), "what was moved?"


def _runs_models(path: Path) -> bool:
    if any(path.is_relative_to(TESTS / name) for name in RUN_FAKES):
        return False
    return any(path.is_relative_to(TESTS / name) for name in RUN_MODELS)


def pytest_report_header() -> str:
    return f"processor: {own_processor()}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests of whole folders, before `-m` chooses among them."""
    for item in items:
        if not item.path.is_relative_to(TESTS):
            item.add_marker(pytest.mark.adapters)
        elif _runs_models(item.path):
            item.add_marker(pytest.mark.model)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m "not model"` or `-m "not slow"`, do not even import what that leaves out."""
    chosen = config.option.markexpr
    if "not model" in chosen and _runs_models(collection_path):
        return True
    return ("not slow" in chosen and _is_slow(collection_path)) or None


def _is_slow(path: Path) -> bool:
    """Whether all tests of a file are marked, by a line of its own."""
    if path.suffix != ".py":
        return False
    lines = path.read_text("utf-8").splitlines()
    return any(line.startswith("pytestmark") and "pytest.mark.slow" in line for line in lines)


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """What is there already is looked through by no garbage collection of a file's tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, by the family's name."""
    from checkpoints import save_family
    from families import FAMILIES

    families = {family.name: family for family in FAMILIES}

    @cache
    def folder(name: str) -> Path:
        return save_family(families[name], tmp_path_factory.mktemp(name))

    return folder


@pytest.fixture(scope="session")
def bare_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as transformers saves it: no modules.json."""
    from checkpoints import save_transformer

    return save_transformer(tmp_path_factory.mktemp("bare_bert"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on one thread: two only get in each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
