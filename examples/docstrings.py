"""Ask the Python standard library questions in plain English: the program behind `make demo`.

    python examples/docstrings.py                                  # five questions
    python examples/docstrings.py "how do I compress a string?"    # your own

The passages are the docstrings of the Python that runs this.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from millpond import Engine

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
QUESTIONS = (
    "how do I find out how long a piece of code takes?",
    "what compares two directories and tells me which files differ?",
    "how do I find the middle value of a list of numbers?",
    "how do I make a temporary folder that is deleted when I am done?",
    "how do I remember the results of a slow function?",
)
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "idlelib", "lib2to3"}
SHORTEST_CHARACTERS = 60
CHUNK_WORDS = 120  # all-MiniLM-L6-v2 reads 256 tokens
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Passage(NamedTuple):
    title: str
    """The full name of what it documents, such as `shutil.copytree`."""
    text: str

    @property
    def first_line(self) -> str:
        return self.text.strip().partition("\n")[0]


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """The public modules of the standard library that are written in Python, with their names."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for file in sorted(files):
            path = Path(folder, file)
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if path.suffix == ".py" and not any(part.startswith("_") for part in parts):
                yield ".".join(parts), path


def parsed_docstrings(name: str, node: ast.Module | Definition) -> Iterator[Passage]:
    """The docstrings in a piece of source, read without running any of it."""
    yield Passage(name, ast.get_docstring(node) or "")
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield from parsed_docstrings(f"{name}.{child.name}", child)


def compiled_docstrings(name: str, owner: object) -> Iterator[Passage]:
    """The docstrings of a module or class that is compiled into the interpreter."""
    yield Passage(name, inspect.getdoc(owner) or "")
    if inspect.ismodule(owner) or inspect.isclass(owner):
        for member_name, member in vars(owner).items():
            if callable(member) and not member_name.startswith("_"):
                yield from compiled_docstrings(f"{name}.{member_name}", member)


def documentation() -> Iterator[Passage]:
    """Every public docstring of the standard library, empty and repeated ones included."""
    for name, path in source_files(Path(sysconfig.get_path("stdlib"))):
        yield from parsed_docstrings(name, ast.parse(path.read_bytes()))
    for name in sys.builtin_module_names:
        if not name.startswith("_"):
            yield from compiled_docstrings(name, importlib.import_module(name))


def chunks(text: str) -> Iterator[str]:
    """The text cut at its blank lines into pieces of about CHUNK_WORDS words."""
    chunk: list[str] = []
    for paragraph in text.split("\n\n"):
        if chunk and len(" ".join([*chunk, paragraph]).split()) > CHUNK_WORDS:
            yield "\n\n".join(chunk)
            chunk = []
        chunk.append(paragraph)
    yield "\n\n".join(chunk)


def gather_passages() -> list[Passage]:
    """Distinct docstrings long enough to say something, in pieces the model can read."""
    distinct: dict[str, Passage] = {}
    for title, docstring in documentation():
        for text in chunks(docstring):
            if len(text) >= SHORTEST_CHARACTERS:
                distinct.setdefault(text, Passage(title, text))
    return list(distinct.values())


def answer(
    engine: Engine, questions: Sequence[str], passages: list[Passage], vectors: np.ndarray
) -> None:
    """Print the three passages closest in meaning to each question."""
    scores = engine.embed(questions, task="query") @ vectors.T  # unit vectors: this is the cosine
    for question, row in zip(questions, scores, strict=True):
        print(f"\n{question}")
        for best in np.argsort(-row)[:3]:
            print(f"  {row[best]:.2f}  {passages[best].title}: {passages[best].first_line}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Search the standard library in plain English.")
    parser.add_argument("question", nargs="*", default=QUESTIONS)
    parser.add_argument("--limit", type=int, help="embed only so many passages")
    options = parser.parse_args(arguments)

    passages = gather_passages()[: options.limit]
    print(f"{len(passages):,} passages from the docstrings of Python {platform.python_version()}")
    with Engine(MODEL) as engine:
        started = time.perf_counter()
        vectors = engine.embed(
            [f"{title}: {text}" for title, text in passages], task="document", progress=True
        )
        seconds = time.perf_counter() - started
        info, stats = engine.info(), engine.stats()
        answer(engine, options.question, passages, vectors)
    print(
        f"\n{stats.texts / seconds:,.0f} texts/s, {stats.tokens / seconds:,.0f} tokens/s on "
        f"{info.device} in {info.dtype}, {info.execution}, "
        f"padding waste {stats.padding_waste:.1%}"
    )


if __name__ == "__main__":
    main()
