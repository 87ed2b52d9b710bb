"""The numbers of rows that passes on a CPU are filled up to."""

from __future__ import annotations

from millpond.cpu.row_buckets import FEW_ROWS, FEWEST_ROWS, whole_rows


def test_rows_are_filled_up_by_little_and_never_cut() -> None:
    for rows in range(1, 5000):
        assert 0 <= whole_rows(rows) - rows < max(FEWEST_ROWS, rows / 16)


def test_there_are_few_numbers_of_rows_and_each_stays_as_it_is() -> None:
    found = {whole_rows(rows) for rows in range(1, 2049)}
    assert len(found) == 64
    assert {whole_rows(rows) for rows in found} == found
    assert all(rows % FEWEST_ROWS == 0 for rows in found)


def test_short_texts_are_filled_up_by_less_where_few_rows_will_do() -> None:
    found = [whole_rows(rows, FEW_ROWS) for rows in range(1, 2049)]
    assert sorted(set(found))[:13] == [4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80]
    assert all(whole_rows(rows, FEW_ROWS) == rows for rows in found)
    assert found[127:] == [whole_rows(rows) for rows in range(128, 2049)]
