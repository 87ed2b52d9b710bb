"""A whole run with peers that are a few lines of numpy, each in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.cpu import measure, workloads
from benchmarks.cpu.plan import FEWEST_QUERIES, Sizes, of_round, texts
from benchmarks.peers import environments, peer
from benchmarks.peers.workers import WorkerFailed

pytestmark = pytest.mark.slow

PEERS = '''
import os
from functools import partial
import numpy as np
from benchmarks.peers.peer import Embedder, Peer

class Letters(Embedder):
    """How often each of eight letters occurs."""
    def __init__(self, folder, shift=0.0, fails=""):
        print("libraries print while they load")
        if fails == "load":
            raise RuntimeError("no such operator")
        self.shift, self.fails, self.computed = shift, fails, 0
    def query(self, text):
        return self.embed([text])[0]
    def embed(self, texts):
        if self.fails == "late" and len(texts) == 1 and texts != ["the first vector"]:
            raise ValueError("request is busy")
        if self.fails == "dies" and len(texts) == 4:
            print("out of memory", file=__import__("sys").stderr, flush=True)
            os._exit(3)
        self.computed += len(texts)
        counts = np.array([[1 + text.count(letter) for letter in "etaoinsh"] for text in texts])
        vectors = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return vectors + self.shift * np.eye(8)[0]
    def tokens(self):
        return self.computed, 2 * self.computed

PEERS = (
    Peer("sentence-transformers", Letters, "the reference"),
    Peer("right", Letters, "the same"),
    Peer("rough", partial(Letters, shift=1e-3), "nearly", precision="bfloat16"),
    Peer("wrong", partial(Letters, shift=1e-3), "nearly, but says float32"),
    Peer("broken", partial(Letters, fails="load"), "cannot be loaded"),
    Peer("busy", partial(Letters, fails="late"), "fails in some figures"),
    Peer("dies", partial(Letters, fails="dies"), "ends before its time"),
    Peer("absent", Letters, "has no environment", environment="elsewhere"),
)
'''
SIZES = Sizes(
    rounds=2,
    start_rounds=1,
    texts={"queries": 6, "passages": 8, "chunks": 4},
    lone_queries=3,
    lengths=(16,),
    tokens_of_each_length=128,
    callers=(2,),
    queries_of_a_caller=2,
    ingestion_s=0.01,
    loads=(0.5,),
    mixed_s=0.01,
    mixed_rounds=1,
)
LONGEST_WORD = 20  # in tokens: texts end with whole words
AT_ONCE = 5  # the reference and four of the others
SHIFTS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "letters.py").write_text(PEERS)
    texts_file = folder / "texts.json"
    texts_file.write_text(json.dumps(texts(SIZES, SHIFTS * SIZES.rounds)))
    made = measure.Run(SIZES, folder, texts_file)
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "FOLDER", folder)
        patch.setattr(environments, "python", lambda name: Path(sys.executable))
        patch.setattr(
            environments, "error", lambda name: "pip failed" if name != "common" else None
        )
        patch.setattr(measure, "matrix_rate", lambda precision: 1.0)
        patch.setattr("benchmarks.peers.start_up.PROGRAMS", {"nothing": ""})
        measure.measure(
            made,
            peer.read_all(folder),
            lambda: kept.append(len(made.records)),
            at_once=AT_ONCE,
        )
    assert len(kept) == SHIFTS * SIZES.rounds + 1
    assert kept == sorted(set(kept)), "every part adds to what is kept"
    return made


def figures(run, name):
    return {record["figure"] for record in run.records if record["peer"] == name}


def rounds(run, name, figure):
    wanted = (name, figure)
    return [r["round"] for r in run.records if (r["peer"], r["figure"]) == wanted]


def shifts_of(name):
    return SHIFTS if name == "sentence-transformers" else 1


def test_a_peer_with_wrong_vectors_is_not_timed(run) -> None:
    assert "an element is" in run.failures["wrong"]
    assert figures(run, "wrong") == set()


def test_a_peer_that_cannot_be_loaded_is_listed_with_its_error(run) -> None:
    assert "RuntimeError: no such operator" in run.failures["broken"]
    assert run.failures["absent"] == "pip failed"


def test_a_peer_that_dies_is_listed_and_the_others_go_on(run) -> None:
    assert run.failures["dies"].endswith("out of memory")
    assert "dies" not in run.workers
    assert set(run.failures) == {"wrong", "broken", "dies", "absent"}


def test_everybody_else_is_measured_in_every_figure_and_round(run) -> None:
    wanted = {"ingest", "lone_query", "callers", "during_ingestion", "mixed", "memory", "start"}
    for name in ("sentence-transformers", "right", "rough"):
        assert figures(run, name) == wanted
        assert len(set(rounds(run, name, "callers"))) == SIZES.rounds * shifts_of(name)


def test_the_mixed_workload_is_measured_in_the_first_rounds_of_a_shift(run) -> None:
    assert rounds(run, "sentence-transformers", "mixed") == [0, 2]


def test_the_reference_is_measured_in_every_shift_and_others_in_one(run) -> None:
    assert rounds(run, "sentence-transformers", "callers") == [0, 1, 2, 3]
    assert rounds(run, "rough", "callers") == [0, 1]
    assert set(rounds(run, "busy", "ingest")) == {2, 3}


@pytest.mark.parametrize(
    ("at_once", "sizes"),
    [(17, [17]), (16, [10, 10]), (10, [10, 10]), (9, [8, 8, 7]), (1, [4] * 14)],
)
def test_shifts_are_as_few_as_memory_allows(at_once, sizes) -> None:
    peers = dict.fromkeys((*peer.FIRST, *map(str, range(14))), (None, None))
    found = measure.shifts(peers, at_once)
    assert [len(shift) for shift in found] == sizes
    assert {name for shift in found for name in shift} == set(peers)
    assert all(list(shift)[:3] == list(peer.FIRST) for shift in found)


def test_without_its_reference_nothing_is_measured(tmp_path) -> None:
    texts_file = tmp_path / "texts.json"
    texts_file.write_text("{}")
    nowhere = peer.Peer("sentence-transformers", peer.Embedder, "", environment="nowhere")
    with pytest.raises(WorkerFailed):
        measure.load(measure.Run(SIZES, tmp_path, texts_file), {"it": (nowhere, tmp_path)})


def test_a_figure_that_fails_is_kept_with_its_error(run) -> None:
    failed = {r["figure"] for r in run.records if r["peer"] == "busy" and "error" in r}
    assert {"lone_query", "callers"} <= failed
    assert "ingest" not in failed
    errors = [r["error"] for r in run.records if r["peer"] == "busy" and "error" in r]
    assert set(errors) == {"ValueError: request is busy"}


def test_the_order_is_reversed_every_other_round(run) -> None:
    def order(number):
        callers = (r for r in run.records if (r["figure"], r["round"]) == ("callers", number))
        return [record["peer"] for record in callers]

    assert order(0) == order(1)[::-1]


def test_what_is_counted_comes_back(run) -> None:
    record = next(r for r in run.records if (r["peer"], r["setting"]) == ("right", "passages"))
    assert (record["texts"], record["tokens"], record["computed_tokens"]) == (8, 8, 16)
    assert len(next(r for r in run.records if r["figure"] == "callers")["times"]) == FEWEST_QUERIES
    assert run.agreements["rough"]["difference"] == pytest.approx(1e-3)


def test_every_peer_in_the_folder_says_what_it_is() -> None:
    found = peer.read_all()
    assert list(found)[:3] == ["sentence-transformers", "millpond auto", "millpond float32"]
    for name, (entry, _) in found.items():
        assert entry.about, name
        assert (environments.LISTS / f"{entry.environment}.txt").exists(), name


def test_every_round_has_texts_of_its_own_of_about_the_same_lengths() -> None:
    lists = texts(SIZES, 2)
    for name in ("queries", "passages", "chunks", "lone", "length 16", "callers 2"):
        first, second = lists[of_round(name, 0)], lists[of_round(name, 1)]
        assert not {*first} & {*second}
        assert not {*first} & {*lists[name]}
        counts = zip(workloads.token_counts(first), workloads.token_counts(second), strict=True)
        assert all(abs(one - other) <= LONGEST_WORD for one, other in counts)
