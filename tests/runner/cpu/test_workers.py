"""How many batches a CPU runs at a time, on how many threads, and whose count is changed."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from millpond.cpu import openmp, preemption
from millpond.cpu.openmp import threads_for_check
from millpond.model.loading.bert import Bert
from millpond.model.loading.bert import BertConfig as PlainBertConfig
from millpond.runner.cpu import workers as cpu_workers
from millpond.runner.cpu.workers import CpuWorkers
from millpond.scheduler.request_future import this_thread

MINILM, BASE, LARGE = 10_600_000, 85_000_000, 303_000_000  # parameters beside the embeddings


def threads_for(total: int, parameters: int) -> CpuWorkers:
    return CpuWorkers(total, parameters=parameters, max_batch_tokens=1024)


@pytest.mark.parametrize(
    ("total", "parameters", "per_worker", "workers"),
    [
        (1, MINILM, 1, 1),
        (2, MINILM, 1, 2),
        (16, MINILM, 1, 16),
        (16, BASE, 2, 8),
        (2, LARGE, 2, 1),
    ],
)
def test_the_larger_the_model_the_more_threads_share_a_batch(
    total: int, parameters: int, per_worker: int, workers: int
) -> None:
    threads = threads_for(total, parameters)
    assert (threads.per_worker, threads.workers) == (per_worker, workers)


@pytest.mark.parametrize(
    ("total", "parameters", "per_worker", "workers"),
    [(64, MINILM, 4, 16), (40, MINILM, 2, 16), (16, LARGE, 8, 2)],
)
def test_threads_that_are_left_over_are_shared_out(
    total: int, parameters: int, per_worker: int, workers: int
) -> None:
    threads = threads_for(total, parameters)
    assert (threads.per_worker, threads.workers) == (per_worker, workers)


@pytest.mark.parametrize(
    ("total", "parameters", "workers"), [(2, MINILM, 2), (64, MINILM, 32), (256, LARGE, 192)]
)
def test_where_a_pass_takes_one_thread_there_are_more_workers(
    total: int, parameters: int, workers: int
) -> None:
    threads = CpuWorkers(total, parameters=parameters, max_batch_tokens=1024, one_thread=True)
    assert (threads.per_worker, threads.workers) == (1, workers)


@pytest.mark.parametrize(
    ("total", "parameters", "per_worker", "workers"),
    [(2, BASE, 1, 2), (2, LARGE, 1, 2), (16, 7_000_000_000, 16, 1)],
)
def test_with_matrix_units_larger_models_run_on_one_thread(
    total: int, parameters: int, per_worker: int, workers: int
) -> None:
    threads = CpuWorkers(total, parameters=parameters, max_batch_tokens=1024, matrix_units=True)
    assert (threads.per_worker, threads.workers) == (per_worker, workers)


@pytest.mark.parametrize(
    ("dtype", "has_units", "workers"),
    [
        (torch.bfloat16, True, 2),
        (torch.bfloat16, False, 1),
        (torch.float32, True, 1),
    ],
)
def test_matrix_units_are_for_bfloat16(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, has_units: bool, workers: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(cpu_workers, "multiplied_parameters", lambda _: BASE)
    monkeypatch.setattr(cpu_workers, "openmp_library", lambda: True)
    threads = CpuWorkers.for_models([tiny_bert().to(dtype)], max_batch_tokens=1024)
    assert threads is not None
    assert threads.workers == workers


def test_queries_have_a_worker_beside_the_others_unless_there_is_one_thread() -> None:
    assert threads_for(2, MINILM).query_workers == 1
    assert threads_for(1, MINILM).query_workers == 0


def test_a_short_query_of_a_small_model_takes_few_threads_and_a_large_one_what_is_free() -> None:
    assert threads_for(16, MINILM).wanted(17, queries=True) <= 2
    assert threads_for(16, MINILM).wanted(512, queries=True) == 8
    assert threads_for(4, LARGE).wanted(512, queries=True) == 4


def test_several_texts_of_a_small_model_are_divided_among_workers_not_threads() -> None:
    assert threads_for(16, MINILM).wanted(768, queries=True, texts=64) == 1
    assert threads_for(64, MINILM).wanted(768, queries=True, texts=64) == 4  # a worker's share
    assert threads_for(4, LARGE).wanted(768, queries=True, texts=64) == 4
    with threads_for(2, MINILM).running(17, queries=True, texts=2) as count:
        assert count == 1


def test_a_query_beside_busy_workers_takes_what_is_free_and_at_most_half_of_the_rest() -> None:
    threads = threads_for(4, LARGE)
    with threads.running(1024, queries=False) as taken:
        assert taken == threads.per_worker == 4
        with threads.running(512, queries=True) as beside:
            assert beside == 2
    assert "in_use=0" in repr(threads)


def test_in_a_forked_child_no_pass_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threads_for(4, LARGE)
    with threads.running(512, queries=True):  # of the parent
        before = threads._preemption
        monkeypatch.setattr(cpu_workers.os, "getpid", lambda: -1)
        with threads.running(1024, queries=False):
            assert threads._preemption is not before
            assert len(threads._preemption.running) == 0
            assert "in_use=4" in repr(threads)


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_workers, "has_room_for", lambda _: True)


@pytest.mark.usefixtures("room_for_two")
def test_a_short_query_takes_two_threads_on_the_main_one_and_one_elsewhere() -> None:
    threads = threads_for(2, MINILM)
    with threads.running(17, queries=True) as count:
        assert count == torch.get_num_threads() == 2
    found = []
    worker = threading.Thread(target=lambda: found.append(threads.wanted(17, queries=True)))
    worker.start()
    worker.join()
    assert found == [1]


@pytest.mark.usefixtures("room_for_two")
def test_it_takes_one_beside_other_work_and_where_it_is_over_at_once() -> None:
    threads = threads_for(2, MINILM)
    assert threads.wanted(4, queries=True) == 1
    with threads.running(1024, queries=False), threads.running(17, queries=True) as count:
        assert count == 1


@pytest.mark.usefixtures("room_for_two")
def test_a_pass_that_makes_no_use_of_two_takes_one() -> None:
    threads = CpuWorkers(2, parameters=MINILM, max_batch_tokens=1024, one_thread=True)
    assert threads.wanted(17, queries=True) == 1


def test_it_takes_one_where_there_is_no_room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_workers, "has_room_for", lambda _: False)
    assert threads_for(2, MINILM).wanted(17, queries=True) == 1


def test_a_caller_has_its_own_count_back_after_a_pass() -> None:
    before = torch.get_num_threads()
    with threads_for(4, LARGE).running(512, queries=True) as count:
        assert torch.get_num_threads() == count == 4
    assert torch.get_num_threads() == before


def test_only_the_calling_threads_count_is_changed() -> None:
    before = torch.get_num_threads()
    threads = CpuWorkers.for_models([tiny_bert()], max_batch_tokens=64)
    assert threads is not None
    seen = []

    def work() -> None:
        with threads.running(1, queries=False):
            seen.append(torch.get_num_threads())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert seen == [1]
    assert torch.get_num_threads() == before


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=256,
    )  # fmt: skip
    return BertModel(config).eval()


def test_a_model_that_changes_itself_as_it_runs_is_not_run_side_by_side() -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, rope_parameters=scaled,
    )  # fmt: skip
    assert_one_pass_at_a_time(LlamaModel(config))


def test_nor_is_one_with_code_of_its_own() -> None:
    class Bert(BertModel):
        pass

    assert_one_pass_at_a_time(Bert(tiny_bert().config))


def test_nor_are_several_models() -> None:
    assert_one_pass_at_a_time(tiny_bert(), tiny_bert())


def assert_one_pass_at_a_time(*models: torch.nn.Module) -> None:
    threads = CpuWorkers.for_models(models, max_batch_tokens=64)
    assert threads is not None
    total = torch.get_num_threads()
    assert (threads.workers, threads.query_workers, threads.counts) == (1, 0, (total,))
    assert threads.wanted(1, queries=True) == threads.wanted(64, queries=False) == total


@pytest.mark.parametrize(
    ("total", "parameters", "counts"),
    [
        (1, MINILM, (1,)),
        (2, MINILM, (1, 2)),
        (5, LARGE, (1, 2, 4, 5)),
        (40, MINILM, (1, 2, 4, 8, 16, 32, 40)),
    ],
)
def test_a_pass_takes_one_of_few_numbers_of_threads(
    total: int, parameters: int, counts: tuple[int, ...]
) -> None:
    threads = threads_for(total, parameters)
    assert threads.counts == counts
    assert threads.per_worker in counts
    for tokens in (1, 17, 90, 300, 1024):
        assert threads.wanted(tokens, queries=True) in counts


@pytest.mark.skipif(openmp._mkl_threads() is None, reason="torch has no MKL to ask")
def test_in_a_pass_mkl_stays_on_the_calling_thread_and_has_its_own_count_after() -> None:
    """With a count of its own it would divide products, as many ways as it likes at the moment."""
    set_threads = openmp._mkl_threads()
    assert set_threads is not None
    before = set_threads(3)
    try:
        with threads_for(4, MINILM).running(17, queries=False):
            assert set_threads(1) == 1
        with openmp.limited_threads(2):
            assert set_threads(1) == 1
        assert set_threads(3) == 3
    finally:
        set_threads(before)


def test_tables_of_embeddings_do_not_count_as_work() -> None:
    model = tiny_bert()
    threads = CpuWorkers.for_models([model], max_batch_tokens=64)
    assert threads is not None
    multiplied = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "_embeddings" not in name
    )
    assert threads._operations_per_token == 2 * multiplied


def test_a_check_of_a_small_model_takes_one_thread_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    with threads_for_check(tiny_bert(), 50):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_plain_bert_runs_side_by_side_as_transformers_bert_does() -> None:
    config = PlainBertConfig(
        hidden_size=8,
        intermediate_size=8,
        max_position_embeddings=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=8,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    theirs = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    assert cpu_workers.is_reentrant(Bert(config))
    assert cpu_workers.is_reentrant(theirs)
    assert not cpu_workers.is_reentrant(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("parameters", "tokens", "threads"), [(LARGE, 512, 4), (MINILM, 1, 1)])
def test_a_query_of_the_engines_own_thread_may_be_moved_if_it_takes_one_thread(
    parameters: int, tokens: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_thread, "is_uninterrupted", True)
    monkeypatch.setattr(preemption, "CAN_MOVE", True)
    workers = threads_for(4, parameters)
    with workers.running(tokens, queries=True) as count:
        assert count == threads
        assert preemption.here.query is not None
        assert (preemption.here.query._thread_id is not None) == (threads == 1)
    assert preemption.here.query is not None, "until it is delivered"
    workers.delivered()
    assert preemption.here.query is None
