"""Results of made-up runs, where every number can be worked out by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

from benchmarks.report import tables as report

FIRST, SECOND = "sentence-transformers", "millpond auto"


def run(peer, figure, setting="", number=0, **values):
    return {"peer": peer, "figure": figure, "setting": setting, "round": number, **values}


def ingested(peer, workload, number, seconds, computed=200):
    values = {"seconds": seconds, "texts": 10, "tokens": 100, "computed_tokens": computed}
    return run(peer, "ingest", workload, number, **values)


def made_up_runs():
    """Two peers and three rounds; the machine is half as fast in the last round."""
    found = []
    for number, slowness in enumerate((1, 1, 2)):
        found.append(run(None, "matrix_rate", "float32", number, per_second=1000 / slowness))
        found.append(run(None, "matrix_rate", "bfloat16", number, per_second=2000 / slowness))
        for workload in ("queries", "passages", "chunks", "length 64", "length 512"):
            found.append(ingested(FIRST, workload, number, 1.0 * slowness))
            found.append(ingested(SECOND, workload, number, 0.25 * slowness, computed=100))
        for peer, pace in ((FIRST, 2), (SECOND, 1)):
            times = [0.001 * pace] * 99 + [0.1]
            found.append(run(peer, "lone_query", "", number, times=times))
            for callers in ("8", "64"):
                values = {"times": [0.01] * 50, "seconds": 0.5 * pace}
                found.append(run(peer, "callers", callers, number, **values))
            calls = [2.0 * slowness * (1 if peer == FIRST else 0.2)]
            values = {"times": [0.005] * 10, "calls": calls, "texts": 10}
            found.append(run(peer, "during_ingestion", "", number, **values))
            found.append(run(peer, "start", "", number, seconds=2.0 * pace))
        for load in ("0.5 × 20 requests/s", "2 × 20 requests/s"):
            found.append(run(SECOND, "mixed", load, number, queries=[0.004], jobs=[], seconds=3))
        found.append(run(FIRST, "mixed", "0.5 × 20 requests/s", number, error="busy"))
        found.append(run(None, "start", report.FLOOR, number, seconds=1.0))
    return [*found, *(run(peer, "memory", peak_bytes=2**30) for peer in (FIRST, SECOND))]


def made_up_results() -> dict[str, Any]:
    """Two peers that were timed and one that was not."""
    workloads = ("queries", "passages", "chunks", "length 64", "length 512")
    of_texts = {"texts": 10, "tokens": 100, "median": 9, "operations": 500.0}
    entry = {"environment": "common", "versions": {"torch": "2.13.0"}}
    agreement = {"cosine": 0.9999, "difference": 1e-3}
    made = {
        "machine": {
            "date": "2026-11-24",
            "processor": "Abacus",
            "cores": 2,
            "extensions": ["avx2"],
            "system": "Linux",
            "python": "3.11.7",
        },
        "sizes": {"rounds": 3, "texts": {"queries": 10, "passages": 10, "chunks": 10}},
        "minutes": 1.5,
        "load_average_after_each_round": [0.5, 0.6, 0.7],
        "peers": {
            FIRST: entry | {"about": "one", "precision": "float32", "agreement": agreement},
            SECOND: entry | {"about": "two", "precision": "bfloat16", "agreement": agreement},
            "absent": entry | {"about": "three", "precision": "float32", "agreement": None},
        },
        "failures": {"absent": "ModuleNotFoundError:\n no module"},
        "texts": {name: dict(of_texts) for name in workloads},
        "runs": made_up_runs(),
    }
    return copy.deepcopy(json.loads(json.dumps(made)))
