"""Words that the project used once, and what the field says instead.

A word counts wherever it stands: a name, a message, a comment or a page. `_` ends a word, so
`_give_way` holds `give_way`; words in lower case are found at the start of a sentence too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
READ = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/*.svg",
    "src/**/*.py",
    "integrations/*/README.md",
    "integrations/*/[hl]*/**/*.py",
)


class Old(NamedTuple):
    """Words of which one says `say`; with `where`, under that path only."""

    words: str
    """Separated by commas."""
    say: str
    where: str = ""


NAMES = (
    Old("Crew, crew", "WorkerPool, the worker pool"),
    Old("takers, may_start, _places", "idle_workers, can_start, free_slots", "src/millpond/engine"),
    Old("Twins, twin, twins, twin_texts", "in-flight deduplication, deduplicated_texts"),
    Old("Follower, follower, followers", "Duplicate, duplicates"),
    Old("batch_landed, landed, lands", "batch_completed, completed"),
    Old("ending.note, forget_all", "register, clear"),
    Old("Loop", "EngineCore"),
    Old("Service", "ModelInstance"),
    Old("Job, job, jobs, Jobs", "Request, request"),
    Old("Lane, lane, lanes, LaneQueue, lane_queue", "Priority, priority, RequestQueue"),
    Old("Chunk, Span", "TokenChunk, PendingSpan"),
    Old("Plan, _take_alike, misfits", "BatchBuilder, _add_identical_prefix, skipped"),
    Old("_room, waiting room", "_unadmitted", "src/millpond/scheduler"),
    Old("books", "BlockAllocation, invariants", "src/millpond/scheduler"),
    Old("settled, remembered", "committed, cached", "src/millpond/scheduler"),
    Old("_blank, _kept", "_free, _evictable", "src/millpond/scheduler"),
    Old("PrefixBudget, prefix_budget", "PrefixCacheConfig, prefix_cache_config"),
    Old("PrefixMemory, prefix_memory", "KVCacheConfig, kv_cache_config"),
    Old("_Flight, Flight", "InFlightBatch", "src/millpond/engine"),
    Old("Listener, listener", "BatchResult, which is returned", "src/millpond/engine"),
    Old("Ticket, ticket", "BatchHandle, handle"),
    Old("BatchRunner, batch_runner", "ModelRunner"),
    Old("Layout, PrefixLayout, layout of batches", "InputBatch, PrefixInputBatch; FileFormats"),
    Old("_left_out", "excluded prompt tokens", "src/millpond/runner"),
    Old("Pipeline, pipelines, load_pipelines", "PoolingModel, models"),
    Old("Head, head_modules", "Pooler"),
    Old("Place", "ModuleContext", "src/millpond/pooler"),
    Old("Execution", "ExecutionMode"),
    Old("prove, proves, proved, proven, prove_execution", "verify, verified"),
    Old("selfcheck, self-check", "verify, the check at load"),
    Old("leave_out_pooler", "drop_unused_pooler"),
    Old("promised", "with_device_guarantees", "src/millpond/model"),
    Old("COMPANY", "batch sizes"),
    Old("same_bits, same bits", "batch_invariant; bitwise identical"),
    Old("steady, _steady_columns", "batch-invariant", "src/millpond/layers"),
    Old("fixed_shapes, fixed_rows", "batch_invariant"),
    Old("flat layer, flat layers, FlatLayer, FlatEncoder, flatten_layers", "fused encoder layers"),
    Old("use_own_forward", "use_reference_forward"),
    Old("evening, evened, evens", "SmoothQuant smoothing, smoothed"),
    Old("codes, steps", "quantised values, scales", "src/millpond/layers/cpu/int8"),
    Old("RightOfWay, right of way, right_of_way", "Preemption, preemption"),
    Old("give_way, gives way, give way, step_aside", "yield_to_queries, yield"),
    Old(
        "steps aside, step aside, stepped aside, aside", "yields, is preempted", "src/millpond/cpu"
    ),
    Old("steps aside, step aside, stepped aside", "yields, is preempted"),
    Old("CpuThreads, cpu_threads", "CpuWorkers"),
    Old("ThreadChoice, thread_choice", "ThreadTuner"),
    Old("threads_for_a_check", "limited_threads"),
    Old("RecordedForwards, Recorder, Recording", "CudaGraphs, capture function, CapturedGraph"),
    Old("recorded, recorder, recording", "captured, capture", "src/millpond/runner/cuda"),
    Old("_give_up", "_disable", "src/millpond/runner/cuda"),
    Old("spare", "null slot", "src/millpond/attention"),
    Old("RotaryStart", "RotaryState"),
    Old("Ends, KINDS, CONTINUATIONS", "SpecialTokens, probe texts", "src/millpond/tokenization"),
    Old("Recent", "functools.lru_cache"),
    Old("SilentBar", "progress suppression"),
    Old("Exchange, exchange", "RequestContext", "src/millpond/server"),
    Old("Observer, AnswerGuard, KeyGuard", "AccessLog-, Timeout-, APIKeyMiddleware"),
    Old("Lifecycle", "DrainState"),
    Old("HUNG_UP", "CLIENT_CLOSED_REQUEST"),
    Old("answer_or_hang_up", "result_or_disconnect"),
    Old("Note, rows_left, survey", "Manifest, rows_written, scan", "src/millpond/cli"),
    Old("runs_here, owns_this_thread", "can_run_inline, is_engine_thread"),
    Old("_weigh_prefixes, _fruitless, in vain", "_drop_unprofitable_prefixes, misses in a row"),
)
PHRASES = (
    Old("guest, good guest, phones nobody", "no side effects; half of the memory free at start"),
    Old("the door, at the door", "validation of inputs and options"),
    Old("company", "batch composition; batch-invariant"),
    Old("of BERT's kind, of its kind", "BERT-style encoder layers"),
    Old("kin", "and derivatives, or a subclass"),
    Old("brings home, bring home, brings their vectors home", "collects the results"),
    Old("is home, are home, not home, come home, comes home, came home", "is in flight, completed"),
    Old("on its way, on their way", "in flight"),
    Old("the executor's word", "called by the executor when"),
    Old("of late, who was quicker", "recently (moving median)"),
    Old("beginnings of texts, beginnings, begin alike", "prefixes"),
    Old("go on from, goes on from, going on from", "continue from the cached prefix"),
    Old("played back, play back", "replayed"),
    Old("recorded and replayed, recorded as", "captured and replayed"),
    Old("page-locked", "pinned"),
    Old("leaves no place taken, takes no place", "releases the worker slot"),
    Old("comes to nothing, come to nothing, in no time, without end", "the number"),
    Old("under way", "in flight, running"),
    Old("is due, are due, patience, impatience", "aged past the starvation limit"),
    Old("nothing of it is, so many", "not truncated; N"),
    Old(
        "somebody, nobody, anybody, everybody, whoever, who waits",
        "which thread, caller or client it is",
    ),
)
ALLOWED: Mapping[tuple[str, str], str] = {
    ("src/millpond/scheduler/request_queue.py", "_room"): "has_room_for asks about tokens",
    ("integrations/haystack/README.md", "Pipeline"): "a class of Haystack's",
}
"""By path and word, with the reason why the word is right there."""


class Found(NamedTuple):
    path: str
    line: int
    word: str


@cache
def texts() -> Mapping[str, str]:
    """Everything that is read, by its path."""
    paths = {path for pattern in READ for path in ROOT.glob(pattern)}
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


def pattern(word: str) -> re.Pattern[str]:
    """A word or a phrase; lines of a phrase may be broken, in a comment too."""
    first = f"[{word[0]}{word[0].upper()}]" if word[0].islower() else re.escape(word[0])
    parts = map(re.escape, word[1:].split(" "))
    start = "" if word.startswith("_") else r"(?<![A-Za-z0-9])"
    return re.compile(start + first + r"[\s#]+".join(parts) + r"(?![A-Za-z0-9])")


def occurrences(old: Old, read: Mapping[str, str]) -> Iterator[Found]:
    for word in old.words.split(", "):
        wanted = pattern(word)
        for path, text in read.items():
            if path.startswith(old.where) and (path, word) not in ALLOWED:
                for match in wanted.finditer(text):
                    yield Found(path, text.count("\n", 0, match.start()) + 1, word)


@pytest.mark.parametrize("old", [*NAMES, *PHRASES], ids=lambda old: old.words.partition(",")[0])
def test_the_field_s_word_is_used(old: Old) -> None:
    found = [f"{path}:{line}: {word}" for path, line, word in occurrences(old, texts())]
    assert not found, f"say {old.say}:\n" + "\n".join(found)


def test_words_are_found_in_names_comments_and_across_lines() -> None:
    read = {"src/a.py": "def _give_way():\n    # It gives\n    # way; Give_ways are not it.\n"}
    old = Old("give_way, gives way", "yield")
    assert list(occurrences(old, read)) == [
        Found("src/a.py", 1, "give_way"),
        Found("src/a.py", 2, "gives way"),
    ]


def test_every_pattern_finds_its_own_word() -> None:
    for old in (*NAMES, *PHRASES):
        path = f"{old.where}/a.py" if old.where else "docs/a.md"
        for word in old.words.split(", "):
            assert word in {found.word for found in occurrences(old, {path: f"x {word} y"})}


def test_what_is_read_and_what_is_allowed_is_there() -> None:
    assert {"README.md", "docs/architecture.md", "src/millpond/__init__.py"} <= texts().keys()
    for path, word in ALLOWED:
        assert pattern(word).search(texts()[path]), f"{path} no longer says {word}"
