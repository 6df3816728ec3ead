"""Times of several calls, taken in turns so that whatever else the machine does strikes all of them alike.

Every way of a case makes the same number of calls in a sample, so that none is timed warmer than another. What a sample
finds in the caches is one of three protocols:

- "warm" (CPU, the default): what the way's own last call left there. Where a sample is short, an untimed call comes
  first, since the sample before it was another way's; in a long sample one call's worth of caches is lost in the rest.
- "out of caches" (CPU, `--cold`): nothing. A buffer of twice the last-level cache is overwritten before each call, and
  a sample is one call.
- "cold inputs" (CUDA): the second-level cache is overwritten before a sample, and its calls go round several sets of
  inputs that are together larger than the cache. Results and scratch memory may stay there.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .ways import Call

LONG_SECONDS = 1.0
LEAST_SECONDS = 1e-3  # of a sample of the fastest way; shorter calls are repeated within it
SHORT_SECONDS = 0.05  # a sample that is shorter has an untimed call before it
MOST_CALLS = 64
MOST_ROUNDS = 200
DEFAULT_CACHE_BYTES = 64 << 20
WARM, COLD, COLD_INPUTS = "warm", "out of caches", "cold inputs"


class Times(NamedTuple):
    """Seconds of one call: median, interquartile range over the median, number of samples."""

    median: float
    spread: float
    samples: int


def summary(samples: Sequence[float]) -> Times:
    """Median and spread of samples in seconds."""
    x = torch.tensor(sorted(samples), dtype=torch.float64)
    low, median, high = (float(x.quantile(p)) for p in (0.25, 0.5, 0.75))
    return Times(median, (high - low) / median, len(samples))


class Clock(Protocol):
    """Takes a sample.

    Attributes:
        protocol: what the caches hold, as above.
        sets: of inputs that the calls of a sample go round.
        most_calls: in a sample.
        short: in seconds; samples that are shorter have an untimed call before them.
    """

    protocol: str
    sets: int
    most_calls: int
    short: float

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        ...


class CpuClock:
    """Wall-clock time of calls one after another: the protocol "warm"."""

    protocol, sets, most_calls, short = WARM, 1, MOST_CALLS, SHORT_SECONDS

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        began = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - began) / len(calls)


class ColdCpuClock:
    """Wall-clock time of single calls that find nothing in the caches: the protocol "out of caches"."""

    protocol, sets, most_calls, short = COLD, 1, 1, 0.0

    def __init__(self, cache_bytes: int | None = None) -> None:
        size = 2 * (last_level_cache() or DEFAULT_CACHE_BYTES // 2) if cache_bytes is None else 2 * cache_bytes
        self._flush = torch.zeros(size, dtype=torch.uint8)

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average, without what overwriting the caches takes."""
        total = 0.0
        for call in calls:
            self._flush.add_(1)
            began = time.perf_counter()
            call()
            total += time.perf_counter() - began
        return total / len(calls)


class CudaClock:
    """CUDA events around calls: the protocol "cold inputs".

    While the cache is overwritten, the calls are queued, so that their launches cost nothing unless they take longer
    than the kernels.
    """

    protocol, most_calls, short = COLD_INPUTS, MOST_CALLS, 0.0

    def __init__(self, device: torch.device, input_bytes: int) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.sets = max(1, min(8, -(-2 * cache // max(1, input_bytes))))
        self._flush: Tensor = torch.empty(max(2 * cache, 1 << 28), dtype=torch.uint8, device=device)
        event: Any = torch.cuda.Event  # its signature has no types
        self._begin, self._end = (event(enable_timing=True) for _ in range(2))

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        self._flush.zero_()
        self._begin.record()
        for call in calls:
            call()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3 / len(calls)


def measure(
    clock: Clock,
    calls: Mapping[str, Sequence[Call]],
    budget: float,
    least_rounds: int = 3,
    now: Callable[[], float] = time.perf_counter,
    estimates: Mapping[str, float] | None = None,
) -> dict[str, Times]:
    """Times of the calls by name, each a list with one call per set of inputs, in about `budget` seconds.

    Every round takes one sample of each, beginning with another one than the round before. When no further round fits
    the budget, ways that have not used their equal share of it go on without the slow ones. `estimates` are about the
    seconds of a call, where they are known; the others' calls are tried.
    """
    known = estimates or {}
    once = {name: known.get(name) or _estimate(clock, of_sets) for name, of_sets in calls.items()}
    count = _calls_per_sample(clock, once, budget / least_rounds)
    of_way = {name: list(itertools.islice(itertools.cycle(c), max(count, len(c)))) for name, c in calls.items()}
    cost = {name: once[name] * len(of_way[name]) for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    names = list(calls)
    for number in range(MOST_ROUNDS):
        first = number % max(1, len(names))
        whole_round = sum(spent.values()) + sum(cost.values()) <= budget
        due = [
            name
            for name in names[first:] + names[:first]
            if number < least_rounds or whole_round or spent[name] + cost[name] <= budget / len(names)
        ]
        for name in due:
            began = now()
            if cost[name] < clock.short:
                of_way[name][-1]()
            samples[name].append(clock.seconds(of_way[name]))
            spent[name] += now() - began
        if not due:
            break
    return {name: summary(found) for name, found in samples.items()}


def _estimate(clock: Clock, calls: Sequence[Call]) -> float:
    """Seconds of a call; the shorter of two, unless one has warmed all there is to warm."""
    once = clock.seconds(calls)
    return once if once >= LONG_SECONDS else min(once, clock.seconds(calls))


def _calls_per_sample(clock: Clock, once: Mapping[str, float], of_round: float) -> int:
    """So many that the fastest way's sample lasts `LEAST_SECONDS`, while a round of all lasts at most `of_round`."""
    if not once:
        return 1
    wanted = int(LEAST_SECONDS / max(min(once.values()), 1e-9)) + 1
    affordable = int(of_round / max(sum(once.values()), 1e-9))
    return max(1, min(clock.most_calls, wanted, affordable))


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Bytes of the largest cache that the first core sees, or None where the system doesn't say."""
    sizes = []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KMG":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=None)
