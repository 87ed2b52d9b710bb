"""Which of the threads that tokenise is woken."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from millpond.engine.core.wakes import TokenizerWait, Wakes
from millpond.scheduler.request import Priority


def wakes(to_tokenize: Sequence[Priority], *, queries_until_s: float = 0.0) -> Wakes:
    queue = SimpleNamespace(ready_requests=())
    scheduler: Any = SimpleNamespace(
        queues=dict.fromkeys(Priority, queue),
        holds_parts=False,
        to_tokenize=lambda: to_tokenize,
        has_queries_near=lambda now_s: now_s < queries_until_s,
    )
    others: Any = SimpleNamespace(wake=lambda: None, wake_all=lambda: None)
    return Wakes(scheduler, others, others, others)


def asleep(each: TokenizerWait) -> TokenizerWait:
    each.look()
    each.found_none()
    return each


def test_one_that_sleeps_is_woken_at_a_time() -> None:
    woken = wakes([Priority.BULK])
    first, second, third = (asleep(woken.tokenizer_wait(Priority.BULK)) for _ in range(3))
    query = asleep(woken.tokenizer_wait(Priority.INTERACTIVE))
    first.look()  # it has texts
    woken.ready()
    assert [each.is_asleep for each in (first, second, third, query)] == [False, False, True, True]
    woken.ready()
    assert not third.is_asleep
    woken.ready()  # none is left
    for each in (second, third):
        each.wait()
    assert asleep(first).is_asleep
    woken.ready()
    first.wait()
    assert query.is_asleep


def test_all_are_woken_for_the_end_those_at_work_too() -> None:
    woken = wakes([])
    idle, busy = (woken.tokenizer_wait(priority) for priority in Priority)
    asleep(idle)
    woken.all()
    for each in (idle, busy):
        each.wait()


def test_one_that_rests_beside_queries_is_woken_once_they_no_longer_come() -> None:
    woken = wakes([Priority.BULK], queries_until_s=2.0)
    steady = woken.tokenizer_wait(Priority.BULK)
    rests = asleep(woken.tokenizer_wait(Priority.BULK, rests_beside_queries=True))
    assert woken.may_tokenize(steady, 1.0)
    assert not woken.may_tokenize(rests, 1.0)
    asleep(rests)
    woken.ready()
    assert rests.is_asleep
    assert woken.may_tokenize(steady, 2.0)
    woken.ready()
    rests.wait()
    assert woken.may_tokenize(rests, 2.0)
