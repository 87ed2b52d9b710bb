"""The page for those who switch leaves no old parameter out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_millpond import MillpondCrossEncoder, MillpondEmbeddings
from langchain_millpond.switching import OF_EMBEDDINGS, OF_RERANKERS
from millpond import InvalidOption

PAGE = Path(__file__).parents[4] / "docs" / "integrations.md"


def section(start: str) -> str:
    return PAGE.read_text(encoding="utf-8").partition(f"\n## {start}")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", HuggingFaceEmbeddings.model_fields)
def test_every_parameter_of_hugging_face_embeddings_is_mapped(name: str) -> None:
    assert f"`{name}" in section("Switching from `HuggingFaceEmbeddings`")


def test_every_parameter_of_hugging_face_embedding_is_mapped() -> None:
    incumbent = pytest.importorskip("llama_index.embeddings.huggingface", reason="not installed")
    names = set(inspect.signature(incumbent.HuggingFaceEmbedding.__init__).parameters) - {"self"}
    text = section("Switching from `HuggingFaceEmbedding`")
    assert [name for name in sorted(names) if f"{name}`" not in text] == []


def test_what_it_says_for_langchain_can_be_typed() -> None:
    code = section("Switching from `HuggingFaceEmbeddings`").partition("# after\n")[2]
    call = code.partition("```")[0]
    taken: dict[str, object] = {}
    exec(call, {"MillpondEmbeddings": lambda **options: taken.update(options)})
    assert taken
    assert taken.keys() <= MillpondEmbeddings.model_fields.keys()


def rows(start: str) -> dict[str, str]:
    """A table's parameters, each with what it is now, without the signs of Markdown."""
    found = {}
    for left, right in re.findall(r"^\| (`.*?) \| (.*) \|$", section(start), flags=re.MULTILINE):
        stem = ""
        for name in re.findall("`([^`]+)`", left):
            stem = stem if name.startswith("[") else name.partition("[")[0]
            found[f"{stem}{name}" if name.startswith("[") else name] = right.replace("`", "")
    return found


NOT_IN_TABLE = "its entries are parameters of their own"


@pytest.mark.parametrize(
    ("start", "renamed", "make"),
    [
        ("Switching from `HuggingFaceEmbeddings`", OF_EMBEDDINGS, MillpondEmbeddings),
        ("Switching rerankers", OF_RERANKERS, MillpondCrossEncoder),
    ],
)
def test_an_old_parameter_is_answered_with_its_row(
    start: str, renamed: dict[str, str], make: Any
) -> None:
    table = rows(start)
    for name, now in renamed.items():
        old, _, key = name.removesuffix('"]').partition('["')
        with pytest.raises(InvalidOption) as refused:
            make(model="any", **{old: {key: 1} if key else 1})
        assert f"{name} ({now})" in str(refused.value)
        if now not in (NOT_IN_TABLE, "none: the model runs in PyTorch") and name in table:
            assert now == table[name]
    assert len(renamed.keys() & table.keys()) > 3
    left_out = {one for one in table if '["' in one} - renamed.keys()
    assert left_out == set()


def test_a_typo_is_answered_with_what_is_meant() -> None:
    for options, part in (
        ({"devcie": "cpu"}, "devcie (did you mean device?)"),
        ({"engine_options": {"wramup": True}}, "wramup (did you mean warmup?)"),
    ):
        with pytest.raises(InvalidOption) as refused:
            MillpondEmbeddings(model="any", **options)
        assert part in str(refused.value)
