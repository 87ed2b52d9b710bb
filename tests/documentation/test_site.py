"""The documentation's site: every page is in it, and every link leads somewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import millpond

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
READ = ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "integrations/*/README.md", "benchmarks/*.md")
TASKS = {
    "embed": "getting-started.md#embed",
    "search": "getting-started.md#search",
    "a LangChain chain": "langchain.md#use-in-a-chain",
    "a LlamaIndex index": "llama-index.md#use-in-an-index",
    "a notebook": "notebooks/first-steps.md",
    "CSV to Parquet": "cli.md#millpond-embed",
    "a server and OpenAI's client": "server.md#quick-start",
    "rerank": "rerankers.md",
    "options for a GPU": "gpu.md#options",
    "why is my text cut": "questions.md#why-was-my-text-cut",
}
"""What a newcomer wants to do, and the place that says how. One click from the front page."""


@pytest.fixture(scope="module")
def stage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage", ROOT / "docs" / "site" / "stage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def staged(stage: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    stage.Stage(folder).run()
    return folder / "pages"


class Link(NamedTuple):
    source: Path
    target: str
    fragment: str


def text_of(path: Path) -> str:
    """A page without its code; of a notebook the cells of text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return FENCE.sub("", text)


def links(paths: Iterator[Path]) -> Iterator[Link]:
    for path in paths:
        for match in LINK.finditer(text_of(path)):
            yield Link(path, match[1], match[2] or "")


def anchors(path: Path) -> set[str]:
    """The names that GitHub, and the site, give to a page's headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found[name] = found.get(name, 0) + 1
    return {f"{name}-{n}" if n else name for name, count in found.items() for n in range(count)}


def broken(paths: Iterator[Path]) -> list[str]:
    wrong = []
    for link in links(paths):
        target = (link.source.parent / link.target).resolve() if link.target else link.source
        if not target.exists():
            wrong.append(f"{link.source}: {link.target} is not there")
        elif link.fragment and target.suffix == ".md" and link.fragment not in anchors(target):
            wrong.append(f"{link.source}: {link.target}#{link.fragment} has no such heading")
    return wrong


def test_every_link_of_the_repository_leads_somewhere() -> None:
    paths = sorted({path for pattern in READ for path in ROOT.glob(pattern)})
    assert len(paths) > 20
    assert not broken(iter(paths))


def test_every_link_of_the_site_leads_somewhere(staged: Path) -> None:
    paths = sorted(staged.rglob("*.md"))
    assert len(list(links(iter(paths)))) > 100
    assert not broken(iter(paths))


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A b\n[x](#a-b) [y](#no) [z](b.md)\n```\n[code](no.md)\n```\n")
    wrong = broken(iter([tmp_path / "a.md"]))
    assert [line.partition(": ")[2] for line in wrong] == [
        "#no has no such heading",
        "b.md is not there",
    ]


def test_links_out_of_the_documentation_lead_to_the_repository(staged: Path) -> None:
    page = (staged / "server.md").read_text(encoding="utf-8")
    assert "/blob/main/deploy/grafana-dashboard.json)" in page
    assert "](../" not in page
    assert "](pictures/" in (staged / "benchmarks.md").read_text(encoding="utf-8")
    assert "](server.md#post-rerank)" in (staged / "integrations.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation(stage: ModuleType, staged: Path) -> None:
    listed = set(re.findall(r'"([\w/-]+\.md)" }', stage.configuration()))
    assert listed == {path.relative_to(staged).as_posix() for path in staged.rglob("*.md")}


@pytest.mark.parametrize("task", TASKS)
def test_a_newcomer_finds_it_from_the_front_page(task: str, staged: Path) -> None:
    place, _, fragment = TASKS[task].partition("#")
    assert f"]({TASKS[task]})" in (staged / "index.md").read_text(encoding="utf-8")
    assert (staged / place).is_file()
    assert not fragment or fragment in anchors(staged / place)


def test_the_readme_leads_to_every_section_of_the_documentation() -> None:
    readme = {
        (link.source.parent / link.target).resolve() for link in links(iter([ROOT / "README.md"]))
    }
    for page in (
        "index",
        "getting-started",
        "engine",
        "cli",
        "server",
        "gpu",
        "questions",
        "moving",
    ):
        assert ROOT / "docs" / f"{page}.md" in readme


def test_the_options_of_an_engine_are_described_once(staged: Path) -> None:
    page = (staged / "api" / "options.md").read_text(encoding="utf-8")
    shown = inspect.getdoc(millpond.EngineConfig) or ""
    for option in dataclasses.fields(millpond.EngineConfig):
        about = option.metadata.get("help", "A folder")
        assert f"| `{option.name}`<br>" in page
        assert about in page
        assert about.split()[0] in shown
        assert f"{option.name}: " in shown


def test_the_reference_has_every_public_name(staged: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (staged / "api").glob("*.md"))
    for name in set(millpond.__all__) - set(millpond.errors.__all__) - {"__version__"}:
        assert f"::: millpond.{name}\n" in pages, name
    assert "::: millpond.errors\n" in pages
