"""Which module may import which, and what `import millpond` does to the process: nothing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import millpond

SOURCE = Path(millpond.__file__).parent

# From the bottom up. A module may import the ones on lower rungs, and its own package.
LADDER = (
    {"errors", "locks"},
    {"config", "stats", "embeddings"},
    {"scheduling", "models"},
    {"info", "layout", "batch_runner", "batch_invariance", "prefix_memory"},
    {"runner"},
    {"executor", "request", "replicas", "outcome", "stats_hooks", "tokenizing"},
    {"progress", "crew", "ending", "inline", "stream"},
    {"loop"},
    {"service"},
    {"engine"},
    {"server"},
    {"cli"},
    {"__main__"},
)
RUNGS = {name: rung for rung, names in enumerate(LADDER) for name in names}
TENSOR_LIBRARIES = {"torch", "transformers", "tokenizers", "safetensors", "sentence_transformers"}
MAY_USE_TENSORS = {"models", "prefix_memory", "runner", "replicas"}
MAY_IMPORT_LATE = {"cli", "server.main"}


class Import(NamedTuple):
    line: int
    module: str
    """Dotted and absolute."""
    late: bool
    """Inside a function."""

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a module that lives in `package`, as absolute names."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            # `from . import errors` names modules; `from .errors import X` names what is in one.
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(node.lineno, name, id(node) in inside) for name in names)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What the imports of `module` (such as `millpond.models.spec`) do that they may not."""
    package = module if is_package else module.rpartition(".")[0]
    part = module.split(".")[1]
    found = []
    for entry in imports(source, package):
        target = f"{entry.module}.".split(".")[1] if entry.library == "millpond" else None
        if entry.late and not MAY_IMPORT_LATE & {part, module.removeprefix("millpond.")}:
            found.append(f"{module}:{entry.line} imports {entry.module} inside a function")
        if entry.library in TENSOR_LIBRARIES and part not in MAY_USE_TENSORS:
            found.append(f"{module}:{entry.line} imports {entry.library}")
        if target is not None and target != part and RUNGS.get(target, 99) >= RUNGS[part]:
            found.append(f"{module}:{entry.line} imports {entry.module}, which is not below it")
    return found


def modules() -> dict[str, Path]:
    """Every module below `millpond` itself, by its name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if name != "millpond":
            found[name] = path
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_the_ladder(module: str) -> None:
    path = modules()[module]
    assert module.split(".")[1] in RUNGS, f"give {module} a place on the ladder"
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("millpond.scheduling.job", "import torch"),
        ("millpond.scheduling.job", "from torch.nn import functional"),
        ("millpond.stats", "from transformers import AutoModel"),
        ("millpond.models.spec", "from ..scheduling import Batch"),
        ("millpond.models.spec", "from .. import scheduling"),
        ("millpond.scheduling.job", "from ..models.spec import ModelSpec"),
        ("millpond.errors", "from .config import EngineConfig"),
        ("millpond.config", "import millpond.engine"),
        ("millpond.config", "import millpond"),
        ("millpond.runner", "from .loop import Loop"),
        ("millpond.engine", "from . import Engine"),
        ("millpond.engine", "def later():\n    import torch"),
        ("millpond.engine", "class A:\n    async def later(self):\n        from .errors import X"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("millpond.scheduling.batch", "import numpy\nfrom .job import Job\nfrom ..errors import X"),
        ("millpond.models.spec", "import torch\nfrom .resolve import Checkpoint"),
        ("millpond.runner", "from .models.spec import ModelSpec\nfrom .scheduling import Batch"),
        ("millpond.cli", "def command():\n    from .engine import Engine"),
    ],
)
def test_a_right_import_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_the_public_names_are_those_of_all() -> None:
    loaded = {
        name
        for name, value in vars(millpond).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(set(millpond.__all__)) == sorted(millpond.__all__)
    assert loaded | set(millpond._LAZY_NAMES) | {"__version__"} == set(millpond.__all__)
    assert dir(millpond) == sorted(millpond.__all__)


def test_every_error_is_public() -> None:
    errors = importlib.import_module("millpond.errors")
    assert set(errors.__all__) <= set(millpond.__all__)


@pytest.mark.parametrize("name", millpond.__all__)
def test_a_public_name_can_be_had(name: str) -> None:
    assert getattr(millpond, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        millpond.Engin  # noqa: B018


QUIET_IMPORT = """
import os, sys, threading, warnings
environment, threads = dict(os.environ), threading.active_count()
directory, filters = os.getcwd(), list(warnings.filters)
import millpond
assert dict(os.environ) == environment, "the environment changed"
assert threading.active_count() == threads, "a thread was started"
assert os.getcwd() == directory, "the working directory changed"
assert warnings.filters == filters, "the warning filters changed"
heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy", "tqdm"}
heavy |= {"langchain", "langchain_core", "llama_index", "fastapi", "starlette", "pydantic"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_importing_millpond_imports_nothing_heavy_and_changes_nothing() -> None:
    search_path = [str(SOURCE.parent), *filter(None, sys.path)]
    program = f"import sys; sys.path[:] = {search_path!r}\n{QUIET_IMPORT}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")
