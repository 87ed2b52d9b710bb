"""Run the README's install lines in earnest: `python install_lines.py [LINE…]`.

Each line gets a virtual environment of its own, in which torch's line has been run first, and from
which every package that it names is imported then. Lines whose packages PyPI does not have yet are
left out, with a message. It needs a network, and takes minutes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    "millpond": "millpond",
    "langchain-millpond": "langchain_millpond",
    "llama-index-embeddings-millpond": "llama_index.embeddings.millpond",
    "llama-index-postprocessor-millpond-rerank": "llama_index.postprocessor.millpond_rerank",
    ".": "millpond",
    "./integrations/langchain": "langchain_millpond",
    "./integrations/llama-index": "llama_index.embeddings.millpond",
    "./integrations/llama-index-rerank": "llama_index.postprocessor.millpond_rerank",
    "torch": "torch",
}
"""What is imported once a requirement is installed."""


def lines() -> list[str]:
    """The install lines of the README, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("pip ")]


def requirements(line: str) -> list[str]:
    """What a line installs, without extras."""
    words = shlex.split(line)[2:]
    return [word.partition("[")[0] for word in words if word.partition("[")[0] in MODULES]


def is_published(name: str) -> bool:
    """Whether PyPI has it; a folder of the clone counts."""
    if name.startswith("."):
        return True
    try:
        urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=30).close()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return False
    return True


def run(line: str, first: str, folder: Path) -> None:
    """Install, and import what was installed."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for each in dict.fromkeys((first, line)):
        install = [python, "-m", *shlex.split(each), "--quiet", "--disable-pip-version-check"]
        subprocess.run(install, cwd=ROOT, check=True)
    imports = "; ".join(f"import {MODULES[name]}" for name in requirements(line))
    subprocess.run([python, "-c", imports], cwd=folder, check=True)


def main(chosen: Sequence[str]) -> None:
    everything = lines()
    for line in chosen or everything:
        missing = [name for name in requirements(line) if not is_published(name)]
        if missing:
            print(f"{line}\n  left out: PyPI does not have {', '.join(missing)} yet", flush=True)
            continue
        print(line, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run(line, everything[0], Path(folder) / "environment")


if __name__ == "__main__":
    main(sys.argv[1:])
