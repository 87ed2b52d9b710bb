"""An answer is found once for each of the keys asked for last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from millpond.tokenization.recent import Recent


def test_is_found_once_for_each_of_the_last_keys() -> None:
    found: list[str] = []

    def length(key: str) -> int:
        found.append(key)
        return len(key)

    recent: Recent[str, int] = Recent(2)
    answers = [recent.get(key, partial(length, key)) for key in ("one", "", "one", "four", "one")]
    assert answers == [3, 0, 3, 4, 3]
    assert found == ["one", "", "four"]
    assert recent.get("", partial(length, "")) == 0
    assert found == ["one", "", "four", ""]
    assert repr(recent) == "Recent(answers=2, capacity=2)"


def test_any_thread_may_ask() -> None:
    recent: Recent[int, int] = Recent(4)
    with ThreadPoolExecutor(8) as pool:
        keys = list(range(8)) * 50
        assert list(pool.map(lambda key: recent.get(key, lambda: key * key), keys)) == [
            key * key for key in keys
        ]
