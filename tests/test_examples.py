"""Every example runs as it stands, on the real model."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkpoints import reference
from command_line import with_settings

from millpond import Engine

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
ANSWERS = ("timeit", "filecmp", "statistics", "tempfile", "functools")
"""The modules that answer the demo's questions, in their order."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart_finds_the_bakery(capsys: pytest.CaptureFixture[str]) -> None:
    load("quickstart").main()
    best = capsys.readouterr().out.splitlines()[0]
    assert "bakery" in best


def test_coroutines_share_forward_passes(capsys: pytest.CaptureFixture[str]) -> None:

    asyncio.run(load("async_queries").main())
    words = capsys.readouterr().out.split()
    queries, batches = int(words[0]), int(words[4])
    assert queries == 64
    assert batches < queries


def test_demo_answers_from_docstrings_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    demo = load("docstrings")
    demo.main(["--limit", "80", "what is a hash table?"])
    out = capsys.readouterr().out
    assert out.startswith("80 passages")
    assert "what is a hash table?" in out
    assert "packed, padding waste" in out
    assert out.count("\n  0.") == 3


def test_the_demo_s_questions_are_answered_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the modules of the answers and the ones most like them, which is quicker than all."""
    demo = load("docstrings")
    modules = {*ANSWERS, "time", "shutil", "copy", "fileinput"}
    some = [each for each in demo.gather_passages() if each.title.partition(".")[0] in modules]
    assert len(some) > 100
    monkeypatch.setattr(demo, "gather_passages", lambda: some)
    demo.main([])
    answers = capsys.readouterr().out.split("\n\n")[1:-1]
    assert [block.splitlines()[0] for block in answers] == list(demo.QUESTIONS)
    for block, module in zip(answers, ANSWERS, strict=True):
        assert re.match(rf"  0\.\d\d  {module}\b", block.splitlines()[1]), block


def test_similarity_finds_the_bakery(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["when can I buy bread?", "The bakery\nopens at six.", "It may rain." * 10]
    load("similarity").main(texts)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["1", "2", "3"]
    table = np.array([[float(number) for number in row.split()[1:4]] for row in rows])
    assert np.diag(table) == pytest.approx(1, abs=1e-4)
    assert table[0, 1] > table[0, 2] + 0.2
    assert rows[1].endswith("  The bakery opens at six.")


@pytest.mark.parametrize("function", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_is_that_of_the_checkpoint(
    function: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = with_settings(checkpoint("bert"), tmp_path / "model", similarity_fn_name=function)
    expected = reference(model)
    with Engine(model, dtype="float32") as engine:
        vectors = engine.embed(["bread?", "The bakery opens at six.", "It may rain."])
        assert engine.info().model.similarity_fn_name == function
    found = load("similarity").scores(vectors, function)
    assert found == pytest.approx(expected.similarity(vectors, vectors).numpy(), abs=1e-3)


def test_spark_s_workers_embed_documents() -> None:
    spark = load("spark_embed")
    texts = np.array(["The bakery opens at six.", "It may rain."], dtype=object)  # as Spark has it
    found = spark.make_predict()(texts)
    with Engine(spark.MODEL) as engine:
        assert np.array_equal(found, engine.embed(texts.tolist(), task="document"))


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("langchain_hybrid", "langchain_qdrant"),
        ("llama_index_hybrid", "llama_index.vector_stores.qdrant"),
    ],
)
def test_hybrid_retrieval_finds_a_name_that_is_asked_for(
    name: str, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in (package, "cognition"):
        pytest.importorskip(needed, reason="it is installed by the test extra")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    load(name).main()
    lines = capsys.readouterr().out.splitlines()
    asked = lines.index("what does bisect_left return?")
    assert lines[asked + 1] == "  bisect.bisect_left"


def test_late_interaction_finds_the_bakery(capsys: pytest.CaptureFixture[str]) -> None:
    load("late_interaction").main(["when can I buy bread?"])
    best, *_, by_maxsim, pooled = capsys.readouterr().out.splitlines()
    assert "bakery" in best
    assert "bakery" in by_maxsim
    assert pooled.startswith("with 35 vectors for 69")


def test_a_reranker_that_is_trained_on_the_spot_ranks_far_better_than_chance(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a fifth of the training; with all of it, it ranks better than BM25."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    folder = tmp_path / "reranker"
    ranks = load("train_reranker").main(
        ["--pairs", "1200", "--limit", "100", "--folder", str(folder)]
    )
    assert ranks.chance == pytest.approx(0.18, abs=0.001)
    assert ranks.reranker > 0.5
    assert f"this reranker  {ranks.reranker:.3f}" in capsys.readouterr().out
    with Engine(folder) as engine:
        assert engine.info().kind == "score"
