"""When capturing a graph pays: by a clock and passes that are made up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from millpond.runner.cuda.plain_runs import AtOnce, TimedRuns

NOTHING = torch.zeros(1)


@dataclass
class Device:
    """Takes `pass_s` for each pass, and a thread `launches_s` to launch one."""

    launches_s: float
    pass_s: float
    delay_s: float = 0.0
    """After its launch has begun, until the device begins with a pass."""
    now_s: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def launch(self) -> torch.Tensor:
        self.now_s += self.launches_s
        return NOTHING

    def timer(self) -> Timer:
        self.timers.append(Timer(self, self.now_s + self.delay_s))
        return self.timers[-1]


@dataclass
class Timer:
    """Of a pass that the device begins then."""

    device: Device
    begins_s: float
    ends_s: float = float("inf")

    def stop(self) -> None:
        self.ends_s = max(self.device.now_s, self.begins_s + self.device.pass_s)

    def seconds(self) -> float | None:
        is_through = self.ends_s <= self.device.now_s
        return self.ends_s - self.begins_s if is_through else None


def runs_until_it_pays(device: Device) -> tuple[int, bool]:
    """How many, and whether the device waits for launches."""
    runs = TimedRuns(timer=device.timer, clock=lambda: device.now_s)
    assert not runs.waits_for_launches, "that is not known"
    for count in range(1, 100):
        assert runs.run(device.launch) is NOTHING
        if runs.capture_pays:
            return count, runs.waits_for_launches
    raise AssertionError("it never pays")


@pytest.mark.parametrize(
    ("launches_s", "pass_s", "delay_s", "expected"),
    [
        (0.004, 0.004, 0.0, (2, True)),  # the device waits for the thread
        (0.012, 0.038, 0.0, (5, False)),
        (0.012, 0.110, 0.0, (11, False)),
        (0.012, 0.004, 0.060, (7, True)),  # one that is busy with other passes has not begun before
    ],
)
def test_capturing_pays_once_launches_have_taken_as_long_as_a_pass(
    launches_s: float, pass_s: float, delay_s: float, expected: tuple[int, bool]
) -> None:
    device = Device(launches_s, pass_s, delay_s)
    assert runs_until_it_pays(device) == expected


def test_what_the_first_run_compiles_counts_neither_way() -> None:
    device = Device(launches_s=1.0, pass_s=0.03)
    runs = TimedRuns(timer=device.timer, clock=lambda: device.now_s)
    runs.run(device.launch)
    assert not runs.capture_pays
    device.launches_s = 0.01
    paid = []
    for _ in range(4):
        runs.run(device.launch)
        device.now_s += 0.03  # others run meanwhile
        paid.append((runs.capture_pays, runs.waits_for_launches))
    assert paid == [(False, False), (False, False), (True, False), (True, False)]


def test_at_once_is_when_a_bucket_comes_back() -> None:
    runs = AtOnce()
    for pays in (False, True, True):
        assert runs.run(lambda: NOTHING) is NOTHING
        assert runs.capture_pays == pays
        assert not runs.waits_for_launches
