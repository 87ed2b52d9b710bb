"""Compiled layers: the plain ones' numbers, one function for all sizes, and a safe way back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from families import FAMILIES, Family

from millpond import Engine
from millpond.attention.packed import PackedSequences
from millpond.model import compiled_layers, transformer
from millpond.model.compiled_layers import CompiledLayers, TracedSequences, without_global_state

TEXTS = [text for text in checkpoints.TEXTS if text]
PACKED = [family for family in FAMILIES if family.execution == "packed"]
KINDS = [f for f in PACKED if f.name in ("bert", "qwen3", "gemma3")]
traces: list[str] = []


def count_traces(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` without code generation; a layer that is not one graph is an error."""

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        traces.append(graph.print_readable(print_output=False))
        return graph.forward

    options = {"guard_filter_fn": without_global_state}
    return torch.compile(function, dynamic=True, backend=backend, fullgraph=True, options=options)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    traces.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        transformer, "CompiledLayers", lambda model: CompiledLayers(model, count_traces)
    )


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("family", KINDS, ids=str)
def test_vectors_are_those_of_the_plain_layers(family: Family, tmp_path: Path) -> None:
    folder = checkpoints.save_family(family, tmp_path)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(TEXTS)
        assert not engine.info().routes[0].compiled
    with Engine(folder, device="cpu", dtype="float32", compile=True) as engine:
        assert engine.info().routes[0].compiled, engine.info().reason
        found = engine.embed(TEXTS)
        assert np.abs(found - expected).max() < 1e-5
        kinds_of_layers = len(traces)
        assert 1 <= kinds_of_layers <= 4
        for count in range(1, len(TEXTS)):
            assert np.array_equal(engine.embed(TEXTS[:count]), found[:count])
        assert len(traces) == kinds_of_layers  # no batch of another size was traced again
    assert all("millpond.attend" in trace for trace in traces)


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("family", KINDS[:2], ids=str)
def test_one_function_serves_all_layers(family: Family, tmp_path: Path) -> None:
    """Also where each of them knows its own number; the compiler gives up after eight attempts."""
    deep = replace(family, config={**family.config, "num_hidden_layers": 12})
    folder = checkpoints.save_family(deep, tmp_path)
    with Engine(folder, device="cpu", dtype="float32", compile=True) as engine:
        assert engine.info().routes[0].compiled
        engine.embed(TEXTS)
    assert 1 <= len(traces) <= 3


class Doubling(torch.nn.Module):
    """A model of two layers."""

    class Layer(torch.nn.Module):
        def forward(self, rows: torch.Tensor, *, packed_sequences: Any) -> torch.Tensor:
            return rows * 2

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([self.Layer(), self.Layer()])

    def forward(self, rows: torch.Tensor, **options: Any) -> torch.Tensor:
        for layer in self.layers:
            rows = layer(rows, **options)
        return rows


def test_models_are_compiled_apart() -> None:
    """The compiler gives up on a function after eight attempts."""
    sequences = TracedSequences.of(PackedSequences.of(np.array([5])))
    for _ in range(10):
        model = Doubling()
        compiled = CompiledLayers(model, count_traces)
        assert torch.equal(model(torch.ones(5), packed_sequences=sequences), torch.full((5,), 4.0))
        assert not compiled.failed
    assert len(traces) == 10
    compiled.remove()
    assert torch.equal(model(torch.ones(5), packed_sequences=sequences), torch.full((5,), 4.0))
    assert len(traces) == 10


def test_layers_are_not_compiled_anew_for_another_number_of_threads() -> None:
    """The workers of a CPU's engine take as many as are free."""
    sequences = TracedSequences.of(PackedSequences.of(np.array([5])))
    model = Doubling()
    compiled = CompiledLayers(model, count_traces)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model(torch.ones(5), packed_sequences=sequences)
    finally:
        torch.set_num_threads(before)
    assert not compiled.failed
    assert len(traces) == 1


def breaking(_: Callable[..., Any]) -> Callable[..., Any]:
    def call(*_inputs: Any, **_options: Any) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand a long trace")

    return call


def distorting(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*inputs: Any, **options: Any) -> Any:
        out = function(*inputs, **options)
        return (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5

    return call


@pytest.mark.parametrize(
    ("compiler", "reason"), [(breaking, "the compiler failed"), (distorting, "differ")]
)
def test_a_compiler_that_fails_or_is_wrong_leaves_the_plain_model(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    compiler: Any,
    reason: str,
) -> None:
    monkeypatch.setattr(
        transformer, "CompiledLayers", lambda model: CompiledLayers(model, compiler)
    )
    folder = checkpoints.save_family(KINDS[0], tmp_path)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(TEXTS)
    caplog.set_level(logging.WARNING, "millpond")
    with Engine(folder, device="cpu", dtype="float32", compile=True) as engine:
        info = engine.info()
        assert not info.routes[0].compiled
        assert info.routes[0].same_bits
        assert info.execution == "packed"
        assert np.array_equal(engine.embed(TEXTS), expected)
    (line,) = [r.getMessage() for r in caplog.records if "not compiled: " in r.getMessage()]
    assert reason in line


def test_a_compiler_that_fails_later_is_done_without(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder = checkpoints.save_family(KINDS[0], tmp_path)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed(TEXTS)
        encoder = engine._service.runner.pipelines[0].encoder
        encoder.compiled = CompiledLayers(encoder.model, breaking)
        caplog.set_level(logging.WARNING, "millpond")
        for _ in range(2):
            assert np.array_equal(engine.embed(TEXTS), expected)
        assert repr(encoder.compiled) == "CompiledLayers(layers=2, failed=True)"
    assert [r.getMessage() for r in caplog.records if "compiled" in r.getMessage()] == [
        "running without compiled layers: no C++ compiler"
    ]


def test_a_model_that_does_not_run_packed_is_left_alone(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    family = next(family for family in FAMILIES if family.execution == "padded")
    caplog.set_level(logging.INFO, "millpond")
    folder = checkpoints.save_family(family, tmp_path)
    with Engine(folder, device="cpu", dtype="float32", compile=True) as engine:
        assert not engine.info().routes[0].compiled
    assert "not compiled: only a model that runs packed is" in caplog.text


def test_a_model_without_layers_that_repeat_has_nothing_to_compile() -> None:
    with pytest.raises(ValueError, match="no layers that repeat"):
        CompiledLayers(torch.nn.Linear(2, 2))


def test_attention_of_traced_sequences_is_that_of_packed_ones() -> None:
    torch.manual_seed(0)
    sequences = PackedSequences.of(np.array([5, 5, 3]))
    query, key, value = torch.randn(3, 4, 13, 8)
    options: dict[str, Any] = {"scaling": 0.3, "window": 2, "causal": True}
    expected = sequences.attend(query, key, value, **options)
    traced = TracedSequences.of(sequences)
    assert torch.equal(traced.attend(query, key, value, **options), expected)
    inputs = (query, key, value, traced.groups, None, 5, False, 0.3, 2, True)
    torch.library.opcheck(compiled_layers._attend, inputs)
