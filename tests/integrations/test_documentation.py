"""What docs/integrations.md and Haystack's README show of other projects runs as pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
HAYSTACK = (ROOT / "integrations" / "haystack" / "README.md").read_text(encoding="utf-8")


def paste(text: str) -> None:
    """Run the first program of a text."""
    program = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    exec(compile(program, "<pasted>", "exec", dont_inherit=True), {"__name__": "pasted"})


@pytest.mark.parametrize("project", ["Chroma", "LanceDB", "Qdrant", "DSPy"])
def test_a_store_finds_the_bakery(
    project: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    paste(PAGE.split(f"## {project}\n")[1])
    assert "bakery" in capsys.readouterr().out


@pytest.mark.adapters
def test_a_haystack_pipeline_finds_the_bakery(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("haystack_integrations.common.millpond", reason="`make adapters` first")
    paste(HAYSTACK)
    assert "bakery" in capsys.readouterr().out
