"""What the wheel holds, and what the module imports and says of itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
import tarfile
import typing
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

import langchain_millpond
import millpond
from langchain_millpond import (
    MillpondCrossEncoder,
    MillpondEmbeddings,
    MillpondMilvusSparseEmbeddings,
    MillpondRerank,
    MillpondSparseEmbeddings,
)
from langchain_millpond.embeddings import EmbeddingOptions
from langchain_millpond.rerank import DocumentOptions, RerankOptions
from langchain_millpond.sparse_model import SparseOptions
from millpond.integrations import engine_fields

SOURCE = Path(langchain_millpond.__file__).parent
PUBLIC = ("millpond", engine_fields.__name__)
PROJECT = Path(__file__).parents[2]
CLASSES = (
    MillpondCrossEncoder,
    MillpondEmbeddings,
    MillpondMilvusSparseEmbeddings,
    MillpondRerank,
    MillpondSparseEmbeddings,
)


def test_the_wheel_is_typed_and_has_its_licence() -> None:
    names = {Path(file).name for file in distribution("langchain-millpond").files or ()}
    assert {"py.typed", "LICENSE", "__init__.py", "embeddings.py", "rerank.py"} <= names
    assert (SOURCE / "py.typed").is_file()


def test_the_classes_are_exported() -> None:
    assert langchain_millpond.__all__ == [one.__name__ for one in CLASSES]


def test_only_public_names_of_millpond_are_imported() -> None:
    imported = set()
    for path in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("millpond"):
                assert node.module in PUBLIC
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("millpond") for alias in node.names)
    assert "Engine" in imported
    assert imported <= {*millpond.__all__, *engine_fields.__all__}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_everyday_option_of_the_engine_is_a_field_with_its_default(kind: type[Any]) -> None:
    options = {field.name: field.default for field in dataclasses.fields(millpond.EngineConfig)}
    fields = kind.model_fields
    for name in ("device", "dtype", "max_length", "revision", "trust_remote_code"):
        assert fields[name].get_default(call_default_factory=True) == options[name]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MillpondCrossEncoder, RerankOptions),
        (MillpondEmbeddings, EmbeddingOptions),
        (MillpondMilvusSparseEmbeddings, SparseOptions),
        (MillpondRerank, DocumentOptions),
        (MillpondSparseEmbeddings, SparseOptions),
    ],
)
def test_type_checkers_and_the_schema_know_every_field(kind: type[Any], options: Any) -> None:
    fields = set(kind.model_fields)
    assert set(typing.get_type_hints(options)) == fields | {"model_name"}
    assert set(inspect.signature(kind).parameters) == fields | {"engine"}
    assert set(kind.model_json_schema()["properties"]) == fields


def test_the_source_distribution_holds_what_can_be_used_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the builder is not installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True, timeout=120)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert "langchain_millpond/embeddings.py" in names
    assert not [name for name in names if name.startswith("tests")], "they need the repository"


def test_the_readme_can_be_read_where_the_package_is_found() -> None:
    assert "](.." not in (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "section",
    [
        "Setup:",
        "Key init args — embedding params:",
        "Key init args — engine params:",
        "Instantiate:",
        "Embed single text:",
        "Embed multiple texts:",
        "Async:",
    ],
)
def test_the_docstring_has_the_sections_of_the_api_reference(section: str) -> None:
    assert f"\n{section}\n" in inspect.getdoc(MillpondEmbeddings)
