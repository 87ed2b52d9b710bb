"""What only a process of its own shows: forks, spawned workers, what a user reads, the example."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from langchain_millpond import MillpondEmbeddings

ROOT = Path(__file__).parents[4]

FORK = """
import os, sys, traceback
from langchain_millpond import MillpondEmbeddings

embeddings = MillpondEmbeddings(model=sys.argv[1])
before = embeddings.embed_query("bread")
child = os.fork()
if child == 0:
    try:
        same = embeddings.embed_query("bread") == before
        same = same and embeddings.embed_documents(["bread"] * 100)[99] == before
        os._exit(0 if same else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
_, status = os.waitpid(child, 0)
assert embeddings.embed_query("bread") == before
sys.exit(os.waitstatus_to_exitcode(status))
"""

CUT = """
import asyncio, sys
from langchain_millpond import MillpondEmbeddings

embeddings = MillpondEmbeddings(model=sys.argv[1])
for _ in range(2):
    embeddings.embed_documents(["short", "long " * 600, "longer " * 700])
    asyncio.run(embeddings.aembed_query("long " * 600))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=ROOT,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_embeds_and_so_does_its_parent(model: str) -> None:
    result = run("-c", FORK, model)
    assert (result.returncode, result.stderr) == (0, "")


def test_cutting_texts_is_read_by_a_user_who_set_nothing_up(model: str) -> None:
    result = run("-c", CUT, model)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert [line[:14] for line in lines] == ["2 of 3 texts w", "1 of 1 texts w", "4 of 6 texts w"]


def test_a_spawned_worker_takes_the_object_and_loads_the_model(model: str) -> None:
    embeddings = MillpondEmbeddings(model=model)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as workers:
        assert workers.submit(embeddings.embed_query, "bread").result(240) == (
            embeddings.embed_query("bread")
        )


def test_the_example_answers_its_questions() -> None:
    result = run(str(ROOT / "examples" / "langchain_retrieval.py"))
    assert result.returncode == 0, result.stderr
    answers = {block.splitlines()[0]: block for block in result.stdout.strip().split("\n\n")}
    assert len(answers) == 3
    assert (
        "argparse.ArgumentParser"
        in answers["how do I parse the options of a command line program?"]
    )
    assert "calendar" in answers["how do I print the calendar of a month?"]
    assert "bisect.bisect" in answers["how do I find an element in a sorted list?"]


def test_the_example_is_short() -> None:
    source = (ROOT / "examples" / "langchain_retrieval.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 50
