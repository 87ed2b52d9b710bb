"""Every code block of the README, the documentation and the notebooks runs as it is pasted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from documentation import PAGES, ROOT, Block, blocks, save_hub

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
RUN = ("python", "diff", "sh", "bash", "shell")
SHOWN = ("", "text", "mermaid")
"""Languages of blocks that are outputs and pictures."""
NEEDS: Mapping[str, str] = {
    "core.next_batch(worker)": "nothing: two lines of the engine, which a test below finds there",
    'device="cuda': "GPUs",
    "tensor_parallel_size": "GPUs",
    "--tensor-parallel-size": "GPUs",
    "benchmarks/gpu/run.sh": "a GPU, for eight minutes",
    "benchmarks.gpu": "a GPU, for six minutes",
    ".venv-bench/": "an idle machine for an hour, and 6 GB of other libraries",
    "docker ": "Docker and a network",
    "helm ": "a Kubernetes cluster",
    "s3://": "a bucket and a Ray cluster",
    "millpond.ray": "a Ray cluster",
    "pyspark": "a Spark cluster",
    "import OpenAI from": "Node; tests/server/test_clients.py runs OpenAI's client for it",
}
"""What is in a block that is not run, and what the block would need."""
MOST_NOT_RUN = 19
SOCKET = "commands.socket"
NOTES = "The bakery opens at six.\nBread is sold out by nine.\nOpening night was a success.\n"
ROWS = [
    {"text": line, "body": line, "description": line, "id": number}
    for number, line in enumerate(NOTES.splitlines())
]


def reason(block: Block) -> str | None:
    """Why a block is not run, if it is not."""
    return next((why for part, why in NEEDS.items() if part in block.code), None)


def save_files(folder: Path) -> None:
    """The reader's own files, under the names that the pages use."""
    folder.mkdir()
    for name in ("notes.txt", "titles.txt", "corpus.txt"):
        (folder / name).write_text(NOTES, encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "reviews.jsonl").write_text(lines, encoding="utf-8")
    for name in ("products.csv", "reviews.csv"):
        rows = "".join(f"{row['id']},{row['body']},{row['body']}\n" for row in ROWS)
        (folder / name).write_text("id,body,description\n" + rows, encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "papers.parquet")


def save_commands(folder: Path) -> None:
    """Commands that stand in for the reader's.

    `millpond` is the real command line, in a process that is forked (`commands.py`); its servers
    are processes of their own. `pip` checks that there is what it would install, and `make` says
    what it would do.
    """
    folder.mkdir()
    real = Path(sys.executable).parent / "millpond"
    forked = f'"{sys.executable}" -S "{HERE / "commands.py"}" "{folder / SOCKET}" "$@"'
    stand_ins = {
        "millpond": f'[ "$1" = serve ] && exec "{real}" "$@"\nexec {forked}',
        "pip": f'exec "{sys.executable}" "{HERE / "pip_stand_in.py"}" "$@"',
        "make": f'exec "{shutil.which("make")}" -n -C "{ROOT}" "$@"',
    }
    for name, command in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@contextmanager
def commands(path: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The process that runs `millpond`'s commands, which are given to a socket at `path`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        program = [sys.executable, str(HERE / "commands.py"), "listen", str(listener.fileno())]
        process = subprocess.Popen(program, env=environment, pass_fds=[listener.fileno()])
        try:
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What went wrong in the blocks of all pages, by place."""
    folder = tmp_path_factory.mktemp("reader")
    save_hub(folder / "home", folder / "made")
    save_commands(folder / "commands")
    tasks = []
    for page in PAGES:
        cwd = folder / page.replace("/", "-")
        save_files(cwd)
        told = [
            {"language": block.language, "code": block.code, "where": str(block)}
            for block in blocks(page)
            if block.language in RUN and reason(block) is None
        ]
        tasks.append({"page": page, "folder": str(cwd), "blocks": told})
    (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    paths = [str(HERE / "loopback"), os.environ.get("PYTHONPATH", "")]
    folders = [str(folder / "commands"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {
        **os.environ,
        "ANONYMIZED_TELEMETRY": "False",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "LANGSMITH_TRACING": "false",
        "LLAMA_INDEX_CACHE_DIR": str(folder / "home" / "hub"),  # its own, for HuggingFaceEmbedding
        "DOCUMENTATION_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join(folders),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    read = [sys.executable, str(HERE / "reader.py"), "tasks.json", str(folder / "results.json")]
    with commands(folder / "commands" / SOCKET, environment):
        done = subprocess.run(
            read, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {each["where"]: each["error"] for each in results}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_runs_as_it_is_pasted(page: str, errors: Mapping[str, str]) -> None:
    wrong = [f"{where}\n{error}" for where, error in errors.items() if where.startswith(f"{page}:")]
    assert not wrong, "\n".join(wrong)


def test_few_blocks_are_not_run_and_they_compile() -> None:
    everything = [block for page in PAGES for block in blocks(page)]
    left_out = [block for block in everything if reason(block)]
    assert len(left_out) <= MOST_NOT_RUN < len(everything) / 4
    for block in left_out:
        if block.language == "python":
            compile(block.code, str(block), "exec")


def test_every_block_says_its_language() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in (*RUN, *SHOWN) or reason(block), f"{block}: {block.language}"


def test_the_quoted_engine_step_is_the_engine_s() -> None:
    (quoted,) = blocks("docs/architecture.md")
    source = (ROOT / "src/millpond/engine/core/threads.py").read_text(encoding="utf-8")
    for line in quoted.code.splitlines():
        assert line.strip() in source
