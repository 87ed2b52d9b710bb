"""Which module may import which, and what `import millpond` does to the process: nothing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import millpond

SOURCE = Path(millpond.__file__).parent

# From the bottom up: what each package may import beside itself, and `errors` and `locks`.
MAY_IMPORT = {
    "errors": "",
    "locks": "",
    "config": "",
    "stats": "",
    "pair": "",
    "outputs": "",
    "embeddings": "outputs",
    "scores": "outputs",
    "multi_vector": "outputs",
    "sparse": "outputs",
    "all_embeddings": "outputs multi_vector sparse",
    "arrow": "sparse",
    "cpu": "",
    "checkpoint": "config",
    "scheduler": "pair outputs embeddings stats",
    "tokenization": "pair checkpoint",
    "attention": "cpu",
    "layers": "cpu attention",
    "pooler": "cpu checkpoint",
    "model": "config pair cpu checkpoint tokenization attention layers pooler",
    "runner": (
        "config outputs embeddings cpu checkpoint scheduler tokenization attention layers pooler "
        "model"
    ),
    "engine": (
        "config stats pair outputs embeddings scores multi_vector sparse all_embeddings "
        "checkpoint scheduler tokenization model runner"
    ),
    "server": "config stats pair outputs embeddings scores multi_vector sparse engine",
    "ray": "config outputs embeddings scores sparse arrow engine server",
    "integrations": "config engine",
    "cli": "config stats embeddings scores multi_vector sparse arrow checkpoint engine server ray",
    "__main__": "cli",
}
EVERYBODY_MAY_IMPORT = {"errors", "locks"}
TENSOR_LIBRARIES = {"torch", "transformers", "tokenizers", "safetensors", "sentence_transformers"}
MAY_USE_TENSORS = {
    *("cpu", "attention", "layers", "pooler", "model", "runner"),
    *("checkpoint.module_config", "checkpoint.weights", "tokenization.backends"),
}
# The hub's client for a model that is in no folder, torch when a model is loaded, and transformers
# where that model needs it; an extra.
MAY_IMPORT_LATE = {
    *("cli", "checkpoint.resolve", "engine.instance", "model.loading", "model.split.plan"),
    *("pooler.modules", "server.tracing", "tokenization.backends.sources"),
}
ENTRY_POINTS = {"server.__main__": "cli"}


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
    """What the imports of `module` (such as `millpond.checkpoint.spec`) do that they may not."""
    package = module if is_package else module.rpartition(".")[0]
    name = module.removeprefix("millpond.")
    part = name.partition(".")[0]
    rooms = {part, name.rpartition(".")[0], name}
    known = {part, *MAY_IMPORT[part].split(), ENTRY_POINTS.get(name, part)}
    if part not in EVERYBODY_MAY_IMPORT:
        known |= EVERYBODY_MAY_IMPORT
    found = []
    for entry in imports(source, package):
        if entry.late and not rooms & MAY_IMPORT_LATE:
            found.append(f"{module}:{entry.line} imports {entry.module} inside a function")
        if entry.library in TENSOR_LIBRARIES and not rooms & MAY_USE_TENSORS:
            found.append(f"{module}:{entry.line} imports {entry.library}")
        if entry.library != "millpond":
            continue
        target = f"{entry.module}.".split(".")[1]
        if target not in known:
            found.append(f"{module}:{entry.line} imports {entry.module}, which is not below it")
        if target != part and entry.module.rpartition(".")[2].startswith("_"):
            found.append(f"{module}:{entry.line} imports {entry.module}, which is private")
    return found


@cache
def modules() -> dict[str, Path]:
    """Every module below `millpond` itself, by its name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if name != "millpond":
            found[name] = path
    return found


def imported(module: str) -> set[str]:
    """The modules of ours that one imports, in functions and for type checking too."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = {entry.module for entry in imports(path.read_text(encoding="utf-8"), package)}
    # `millpond.errors.MillpondError` is a name in a module.
    names |= {name.rpartition(".")[0] for name in names - modules().keys()}
    return names & modules().keys() - {module}


def packages() -> list[str]:
    return [name for name, path in modules().items() if path.name == "__init__.py"]


def parts_of(package: str) -> dict[str, set[str]]:
    """The files and folders of a package, and which of its others each imports."""

    def parts(names: Iterable[str]) -> set[str]:
        below = {name.removeprefix(f"{package}.") for name in names if name != package}
        return {name.partition(".")[0] for name in below if not name.startswith("millpond.")}

    found: dict[str, set[str]] = {part: set() for part in parts(modules())}
    for module in modules():
        for part in parts([module]):
            found[part] |= parts(imported(module)) - {part}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What imports itself by way of others; empty where nothing does."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle({module: imported(module) for module in modules()}) == []


@pytest.mark.parametrize("package", packages())
def test_the_parts_of_a_package_form_a_ladder(package: str) -> None:
    assert circle(parts_of(package)) == []


def test_circles_are_found() -> None:
    assert imported("millpond.engine.info") >= {"millpond.checkpoint.spec"}
    assert parts_of("millpond.model")["split"] >= {"quiet"}, "which it imports in a function"
    assert parts_of("millpond.model")["loading"] >= {"split"}, "for type checking"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    path = modules()[module]
    assert module.split(".")[1] in MAY_IMPORT, f"say what {module} may import"
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("millpond.scheduler.request", "import torch"),
        ("millpond.scheduler.request", "from torch.nn import functional"),
        ("millpond.stats", "from transformers import AutoModel"),
        ("millpond.checkpoint.spec", "import torch"),
        ("millpond.checkpoint.spec", "from ..scheduler import Batch"),
        ("millpond.checkpoint.spec", "from .. import scheduler"),
        ("millpond.scheduler.request", "from ..checkpoint.spec import ModelSpec"),
        ("millpond.attention.packed", "from ..layers.rotary import rotates_by_length"),
        ("millpond.errors", "from .config import EngineConfig"),
        ("millpond.errors", "from .locks import fork_safe"),
        ("millpond.config", "import millpond.engine"),
        ("millpond.config", "import millpond"),
        ("millpond.runner.base", "from ..engine.core import EngineCore"),
        ("millpond.runner.base", "from ..model.verify import _probe"),
        ("millpond.engine.core.core", "from millpond import Engine"),
        ("millpond.engine.core.core", "def later():\n    import torch"),
        ("millpond.engine.core.core", "class A:\n    async def b(self):\n        from .x import Y"),
        ("millpond.server.app", "from ..cli.serve import main"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("millpond.scheduler.batch", "import numpy\nfrom .job import _J\nfrom ..errors import X"),
        ("millpond.checkpoint.weights", "import torch\nfrom .resolve import Checkpoint"),
        ("millpond.runner.base", "from ..model.info import RouteInfo\nfrom ..scheduler import B"),
        ("millpond.server.__main__", "from ..cli.serve import main"),
        ("millpond.cli.embed", "def command():\n    from ..engine.engine import Engine"),
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
