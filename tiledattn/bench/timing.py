"""Times of several calls, taken in turns so that whatever else the machine does strikes all of them alike."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .ways import Call

LONG_SECONDS = 1.0
LEAST_SECONDS = 1e-3  # of one sample; shorter calls are repeated within it
MOST_CALLS = 64
MOST_ROUNDS = 40


class Times(NamedTuple):
    """Seconds of one call: median, interquartile range over the median, number of samples."""

    median: float
    spread: float
    samples: int


def summary(samples: Sequence[float]) -> Times:
    x = torch.tensor(sorted(samples), dtype=torch.float64)
    low, median, high = (float(x.quantile(p)) for p in (0.25, 0.5, 0.75))
    return Times(median, (high - low) / median, len(samples))


class CpuClock:
    """Wall-clock time of calls one after another."""

    sets = 1  # of inputs

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        began = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - began) / len(calls)


class CudaClock:
    """CUDA events around calls that go round sets of inputs, which together are larger than the cache.

    The cache is overwritten first; while that runs, the calls are queued, so that their launches cost nothing unless
    they take longer than the kernels.
    """

    def __init__(self, device: torch.device, input_bytes: int) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.sets = max(1, min(8, -(-2 * cache // max(1, input_bytes))))
        self._flush: Tensor = torch.empty(max(2 * cache, 1 << 28), dtype=torch.uint8, device=device)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        self._flush.zero_()
        self._begin.record()
        for call in calls:
            call()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3 / len(calls)


Clock = CpuClock | CudaClock


def measure(
    clock: Clock,
    calls: Mapping[str, Sequence[Call]],
    budget: float,
    least_rounds: int = 3,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Times of the calls by name, each a list with one call per set of inputs, in about `budget` seconds.

    Every round takes one sample of each, beginning with another one than the round before.
    """
    repeated, total = {}, 0.0
    for name, of_sets in calls.items():
        once = clock.seconds(of_sets)
        if once < LONG_SECONDS:  # or one call has warmed all there is to warm
            once = clock.seconds(of_sets)
        count = max(1, min(MOST_CALLS, int(LEAST_SECONDS / max(once, 1e-9)) + 1))
        repeated[name] = list(itertools.islice(itertools.cycle(of_sets), max(count, len(of_sets))))
        total += once * len(repeated[name])
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, began = list(calls), now()
    for number in range(MOST_ROUNDS):
        if number >= least_rounds and now() - began + total > budget:
            break
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            samples[name].append(clock.seconds(repeated[name]))
    return {name: summary(found) for name, found in samples.items()}
