"""Times of several calls, taken in turns so that whatever else the machine does strikes all of them alike.

Every way of a case makes the same number of calls in a sample, so that none is timed warmer than another; a call of
half a second or more is a sample by itself. All ways have a sample in every round. Where a case's time is too short for
`GOOD_ROUNDS` rounds, fast ways have more samples than slow ones, which then take part in every second, third, ...
round, so that the samples of each are spread over all of that time. What a sample finds in the caches is one of three
protocols:

- "warm" (CPU, the default): what the way's own calls leave there in the long run: as many untimed calls come first,
  since the sample before was another way's, and a third-level cache takes several calls to hold what fits into it.
  Calls of half a second or more have none: filling the caches takes milliseconds.
- "out of caches" (CPU, `--cold`): nothing. A buffer of twice the last-level cache is overwritten before each call, and
  a sample is one call.
- "cold inputs" (CUDA): the second-level cache is overwritten before a sample, and its calls go round several sets of
  inputs, as many as are together twice as large as the cache, at most `MOST_SETS`: of small inputs the later calls of a
  sample may find some there, as they may find results and scratch memory. A case says how many sets it had.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .ways import Call

LONG_SECONDS = 0.5  # of a call that is a sample by itself, with no untimed calls before it
LEAST_SECONDS = 1e-3  # of a sample of the fastest way; shorter calls are repeated within it
MOST_CALLS = 64
MOST_SETS = 32
LEAST_ROUNDS, GOOD_ROUNDS, MOST_ROUNDS = 3, 9, 200
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
        warms_up: whether samples have as many untimed calls before them.
    """

    protocol: str
    sets: int
    most_calls: int
    warms_up: bool

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        ...


class CpuClock:
    """Wall-clock time of calls one after another: the protocol "warm"."""

    protocol, sets, most_calls, warms_up = WARM, 1, MOST_CALLS, True

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call on average."""
        began = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - began) / len(calls)


class ColdCpuClock:
    """Wall-clock time of single calls that find nothing in the caches: the protocol "out of caches"."""

    protocol, sets, most_calls, warms_up = COLD, 1, 1, False

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

    protocol, most_calls, warms_up = COLD_INPUTS, MOST_CALLS, False

    def __init__(self, device: torch.device, input_bytes: int) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.sets = max(1, min(MOST_SETS, -(-2 * cache // max(1, input_bytes))))
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


class CallError(Exception):
    """A call broke while it was timed; `way` is whose, the cause is what it raised."""

    def __init__(self, way: str) -> None:
        super().__init__(way)
        self.way = way


def measure(
    clock: Clock,
    calls: Mapping[str, Sequence[Call]],
    budget: float,
    least_rounds: int = LEAST_ROUNDS,
    now: Callable[[], float] = time.perf_counter,
    estimates: Mapping[str, float] | None = None,
) -> dict[str, Times]:
    """Times of the calls by name, each a list with one call per set of inputs, in about `budget` seconds.

    A round takes one sample of each way whose turn it is, beginning with another one than the round before. Every way
    has at least `least_rounds` samples, whatever the budget.
    `estimates` are about the seconds of a call, where they are known; the others' calls are tried.

    Raises:
        CallError: a call raised something.
    """
    known = {name: (seconds, 0.0) for name, seconds in (estimates or {}).items()}
    tried = {name: known.get(name) or _estimate(clock, name, of_sets, now) for name, of_sets in calls.items()}
    brief = [seconds for seconds, _ in tried.values() if seconds < LONG_SECONDS]
    count = _calls_per_sample(clock, brief, budget / max(GOOD_ROUNDS, least_rounds))
    of_way: dict[str, list[Call]] = {}
    warm, cost = dict[str, bool](), dict[str, float]()
    for name, of_sets in calls.items():
        once, beside = tried[name]
        long = once >= LONG_SECONDS
        warm[name] = clock.warms_up and not long
        of_way[name] = list(itertools.islice(itertools.cycle(of_sets), max(1 if long else count, len(of_sets))))
        cost[name] = once * len(of_way[name]) * (1 + warm[name]) + beside
    wanted = _samples(cost, budget, least_rounds)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for due in _rounds(wanted):
        for name in due:
            samples[name].append(_sample(clock, name, of_way[name], warm[name]))
    return {name: summary(found) for name, found in samples.items()}


def _sample(clock: Clock, name: str, calls: Sequence[Call], warm: bool) -> float:
    try:
        for call in calls if warm else ():
            call()
        return clock.seconds(calls)
    except Exception as problem:  # whatever it is, the other ways are still worth their time
        raise CallError(name) from problem


def _estimate(clock: Clock, name: str, calls: Sequence[Call], now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a call, the shorter of two unless it is long, and what a sample takes beside its calls."""
    began = now()
    once = _sample(clock, name, calls, warm=False)
    if once < LONG_SECONDS:
        began, first = now(), once
        once = _sample(clock, name, calls, warm=False)
        beside = max(0.0, now() - began - once * len(calls))
        return min(first, once), beside
    return once, max(0.0, now() - began - once * len(calls))


def _calls_per_sample(clock: Clock, once: Sequence[float], of_round: float) -> int:
    """So many that the fastest way's sample lasts `LEAST_SECONDS`, while a round of all lasts at most `of_round`."""
    if not once:
        return 1
    wanted = int(LEAST_SECONDS / max(min(once), 1e-9)) + 1
    affordable = of_round / (1 + clock.warms_up) / max(sum(once), 1e-9)  # can be infinite
    return max(1, int(min(clock.most_calls, wanted, affordable)))


def _samples(cost: Mapping[str, float], budget: float, least: int) -> dict[str, int]:
    """How many samples each way has, by the seconds of one.

    All as many, if that is `GOOD_ROUNDS` or more; else equal shares of the budget, and what fast ways leave is the
    others'.
    """
    common = int(min(MOST_ROUNDS, budget / max(sum(cost.values()), 1e-9)))
    if common >= max(GOOD_ROUNDS, least):
        return dict.fromkeys(cost, common)
    left, found = budget, dict[str, int]()
    for place, name in enumerate(sorted(cost, key=lambda name: cost[name])):
        affordable = left / (len(cost) - place) / max(cost[name], 1e-9)
        found[name] = max(least, int(min(MOST_ROUNDS, affordable)))
        left = max(0.0, left - found[name] * cost[name])
    return {name: found[name] for name in cost}


def _rounds(wanted: Mapping[str, int]) -> Iterator[list[str]]:
    """The ways of each round, so that every way's samples are evenly spread over all rounds."""
    names, most = list(wanted), max(wanted.values(), default=0)
    for number in range(most):
        first = number % len(names)
        due = {name for name, count in wanted.items() if (number + 1) * count // most > number * count // most}
        yield [name for name in names[first:] + names[:first] if name in due]


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Bytes of the largest cache that the first core sees, or None where the system doesn't say."""
    sizes = []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KMG":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=None)
