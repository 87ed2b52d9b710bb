"""examples/file_search.py runs as it stands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "file_search.py"


def test_the_file_that_was_written_answers(capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capfd.readouterr()
    assert said.out == "page 21: The bakery in the village opens at six and sells out by nine.\n"
    assert "millpond: 3 texts in " in said.err
