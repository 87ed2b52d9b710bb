"""Law 10 and the good guest: how an engine begins, is shared, copied, forked and ended.

What only a whole process can show runs in one of its own.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    DIMENSION,
    PATIENCE_S,
    FakeRunner,
    FakeTokenizer,
    fake_spec,
    start_engine,
    vectors_for,
)

import millpond
from millpond import Engine, EngineClosed, EngineConfig, EngineFailed, ModelNotFound
from millpond.engine import process
from millpond.engine.instance import ModelInstance
from millpond.locks import SteadyFuture

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["one text", "another", ""]
PROCESS_TIMEOUT_S = 120

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def own_threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("millpond"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EngineConfig]]:
    """Loading a model gives a fake one, and is noted down. No engine is left shared."""
    noted: list[EngineConfig] = []

    def load(config: EngineConfig) -> ModelInstance:
        noted.append(config)
        if config.model == "missing":
            raise ModelNotFound("there is no such model")
        runner = FakeRunner(fatal_on=["fatal"])
        return ModelInstance(fake_spec(runner), [runner], [FakeTokenizer(runner)], config)

    monkeypatch.setattr(ModelInstance, "load", load)
    yield noted
    gc.collect()


# Closing.


@pytest.mark.parametrize("drain", [True, False])
def test_a_closed_engine_has_no_threads_and_takes_no_calls(drain: bool) -> None:
    before = own_threads()
    engine = start_engine(FakeRunner())
    assert engine.health == "ready"
    assert len(own_threads()) == len(before) + 4
    engine.embed("a")
    engine.close(drain=drain)
    assert engine.health == "closed"
    assert own_threads() == before
    engine.close(drain=drain)
    for call in (engine.embed, engine.submit):
        with pytest.raises(EngineClosed, match="make a new one"):
            call(["a"])
        with pytest.raises(EngineClosed):
            call([])
    with pytest.raises(EngineClosed):
        copy.copy(engine)


def test_closing_finishes_what_was_accepted() -> None:
    runner = FakeRunner(max_batch_tokens=2)
    texts = [f"a{n} b" for n in range(50)]
    runner.hold()
    engine = start_engine(runner)
    futures = [engine.submit(texts), engine.submit("query")]
    closing = threading.Thread(target=engine.close)
    closing.start()
    runner.wait_for_batches(1)
    runner.let()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    np.testing.assert_array_equal(futures[0].result(0).vectors, vectors_for(texts))
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_ends_when_the_last_call_is_cancelled_while_it_is_tokenized(workers: int) -> None:
    tokenizing, go_on = threading.Event(), threading.Event()

    class SlowTokenizer(FakeTokenizer):
        def encode(self, *texts: Any, **options: Any) -> Any:
            tokenizing.set()
            assert go_on.wait(PATIENCE_S)
            return super().encode(*texts, **options)

    runner = FakeRunner(workers=workers)
    engine = start_engine(runner, tokenizer=SlowTokenizer(runner))
    future = engine.submit(["a b", "c"], priority="bulk")
    assert tokenizing.wait(PATIENCE_S)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    pool = engine._instance.core.pool
    while engine.health == "ready" or not all(worker.idle for worker in pool.workers):
        closing.join(0)  # until everyone has looked and waits again
    assert future.cancel()
    go_on.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert engine.health == "closed"


def test_closing_many_engines_with_work_never_hangs() -> None:
    for number in range(60):
        engine = start_engine(FakeRunner(max_batch_tokens=2, depth=1 + number % 2))
        futures = [engine.submit(["a b", "c"]) for _ in range(3)]
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        assert all(future.done() for future in futures)


def test_leaving_the_block_with_an_error_does_not_wait_for_the_work() -> None:
    runner = FakeRunner(max_batch_tokens=2)
    runner.hold()

    def leave() -> None:
        with start_engine(runner) as engine:
            futures.extend([engine.submit(["a b", "c d"]), engine.submit(["e", "f"])])
            runner.wait_for_batches(1)
            futures[1].add_done_callback(lambda _: runner.let())
            raise KeyError("the caller's own")

    futures: list[Future[Any]] = []
    with pytest.raises(KeyError):
        leave()
    for future in futures:
        with pytest.raises(EngineClosed, match="before the call was finished"):
            future.result(0)
    assert len(runner.batches) == 1


@pytest.mark.parametrize("drain", [True, False])
def test_an_engine_may_be_closed_from_a_callback_with_work_left(drain: bool) -> None:
    before = own_threads()
    runner = FakeRunner(max_batch_tokens=2)
    runner.hold()
    engine = start_engine(runner)
    closed = threading.Event()

    def callback(future: object) -> None:
        engine.close(drain=drain)
        closed.set()

    first = engine.submit("a b")
    first.add_done_callback(callback)
    rest = [engine.submit([f"a{n}", "b"], priority="bulk") for n in range(3)]
    runner.let()
    assert closed.wait(PATIENCE_S)
    for future in rest:
        assert (future.exception(PATIENCE_S) is None) is drain
    for thread in engine._instance.core._threads:
        thread.join(PATIENCE_S)
    assert own_threads() == before
    assert engine.health == "closed"


def test_an_engine_may_be_closed_from_a_stats_hook() -> None:
    engine = start_engine(FakeRunner(max_batch_tokens=2))
    engine.add_stats_hook(lambda batch: engine.close())
    assert len(engine.submit(["a b", "c d", "e f"]).result(PATIENCE_S)) == 3
    for thread in engine._instance.core._threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_several_threads_may_close_at_once() -> None:
    engine = start_engine(FakeRunner())
    futures = [engine.submit(["a", "b"]) for _ in range(5)]
    threads = [threading.Thread(target=engine.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert all(future.result(PATIENCE_S) for future in futures)


def test_a_failed_engine_can_be_closed() -> None:
    engine = start_engine(FakeRunner(fatal_on=["fatal"]))
    with pytest.raises(EngineFailed):
        engine.embed("fatal")
    engine.close()
    assert engine.health == "failed"


def test_an_engine_nobody_holds_finishes_what_it_accepted_and_stops() -> None:
    before = own_threads()
    runner = FakeRunner(max_batch_tokens=2)
    runner.hold()
    engine = start_engine(runner)
    gone = weakref.ref(engine)
    loop_threads = engine._instance.core._threads
    future = engine.submit(["a b", "c d", "e f"])
    del engine
    gc.collect()
    assert gone() is None
    runner.let()
    np.testing.assert_array_equal(
        future.result(PATIENCE_S).vectors, vectors_for(["a b", "c d", "e f"])
    )
    for thread in loop_threads:
        thread.join(PATIENCE_S)
    assert own_threads() == before


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed is freed because nothing refers to it any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_last_engine_to_go_takes_the_weights_with_it(
    workers: int, closed: bool, no_collector: None
) -> None:
    engine = start_engine(FakeRunner(workers=workers))
    engine.embed(["a", "b"])
    kept = engine.submit("c")
    kept.result(PATIENCE_S)
    runner = weakref.ref(engine._instance.runners[0])
    threads = engine._instance.core._threads
    if closed:
        engine.close()
    del engine
    for thread in threads:
        thread.join(PATIENCE_S)
    del thread, threads
    assert runner() is None, "the weights would stay in memory"


# Sharing and copying.


def test_equal_configurations_share_one_model_until_the_last_is_closed(
    loads: list[EngineConfig],
) -> None:
    before = own_threads()
    first = Engine.shared("model", max_length=9, prompts={"a": "1", "b": "2"})
    second = Engine.shared("model", prompts={"b": "2", "a": "1"}, max_length=9)
    other = Engine.shared("model")
    assert len(loads) == 2
    assert first._instance is second._instance
    assert other._instance is not first._instance
    first.close()
    with pytest.raises(EngineClosed):
        first.embed("a")
    assert first.health == "closed"
    assert second.embed("a").shape == (DIMENSION,)
    second.close()
    assert len(own_threads()) == len(before) + 4
    third = Engine.shared("model", max_length=9, prompts={"a": "1", "b": "2"})
    assert len(loads) == 3, "the last one to go lets the model go"
    third.close()
    other.close()


def test_a_shared_engine_that_is_collected_lets_go(loads: list[EngineConfig]) -> None:
    first, second = Engine.shared("model"), Engine.shared("model")
    threads = first._instance.core._threads
    del first
    assert second.embed("a").shape == (DIMENSION,)
    del second
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    with Engine.shared("model"):
        assert len(loads) == 2


def test_many_threads_that_share_load_once(
    loads: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = 8
    load, everyone_asked = ModelInstance.load, threading.Barrier(callers)

    def slow_load(config: EngineConfig) -> ModelInstance:
        loading.set()
        assert others_wait.wait(PATIENCE_S)
        return load(config)

    loading, others_wait = threading.Event(), threading.Event()
    monkeypatch.setattr(ModelInstance, "load", slow_load)

    def share() -> Engine:
        everyone_asked.wait(PATIENCE_S)
        return Engine.shared("model")

    with ThreadPoolExecutor(callers) as pool:
        asked = [pool.submit(share) for _ in range(callers)]
        assert loading.wait(PATIENCE_S)
        others_wait.set()
        engines = [future.result(PATIENCE_S) for future in asked]
    assert len(loads) == 1
    assert len({id(engine._instance) for engine in engines}) == 1
    for engine in engines[1:]:
        engine.close()
    assert engines[0].embed("a").shape == (DIMENSION,)
    engines[0].close()
    assert engines[0]._instance.core.health == "closed"


def test_a_load_that_failed_is_tried_again(loads: list[EngineConfig]) -> None:
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            Engine.shared("missing")
    assert len(loads) == 2


def test_a_failed_engine_is_not_shared_any_further(loads: list[EngineConfig]) -> None:
    first = Engine.shared("model")
    with pytest.raises(EngineFailed):
        first.embed("fatal")
    second = Engine.shared("model")
    assert second.embed("a").shape == (DIMENSION,)
    first.close()
    third = Engine.shared("model")
    assert third._instance is second._instance, "the failed one takes nothing with it"
    second.close()
    third.close()


def test_sharing_and_closing_at_random_never_gives_a_closed_engine(
    loads: list[EngineConfig],
) -> None:
    before = own_threads()

    def use(number: int) -> None:
        for step in range(15):
            with Engine.shared("model") as engine:
                text = f"{number} {step}"
                np.testing.assert_array_equal(engine.embed(text), vectors_for([text])[0])

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(use, number) for number in range(6)]:
            future.result(PATIENCE_S)
    assert own_threads() == before


def test_each_thread_that_waits_for_a_load_gets_an_error_of_its_own(
    loads: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loading, fail = ModelInstance.load, threading.Event(), threading.Event()

    def slow_load(config: EngineConfig) -> ModelInstance:
        loading.set()
        assert fail.wait(PATIENCE_S)
        return load(config)

    monkeypatch.setattr(ModelInstance, "load", slow_load)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(Engine.shared, "missing")
        assert loading.wait(PATIENCE_S)
        asked = [pool.submit(Engine.shared, "missing") for _ in range(3)]
        registered = process._shared[EngineConfig(model="missing")]
        while len(registered._condition._waiters) < 3:
            pass  # until all of them wait for the first one's
        fail.set()
        errors = [future.exception(PATIENCE_S) for future in (first, *asked)]
    assert {type(error) for error in errors} == {ModelNotFound}
    assert {str(error) for error in errors} == {"there is no such model"}
    assert len({id(error) for error in errors}) == 4


def test_closing_is_not_disturbed_by_a_load_of_the_same_configuration_that_fails(
    loads: list[EngineConfig],
) -> None:
    before = own_threads()
    engine = Engine.shared("model")
    failed: process.Loading = SteadyFuture()
    failed.set_exception(ModelNotFound("another thread's"))
    process._shared[engine.config] = failed
    engine.close()
    assert engine.health == "closed"
    assert own_threads() == before
    assert process._shared.pop(engine.config) is failed


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_another_handle_on_the_same_model(copied: Any) -> None:
    before = own_threads()
    engine = start_engine(FakeRunner())
    other = copied(engine)
    assert other is not engine
    assert other._instance is engine._instance
    engine.close()
    assert other.embed("a").shape == (DIMENSION,)
    other.close()
    assert own_threads() == before


def test_an_engine_on_a_runner_of_its_own_does_not_pickle() -> None:
    with start_engine(FakeRunner()) as engine, pytest.raises(TypeError, match="with_runner"):
        pickle.dumps(engine)


def test_an_engine_pickles_to_its_configuration(loads: list[EngineConfig]) -> None:
    options: dict[str, Any] = {"max_length": 5, "prompts": {"a": "b"}, "pooling": "mean"}
    with Engine.shared("model", **options) as engine:
        data = pickle.dumps(engine)
        assert len(data) < 2000, "no weights"
        with pickle.loads(data) as same:
            assert same._instance is engine._instance
    with pickle.loads(data) as found:
        assert found._instance.config == EngineConfig(model="model", **options)
    assert len(loads) == 2


# Whole processes.


def run_alone(program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program as somebody else would, with this package and the fakes on its path."""
    search_path = [
        str(Path(millpond.__file__).parents[1]),
        str(Path(__file__).parents[1] / "support"),
        *sys.path,
    ]
    whole = f"import sys; sys.path[:] = {[path for path in search_path if path]!r}\n{program}"
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", whole, *arguments],
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
        **options,
    )


def outcome(program: str, *arguments: str) -> tuple[int, str, str]:
    result = run_alone(program, *arguments)
    return result.returncode, result.stdout, result.stderr


PICKLED_AND_FORKED = """
import os, pickle, sys, threading
import numpy as np
from millpond import Engine, EngineFailed
engine = pickle.loads(bytes.fromhex(sys.argv[1]))
assert engine.info().model.name == MODEL
expected = engine.embed(TEXTS)
long_one = engine.submit(["some words " * 100] * 40)     # still pending when the process forks
child = os.fork()
if child == 0:
    code = 1
    try:
        try:
            long_one.result(60)
        except EngineFailed as error:
            assert "forked" in str(error)
        else:
            raise AssertionError("a call of the parent ended well in the child")
        assert np.array_equal(engine.embed(TEXTS), expected)
        other = pickle.loads(bytes.fromhex(sys.argv[1]))
        assert other._instance is engine._instance
        assert np.array_equal(other.submit(TEXTS).result(60).vectors, expected)
        engine.close()
        other.close()
        assert threading.active_count() == 1
        code = 0
    finally:
        os._exit(code)
assert np.array_equal(engine.embed("one text"), expected[0])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert not long_one.result(60).errors
assert np.array_equal(engine.embed(TEXTS), expected)
engine.close()
""".replace("MODEL", repr(MODEL)).replace("TEXTS", repr(TEXTS))


@pytest.mark.slow
@needs_fork
def test_a_pickled_engine_is_made_elsewhere_and_after_a_fork_parent_and_child_embed() -> None:
    with start_engine(FakeRunner(), spec={"name": MODEL}) as engine:
        engine._instance.reloadable = True  # spares this process the real model
        data = pickle.dumps(engine).hex()
    assert outcome(PICKLED_AND_FORKED, data) == (0, "", "")


FORKED_AND_EXITING_AMID_WORK = """
import os, threading
from fakes import *
runner = FakeRunner(max_batch_tokens=8)
engine = start_engine(runner)
stop = threading.Event()
def work():
    while not stop.is_set():
        engine.embed(["a b", "c", "d e f"])
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert (engine.embed(["x", "y z"]) == vectors_for(["x", "y z"])).all()
            assert engine.health == "ready"
            assert "pending_requests=0" in repr(engine._instance)
            engine.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
for thread in threads: thread.join()

kept = []
for depth in (1, 2):
    other = start_engine(FakeRunner(max_batch_tokens=4, depth=depth))
    kept.append((other, [other.submit(["a b", "c d", "e"]) for _ in range(3000)]))
print("the end")
"""


@pytest.mark.slow
@needs_fork
def test_forks_amid_work_leave_no_child_waiting_and_the_process_exits_amid_work() -> None:
    assert outcome(FORKED_AND_EXITING_AMID_WORK) == (0, "the end\n", "")


FORKED_AMID_LOCKS = """
import os, threading
import numpy as np
from fakes import *
from millpond.model.quiet import quiet_transformers
from millpond.runner.cpu.workers import CpuWorkers
from millpond.tokenization.backends.from_transformers import _python_tokenize

held, let_go = threading.Barrier(5), threading.Event()
def hold(*_, **__):
    held.wait()
    let_go.wait()
    return {"input_ids": []}
def load():
    with quiet_transformers():
        hold()
cpu, tokenize = CpuWorkers(8, parameters=1, max_batch_tokens=8), None
def run():
    with cpu.running(1000, queries=False):
        hold()
tokenize = _python_tokenize(hold)
heard = []
engine = start_engine(FakeRunner(device_name="cpu"))
engine.add_stats_hook(heard.append)
on_cuda = start_engine(FakeRunner(device_name="cuda:0"))
works = [load, run, run, lambda: tokenize(["a"], True)]
threads = [threading.Thread(target=work, daemon=True) for work in works]
for thread in threads: thread.start()
held.wait()
child = os.fork()
if child == 0:
    code = 1
    try:
        hold = lambda *_, **__: {"input_ids": [[1]]}
        with quiet_transformers():
            pass
        with cpu.running(1000, queries=False) as count:
            assert cpu._in_use == count, repr(cpu)
        assert "in_use=0" in repr(cpu)
        (lock,) = [cell.cell_contents for cell in tokenize.__closure__
                   if hasattr(cell.cell_contents, "locked")]
        assert not lock.locked()
        engine.embed(["a", "b"])
        assert len(heard) == 1, "the hook came along"
        assert on_cuda.health == "failed"
        assert "health='failed'" in repr(on_cuda) and "ModelInstance" in repr(on_cuda._instance)
        assert on_cuda.stats().batches == 0
        try:
            on_cuda.embed("a")
        except Exception as error:
            assert type(error).__name__ == "EngineFailed" and "'spawn'" in str(error)
        else:
            raise AssertionError("CUDA survived a fork")
        on_cuda.close()
        engine.close()
        assert threading.active_count() == 1
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
let_go.set()
for thread in threads: thread.join()
engine.close()
on_cuda.close()
"""


@pytest.mark.slow
@needs_fork
def test_a_child_forked_while_locks_are_held_is_free_of_them_and_keeps_its_hooks() -> None:
    assert outcome(FORKED_AMID_LOCKS) == (0, "", "")


DAEMON_AT_EXIT = """
import sys, threading
from millpond import Engine, EngineClosed
engine = Engine(sys.argv[1], device="cpu")
at_work = threading.Event()
def work():
    try:
        while True:
            engine.embed("which bread?")
            engine.tokenize(["which bread?"])
            at_work.set()
    except EngineClosed:
        pass
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
at_work.wait()
"""


@pytest.mark.slow
def test_a_daemon_thread_in_a_call_does_not_disturb_the_exit(bare_bert: Path) -> None:
    for _ in range(2):
        assert outcome(DAEMON_AT_EXIT, str(bare_bert)) == (0, "", "")


DROPPED_AMID_WORK = """
import atexit, threading
def last():
    print([t.name for t in threading.enumerate()], futures[0].exception(0))
atexit.register(last)  # runs after the engine's own
from fakes import *
def main():
    runner = FakeRunner(max_batch_tokens=2)
    runner.hold()
    engine = start_engine(runner)
    futures.extend(engine.submit(["a b", "c d"]) for _ in range(2))
    runner.wait_for_batches(1)
    for future in futures:
        future.add_done_callback(lambda _: runner.let())  # the call is ended before its batch
futures = []
main()
"""


@pytest.mark.slow
def test_the_exit_waits_for_the_threads_of_an_engine_that_is_gone() -> None:
    expected = "['MainThread'] the engine was closed before the call was finished\n"
    assert outcome(DROPPED_AMID_WORK) == (0, expected, "")


DROPPED_AND_EXITING = """
from millpond import Engine
def main():
    engine = Engine.shared(MODEL)
    engine.embed([f"some bread {n} " * (1 + n % 40) for n in range(60)], priority="bulk")
    for _ in range(3):
        engine.embed("which bread?", task="query")
main()
""".replace("MODEL", repr(MODEL))


@pytest.mark.slow
def test_a_program_whose_engine_is_gone_exits_in_peace() -> None:
    for _ in range(5):
        assert outcome(DROPPED_AND_EXITING) == (0, "", "")


GUEST = """
import logging, os, signal, threading, warnings
import torch, transformers
from transformers.utils import logging as transformers_logging
from millpond import Engine

def state():
    return {
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "seed": torch.initial_seed(),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "root handlers": list(logging.getLogger().handlers),
        "root level": logging.getLogger().level,
        "handlers": list(logging.getLogger("millpond").handlers),
        "transformers": transformers_logging.get_verbosity(),
        "bars": transformers_logging.is_progress_bar_enabled(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "filters": list(warnings.filters),
        "directory": os.getcwd(),
        "running": sorted(t.name for t in threading.enumerate()),
    }

transformers_logging.set_verbosity(35)  # nobody's default
torch.set_num_threads(2)
before = state()
for how in (Engine, Engine.shared):
    engine = how(MODEL)
    engine.embed(TEXTS)
    engine.embed(TEXTS[0], task="query")
    during = state()
    del during["running"]
    assert during == {name: before[name] for name in during}, "while an engine is there"
    engine.close()
after = state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
engine = Engine(MODEL)
engine.embed(TEXTS * 10, progress=True)
engine.close()
assert [t.name for t in threading.enumerate()] == ["MainThread"], threading.enumerate()

engine = Engine(MODEL)
futures = [engine.submit(["some words " * 100] * 500) for _ in range(5)]
print("the end, with an engine at work")
""".replace("MODEL", repr(MODEL)).replace("TEXTS", repr(TEXTS))


@pytest.mark.slow
def test_an_engine_leaves_the_process_as_it_was_prints_nothing_and_lets_it_exit() -> None:
    code, out, err = outcome(GUEST)
    lines = [line for line in err.splitlines() if line]
    assert (code, out) == (0, "the end, with an engine at work\n"), err
    assert all("text/s" in line for line in lines), err
    assert "30/30" in lines[-1]
