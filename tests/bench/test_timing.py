"""Samples are taken in turns, and summed up."""

import pytest
import torch

from tiledattn.bench import timing


class FakeClock:
    """Every call takes as long as it says."""

    sets = 1

    def __init__(self):
        self.order, self.time = [], 0.0

    def seconds(self, calls):
        total = sum(call() for call in calls)
        self.order.append(round(calls[0](), 4))
        self.time += total
        return total / len(calls)


def test_ways_take_turns_and_begin_in_turn():
    clock = FakeClock()
    found = timing.measure(
        clock, {"a": [lambda: 0.01], "b": [lambda: 0.02], "c": [lambda: 0.03]}, 0.2, now=lambda: clock.time
    )
    assert clock.order[:6] == [0.01, 0.01, 0.02, 0.02, 0.03, 0.03]  # to warm up
    assert clock.order[6:15] == [0.01, 0.02, 0.03, 0.02, 0.03, 0.01, 0.03, 0.01, 0.02]
    assert {name: times.median for name, times in found.items()} == pytest.approx({"a": 0.01, "b": 0.02, "c": 0.03})
    assert {times.samples for times in found.values()} == {3}


def test_a_small_budget_still_gives_some_samples_and_a_large_one_not_endless_ones():
    for budget, expected in ((0.0, 3), (1e9, timing.MOST_ROUNDS)):
        clock = FakeClock()
        found = timing.measure(clock, {"a": [lambda: 1.0]}, budget, now=lambda clock=clock: clock.time)
        assert found["a"].samples == expected


def test_short_calls_are_repeated_and_go_round_the_sets():
    used = []
    clock = FakeClock()

    def of_set(number):
        def call():
            used.append(number)
            return 1e-4

        return call

    timing.measure(clock, {"a": [of_set(n) for n in range(3)]}, 0.0)
    last = used[-(timing.MOST_CALLS // 2) : -1]
    assert len(used) > 3 * 10
    assert set(last) == {0, 1, 2}


def test_summary():
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == timing.Times(3.0, 2 / 3, 5)


def test_the_cpu_clock_measures_a_call():
    x = torch.randn(64, 64)
    assert 0 < timing.CpuClock().seconds([lambda: x @ x] * 3) < 1
