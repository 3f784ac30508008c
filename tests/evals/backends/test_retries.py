"""Calls that may fail, on a clock of our own: growing waits, the total time, the pace, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from align.errors import UserError
from evals.backends.retries import Caller, Failure, Pace, Patience
from evals.items import Missing


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def sleep(self, seconds: float, event: threading.Event) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


def caller(patience: Patience, clock: Clock, *, meaning: Callable[[Exception], Failure | None]) -> Caller[str]:
    return Caller(patience, sort=meaning, clock=lambda: clock.now, sleep=clock.sleep)


def failing(error: Exception) -> Callable[[float], str]:
    def call(seconds: float) -> str:
        raise error

    return call


def test_backoff_doubles_up_to_its_limit_and_is_jittered_downwards() -> None:
    clock = Clock()
    patience = Patience(max_retries=4, first_wait=1, longest_wait=3, total_seconds=100, max_concurrency=1)
    broken = Failure(Missing("http_500"), retry=True)
    assert caller(patience, clock, meaning=lambda error: broken).run([failing(KeyError())]) == [Missing("http_500")]
    assert len(clock.slept) == 4
    for slept, full in zip(clock.slept, (1, 2, 3, 3), strict=True):
        assert 0.75 * full <= slept <= full


def test_the_total_time_counts_waits() -> None:
    clock = Clock()
    patience = Patience(max_retries=100, first_wait=4, longest_wait=4, total_seconds=10, max_concurrency=1)
    broken = Failure(Missing("http_500"), retry=True, wait=4.0)
    tries: list[float] = []

    def call(seconds: float) -> str:
        tries.append(seconds)
        raise KeyError

    assert caller(patience, clock, meaning=lambda error: broken).run([call]) == [Missing("http_500")]
    assert tries == [10.0, 6.0, 2.0]  # what is left at each try; a fourth would start 2 s too late


def test_the_rate_limit_spaces_all_tries_evenly() -> None:
    clock = Clock()
    started: list[float] = []
    patience = Patience(per_minute=30, max_concurrency=1)

    def call(seconds: float) -> str:
        started.append(clock.now)
        return "ok"

    assert caller(patience, clock, meaning=lambda error: None).run([call] * 4) == ["ok"] * 4
    assert started == [100.0, 102.0, 104.0, 106.0]


def test_the_pace_reserves_one_slot_each_and_none_behind_a_deadline() -> None:
    clock = Clock()
    pace = Pace(60, clock=lambda: clock.now)
    assert [pace.take(hold_until=200) for _ in range(3)] == [0.0, 1.0, 2.0]
    assert pace.take(hold_until=200, slot_until=102.5) is None
    assert pace.take(hold_until=200) == 3.0  # the refused slot was not taken
    pace.hold(30)
    assert pace.take(hold_until=120) is None and pace.take(hold_until=130) == 30.0


@pytest.mark.parametrize("option", [{"per_minute": 0}, {"max_retries": -1}, {"total_seconds": float("inf")}])
def test_impossible_patience_is_told(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        Patience(**option)
