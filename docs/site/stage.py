"""Stages the pages of the documentation's site: `python docs/site/stage.py FOLDER`.

The pages are written to be read in the repository, so they link to files of it. Here they are
copied beside each other, with the READMEs of the adapters, the notebooks and the changelog among
them, and every link is pointed at the page it names, or at the repository where there is none. It
knows nothing of the generator but the name of its configuration.
"""

from __future__ import annotations

import dataclasses
import html
import json
import posixpath
import re
import shutil
import sys
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import millpond
from millpond import EngineConfig, errors

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "integrations/haystack/README.md": "haystack.md",
    "integrations/langchain/README.md": "langchain.md",
    "integrations/llama-index/README.md": "llama-index.md",
    "integrations/llama-index-rerank/README.md": "llama-index-rerank.md",
}
"""Files outside docs/ that are pages of the site. The README's place is taken by docs/index.md."""
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)"
)
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
OPTIONS = "<!-- the options of EngineConfig -->"
NAMES = "<!-- every other public name -->"
ELSEWHERE_IN_REFERENCE = {"Engine", "EngineConfig", "__version__", *errors.__all__}


def urls() -> Mapping[str, str]:
    """Where the project and its site are, by the names in `[project.urls]`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: Mapping[str, str] = tomllib.load(file)["project"]["urls"]
    return found


def pages() -> dict[str, str]:
    """Every page's file in the repository, and its place in the site."""
    docs = ROOT / "docs"
    found = {
        f"docs/{path.relative_to(docs)}": path.relative_to(docs).as_posix()
        for path in sorted(docs.rglob("*.md"))
        if SITE not in path.parents
    }
    notebooks = {
        f"docs/notebooks/{path.name}": f"notebooks/{path.stem}.md"
        for path in sorted(docs.glob("notebooks/*.ipynb"))
    }
    outside = {source: page for source, page in ELSEWHERE.items() if source != "README.md"}
    return found | notebooks | outside


def notebook(path: Path) -> str:
    """A notebook as a page: its cells, and what the code printed when it was written."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", ())
            parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def type_name(hint: object) -> str:
    """A type as one writes it after the imports."""
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return re.sub(r"\b(?:typing|collections\.abc)\.", "", name)


def option_lines() -> Iterator[str]:
    """The table of the engine's options, from where they are declared."""
    yield "| option | default | |"
    yield "|---|---|---|"
    hints = typing.get_type_hints(EngineConfig)
    for option in dataclasses.fields(EngineConfig):
        default = "" if option.default is dataclasses.MISSING else f"`{option.default!r}`"
        about = option.metadata.get("help", "A folder, or a model's name on the Hugging Face hub.")
        kind = html.escape(type_name(hints[option.name]), quote=False).replace("|", "&#124;")
        yield f"| `{option.name}`<br><small>{kind}</small> | {default} | {about} |"


def names() -> Iterator[str]:
    """An entry of the reference for every public name that has no page of its own."""
    for name in sorted(set(millpond.__all__) - ELSEWHERE_IN_REFERENCE, key=str.lower):
        yield f"::: millpond.{name}\n"


class Stage:
    """One run: the folder that is filled, and the links that lead out of it."""

    def __init__(self, folder: Path) -> None:
        self._pages = folder / "pages"
        self._places = pages()
        self._repository = urls()["Repository"]

    def run(self) -> None:
        shutil.rmtree(self._pages, ignore_errors=True)
        for source, page in self._places.items():
            path = ROOT / source
            text = notebook(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
            text = text.replace(OPTIONS, "\n".join(option_lines()))
            text = text.replace(NAMES, "\n".join(names()))
            target = self._pages / page
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._with_links(text, source, page), encoding="utf-8")

    def _with_links(self, text: str, source: str, page: str) -> str:
        """The text with every relative link rewritten, but what stands in code."""
        parts = FENCE.split(text)
        for i in range(0, len(parts), 2):
            parts[i] = LINK.sub(lambda match: self._link(match, source, page), parts[i])
        return "".join(parts)

    def _link(self, match: re.Match[str], source: str, page: str) -> str:
        image, text, target, fragment = match.groups()
        text = LINK.sub(lambda inner: self._link(inner, source, page), text)
        named = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if named == "README.md":
            place: str | None = ELSEWHERE[named]
            fragment = None
        else:
            place = self._places.get(named)
        if place is None and image:
            place = f"pictures/{named.replace('/', '-')}"
            (self._pages / "pictures").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / named, self._pages / place)
        if place is None:
            kind = "tree" if (ROOT / named).is_dir() else "blob"
            return f"[{text}]({self._repository}/{kind}/main/{named}{fragment or ''})"
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{image}[{text}]({relative}{fragment or ''})"


def configuration() -> str:
    """The generator's settings, without pages that are not there."""
    places = set(pages().values())
    paths = [str(ROOT / "src"), *(str(path) for path in sorted(ROOT.glob("integrations/*/")))]
    found = urls()
    lines = []
    for line in (SITE / "zensical.toml").read_text(encoding="utf-8").splitlines():
        page = re.search(r'"([\w/-]+\.md)" }', line)
        if page is None or page[1] in places:
            line = line.replace("@site@", found["Documentation"])
            line = line.replace("@repository@", found["Repository"])
            lines.append(line.replace("@paths@", json.dumps(paths)))
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    Stage(folder).run()
    (folder / "zensical.toml").write_text(configuration(), encoding="utf-8")


if __name__ == "__main__":
    main()
