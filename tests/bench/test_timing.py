"""Samples are taken in turns, fairly, and summed up."""

import pytest
import torch

from tiledattn.bench import timing


class FakeClock:
    """Every call takes as long as it says."""

    protocol, sets, most_calls, warms_up = "fake", 1, timing.MOST_CALLS, False

    def __init__(self, **changes):
        self.order, self.time, self.lengths = [], 0.0, []
        vars(self).update(changes)

    def seconds(self, calls):
        total = sum(call() for call in calls)
        self.order.append(round(calls[0](), 4))
        self.lengths.append(len(calls))
        self.time += total
        return total / len(calls)


def taking(**seconds):
    return {name: [lambda value=value: value] for name, value in seconds.items()}


def measure(clock, calls, budget, **options):
    return timing.measure(clock, calls, budget, now=lambda: clock.time, **options)


def test_ways_take_turns_and_begin_in_turn():
    clock = FakeClock()
    found = measure(clock, taking(a=0.01, b=0.02, c=0.03), 1.0)
    assert clock.order[:6] == [0.01, 0.01, 0.02, 0.02, 0.03, 0.03]  # to warm up
    assert clock.order[6:15] == [0.01, 0.02, 0.03, 0.02, 0.03, 0.01, 0.03, 0.01, 0.02]
    assert {name: times.median for name, times in found.items()} == pytest.approx({"a": 0.01, "b": 0.02, "c": 0.03})
    assert {times.samples for times in found.values()} == {16}


def test_a_small_budget_still_gives_some_samples_and_a_large_one_not_endless_ones():
    for budget, expected in ((0.0, 3), (1e9, timing.MOST_ROUNDS)):
        clock = FakeClock()
        assert measure(clock, taking(a=1.0), budget)["a"].samples == expected
    assert measure(FakeClock(), taking(a=1.0), 0.0, least_rounds=2)["a"].samples == 2
    assert measure(FakeClock(), {}, 1.0) == {}


def test_slow_ways_take_part_in_fewer_rounds_but_to_the_end():
    clock = FakeClock()
    found = measure(clock, taking(fast=0.1, slow=2.0), 4.0)
    assert found["slow"].samples == 3
    assert found["fast"].samples == 20  # half of the budget
    rounds = clock.order[3:]  # the fast way is tried twice, the slow one once
    where = [number for number, seconds in enumerate(rounds) if seconds == 2.0]
    assert len(rounds) == 23
    assert where[0] <= 7 <= where[1] <= 15 <= where[2]


def test_what_fast_ways_leave_is_the_slow_ones():
    found = measure(FakeClock(), taking(fast=1e-3, slow=1.0), 6.3)
    assert found["fast"].samples == timing.MOST_ROUNDS
    assert found["slow"].samples == 5


def test_a_call_that_breaks_is_named():
    def broken():
        raise RuntimeError("oops")

    with pytest.raises(timing.CallError, match="b") as caught:
        measure(FakeClock(), {**taking(a=0.1), "b": [broken]}, 1.0)
    assert (caught.value.way, str(caught.value.__cause__)) == ("b", "oops")


def test_what_a_sample_takes_beside_its_calls_is_paid_too():
    class Flushing(FakeClock):
        def seconds(self, calls):
            found = super().seconds(calls)
            self.time += 0.1
            return found

    assert measure(Flushing(most_calls=1), taking(a=0.1), 4.0)["a"].samples == 20


def test_what_is_known_is_not_tried():
    clock = FakeClock()
    measure(clock, taking(a=1.0, b=0.5), 0.0, estimates={"a": 2.0})
    assert clock.order == [0.5, 1.0, 0.5, 0.5, 1.0, 1.0, 0.5]


def test_all_ways_make_the_same_number_of_calls():
    clock = FakeClock()
    measure(clock, taking(fast=1e-4, slow=4e-3), 1.0)
    assert clock.lengths[:4] == [1, 1, 1, 1]
    assert set(clock.lengths[4:]) == {11}
    clock = FakeClock()
    measure(clock, taking(fast=1e-6, slow=0.05), 0.9)  # a round of more calls would take more than a ninth
    assert set(clock.lengths[4:]) == {1}
    clock = FakeClock()
    measure(clock, taking(fast=1e-4, slow=0.6), 1.0)
    assert set(clock.lengths[3:]) == {1, 11}  # a long call is a sample by itself


def test_a_sample_has_untimed_calls_before_it_unless_calls_are_long():
    made = {"short": 0, "long": 0}

    def call(name, seconds):
        made[name] += 1
        return seconds

    calls = {"short": [lambda: call("short", 0.4)], "long": [lambda: call("long", 0.5)]}
    measure(FakeClock(warms_up=True), calls, 0.0)
    # the clock above calls once more for its notes; 2 estimates or 1, and 3 samples of a call each
    assert made == {"short": 2 * 5 + 3, "long": 2 * 4}
    made["short"] = 0
    found = measure(FakeClock(warms_up=True), {"short": [lambda: call("short", 1e-4)]}, 1.0)
    assert made["short"] == 2 * 2 + found["short"].samples * (11 + 11 + 1)  # as many as a sample has


def test_calls_go_round_the_sets():
    used = []
    clock = FakeClock()
    measure(clock, {"a": [lambda n=n: used.append(n) or 1e-4 for n in range(3)]}, 1.0)
    assert set(used[-8:]) == {0, 1, 2}
    assert clock.lengths[-1] == 11
    clock = FakeClock(most_calls=1)
    measure(clock, {"a": [lambda n=n: 1e-4 for n in range(3)]}, 1.0)
    assert clock.lengths[-1] == 3  # every set at least once


def test_summary():
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == timing.Times(3.0, 2 / 3, 5)


def test_the_cpu_clocks_measure_a_call():
    x = torch.randn(64, 64)
    assert 0 < timing.CpuClock().seconds([lambda: x @ x] * 3) < 1
    assert 0 < timing.ColdCpuClock(1 << 20).seconds([lambda: x @ x] * 3) < 1


def test_caches_are_overwritten_before_each_cold_call():
    clock = timing.ColdCpuClock(1 << 20)
    assert clock._flush.numel() == 2 << 20
    seen = []
    clock.seconds([lambda: seen.append(int(clock._flush[-1]))] * 3)
    assert seen == [1, 2, 3]


def test_the_last_level_cache(tmp_path):
    for number, text in enumerate(("48K", "1024K", "32M", "odd", "")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}/size").write_text(text + "\n")
    assert timing.last_level_cache(tmp_path) == 32 << 20
    assert timing.last_level_cache(tmp_path / "nowhere") is None
    assert timing.ColdCpuClock()._flush.numel() >= 2 << 20
