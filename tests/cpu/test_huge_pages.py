"""Weights in huge pages: which are asked for, and that values stay."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from millpond.cpu import huge_pages
from millpond.cpu.huge_pages import HUGE_PAGE, MADV_COLLAPSE, use_huge_pages


class Kernel:
    """Takes note of what it is asked for; refuses some pages, as one without memory does."""

    def __init__(self, *refused: int) -> None:
        self.refused, self.pages = refused, list[int]()

    def __call__(self, address: int, size: int, advice: int) -> int:
        assert (size, advice) == (HUGE_PAGE, MADV_COLLAPSE)
        assert address % HUGE_PAGE == 0
        self.pages.append(address // HUGE_PAGE)
        return -1 if self.pages[-1] in self.refused else 0


def kernel(monkeypatch: pytest.MonkeyPatch, *refused: int) -> Kernel:
    made = Kernel(*refused)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: made)
    monkeypatch.setattr(sys, "platform", "linux")
    return made


def test_each_page_with_a_weight_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel(monkeypatch, 5)
    weights = [(5 * HUGE_PAGE - 1, 2), (5 * HUGE_PAGE + 10, 100), (9 * HUGE_PAGE, HUGE_PAGE)]
    assert use_huge_pages(weights) == 2
    assert asked.pages == [4, 5, 9]


def test_loading_waits_for_them_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel(monkeypatch)
    clock = iter([0.0, 0.0, 0.05, 0.11, 0.2])
    monkeypatch.setattr(huge_pages, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert use_huge_pages([(0, 4 * HUGE_PAGE)]) == 2
    assert asked.pages == [0, 1]


def test_elsewhere_than_on_linux_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel(monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages([(0, 1)]) == 0
    assert not asked.pages


def test_values_stay() -> None:
    values = torch.arange(2**20, dtype=torch.float32)
    use_huge_pages([(values.data_ptr(), values.nbytes)])
    assert torch.equal(values, torch.arange(2**20, dtype=torch.float32))
