"""What the engine may ask of a runner, and that nobody needs torch to answer."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeRunner

import millpond
from millpond.runner.base import ModelRunner
from millpond.runner.cpu.runner import CpuModelRunner
from millpond.runner.cuda.runner import CudaModelRunner
from millpond.runner.model_runner import TorchModelRunner

MEMBERS = (
    *("device_name", "dtype_name", "limits", "routes", "shapes", "prefix_cache_config"),
    *("can_run_inline", "launch", "collect", "is_out_of_memory", "is_fatal", "free_memory"),
    *("look_for_queries", "delivered"),  # of a runner whose bulk batches yield to queries
    *("pids", "tell_when_lost", "close"),  # of a runner whose model is in other processes
)


def test_the_protocol_has_few_members() -> None:
    assert sorted(n for n in vars(ModelRunner) if not n.startswith("_")) == sorted(MEMBERS)


@pytest.mark.parametrize("runner", [TorchModelRunner, CpuModelRunner, CudaModelRunner, FakeRunner])
def test_methods_have_the_parameters_of_the_protocol(runner: type) -> None:
    methods = [name for name in MEMBERS if inspect.isfunction(vars(ModelRunner)[name])]
    assert len(methods) == 10
    for name in methods:
        expected = list(inspect.signature(getattr(ModelRunner, name)).parameters)
        assert list(inspect.signature(getattr(runner, name)).parameters) == expected, name


def test_the_protocol_and_the_engine_are_imported_without_torch() -> None:
    source = Path(millpond.__file__).parents[1]
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); sys.modules['torch'] = None\n"
        "import millpond.runner.base, millpond.engine.core.executor, millpond.engine.core.worker"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_only_the_choice_of_a_runner_asks_for_the_type_of_a_device() -> None:
    folder = Path(inspect.getfile(TorchModelRunner)).parent
    asking = [path.name for path in folder.rglob("*.py") if "device.type" in path.read_text()]
    assert sorted(asking) == ["load.py", "replicas.py", "split.py"]
