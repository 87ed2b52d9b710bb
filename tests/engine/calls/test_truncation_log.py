"""`TruncationLog`: one log line when the texts that were cut have doubled."""

from __future__ import annotations

import logging
import threading

import pytest

from millpond import CallProgress, TruncationLog


def told(texts: int, truncated: int) -> CallProgress:
    return CallProgress(texts=texts, truncated=truncated, share=0.5)


def advice(max_length: int | None) -> str:
    return f"split at {max_length}"


def test_it_logs_when_the_number_has_doubled(caplog: pytest.LogCaptureFixture) -> None:
    log = TruncationLog(advice)
    with caplog.at_level(logging.WARNING, "millpond"):
        for truncated in (0, 2, 1, 1, 3):
            with log.call(9) as hook:
                hook(told(5, truncated))
                hook(told(5, 0))
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 20 texts were longer than the 9 tokens the model reads and lost a part: split at 9",
        "4 of 40 texts were longer than the 9 tokens the model reads and lost a part: split at 9",
    ]
    assert repr(log) == "TruncationLog(texts=50, truncated=7)"


def test_a_model_may_have_no_one_limit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "millpond"), TruncationLog(advice).call(None) as hook:
        hook(told(1, 1))
    (line,) = caplog.messages
    assert line == "1 of 1 texts were longer than the model reads and lost a part: split at None"


def test_a_call_that_fails_is_not_counted() -> None:
    log = TruncationLog(advice)

    def fail() -> None:
        with log.call(9) as hook:
            hook(told(1, 1))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert log.texts == 0


def test_several_threads_may_tell_a_call_and_what_they_tell_goes_on() -> None:
    passed_on: list[CallProgress] = []
    with TruncationLog(advice).call(9, passed_on.append) as hook:
        threads = [
            threading.Thread(target=lambda: [hook(told(1, 0)) for _ in range(500)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hook.texts == len(passed_on) == 2000
