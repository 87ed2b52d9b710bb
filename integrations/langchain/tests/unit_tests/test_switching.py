"""The page for those who switch leaves no old parameter out."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_millpond import MillpondEmbeddings

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
