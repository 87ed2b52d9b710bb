"""Every example runs as it stands, on the real model."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart_finds_the_bakery(capsys: pytest.CaptureFixture[str]) -> None:
    load("quickstart").main()
    best = capsys.readouterr().out.splitlines()[0]
    assert "bakery" in best


def test_coroutines_share_forward_passes(capsys: pytest.CaptureFixture[str]) -> None:

    asyncio.run(load("async_queries").main())
    words = capsys.readouterr().out.split()
    queries, batches = int(words[0]), int(words[4])
    assert queries == 64
    assert batches < queries


def test_demo_answers_from_docstrings_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    demo = load("docstrings")
    demo.main(["--limit", "80", "what is a hash table?"])
    out = capsys.readouterr().out
    assert out.startswith("80 passages")
    assert "what is a hash table?" in out
    assert "packed, padding waste" in out
    assert out.count("\n  0.") == 3
