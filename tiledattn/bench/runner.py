"""Runs cases: checks every way's result, then takes memory and times of those that passed."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import tiledattn as ta

from . import environment
from .memory import extra_bytes
from .timing import CallError, Clock, ColdCpuClock, CpuClock, CudaClock, Times, measure
from .variants import held, products, yardstick
from .ways import DTYPES, Call, Case, Inputs, Judge, NotOfferedError, Way

SLOW_SECONDS = 0.2
ALL_WAYS = "all ways"  # the row of a case that can't be set up


@torch.no_grad()
def run(
    case: Case,
    dtype: str,
    device: torch.device,
    seconds: float,
    wanted: Callable[[Way], bool] = lambda way: True,
    cold: bool = False,
) -> dict[str, Any]:
    """Checks and times the wanted ways of a case; the entry of `cases` in the run's JSON.

    Args:
        seconds: about how long samples are taken, over all ways.
        wanted: which ways; the others have no row.
        cold: on a CPU, take times out of the caches (`timing`).
    """
    entry = {
        "operation": case.operation,
        "case": case.name,
        "dtype": dtype,
        "unit": case.unit,
        "amount": case.amount(DTYPES[dtype]),
        "least_bytes": case.least_bytes(DTYPES[dtype]),
        "load": environment.load(),
    }
    try:
        with products(dtype):
            return entry | _measured(case, dtype, device, seconds, wanted, cold)
    except NotOfferedError as reason:
        row = {"skipped": _line(reason)}
    except (MemoryError, torch.OutOfMemoryError) as reason:
        row = {"skipped": f"no memory: {_line(reason)}"}
    except Exception as problem:  # the cases after this one are still worth their time
        traceback.print_exc()
        row = {"failed": f"{type(problem).__name__}: {_line(problem)}"}
    finally:
        _forget(device)
    return {**entry, "rows": [{"way": ALL_WAYS, "kind": "ours", **row}]}


def _measured(
    case: Case, dtype: str, device: torch.device, seconds: float, wanted: Callable[[Way], bool], cold: bool
) -> dict[str, Any]:
    precision = DTYPES[dtype]
    first = held(case.inputs(device, precision, 0), dtype)
    clock = _clock(device, first, cold)
    sets = [first, *(held(case.inputs(device, precision, seed), dtype) for seed in range(1, clock.sets))]
    judge = case.judge(first, yardstick(dtype))
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, list[Call]] = {}
    for way in filter(wanted, case.ways(device, precision)):
        rows[way.name] = {"way": way.name, "kind": way.kind}
        outcome, ready = _check(way, sets, judge)
        rows[way.name].update(outcome)
        if ready:
            calls[way.name] = ready
        if ready and way.kind == "limit":
            rows[way.name]["extra_bytes"] = None
    with _little_to_collect():
        _take(case, clock, calls, rows, device, seconds)
    return {"input_sets": len(sets), "rows": list(rows.values())}


@contextmanager
def _little_to_collect() -> Iterator[None]:
    """Takes what is there from the collector's sight: to look through all of torch takes it a third of a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _take(
    case: Case,
    clock: Clock,
    calls: dict[str, list[Call]],
    rows: dict[str, dict[str, Any]],
    device: torch.device,
    seconds: float,
) -> None:
    """Memory and times of the calls, into their rows."""
    estimates: dict[str, float] = {}
    for name in [name for name in calls if rows[name]["kind"] != "limit"]:
        try:
            rows[name]["extra_bytes"], spent = _memory(calls[name][0], device, case.result_is_new)
        except Exception as problem:
            rows[name] = _broken(rows[name], problem)
            del calls[name]
            continue
        if device.type == "cpu" and spent >= SLOW_SECONDS:
            estimates[name] = spent  # slow ways are called no more often than they must be
    for name, times in _times(clock, calls, rows, seconds, estimates).items():
        rows[name].update(seconds=times.median, spread=times.spread, samples=times.samples)


def _memory(call: Call, device: torch.device, result_is_new: bool) -> tuple[int | None, float]:
    """Extra bytes of a call, and its seconds without what counting them takes."""
    spent = 0.0

    def timed() -> Any:
        nonlocal spent
        began = time.perf_counter()
        result = call()
        spent = time.perf_counter() - began
        return result

    return extra_bytes(timed, device, result_is_new), spent


def _times(
    clock: Clock,
    calls: dict[str, list[Call]],
    rows: dict[str, dict[str, Any]],
    seconds: float,
    estimates: dict[str, float],
) -> dict[str, Times]:
    """Times of the calls, without those that break meanwhile: their rows say so, and the others begin again."""
    while True:
        try:
            return measure(clock, calls, seconds, estimates=estimates)
        except CallError as broken:
            rows[broken.way] = _broken(rows[broken.way], broken.__cause__ or broken)
            del calls[broken.way]


def _broken(row: dict[str, Any], problem: BaseException) -> dict[str, Any]:
    """The row of a way that raised something: of ours a failure, unless memory was short."""
    about = {"way": row["way"], "kind": row["kind"]}
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return {**about, "skipped": f"no memory: {_line(problem)}"}
    if isinstance(problem, NotOfferedError | ta.BackendUnavailableError):
        return {**about, "skipped": _line(problem)}
    return {**about, "failed" if row["kind"] == "ours" else "skipped": f"{type(problem).__name__}: {_line(problem)}"}


def _clock(device: torch.device, inputs: Inputs, cold: bool) -> Clock:
    if device.type == "cpu":
        return ColdCpuClock() if cold else CpuClock()
    return CudaClock(device, sum(x.numel() * x.element_size() for x in inputs))


def _check(way: Way, sets: list[Inputs], judge: Judge) -> tuple[dict[str, Any], list[Call]]:
    """Error and calls of a way, or why there are none."""
    row = {"way": way.name, "kind": way.kind}
    try:
        calls = [way.prepare(inputs) for inputs in sets]
        found = calls[0]()
        verdict = None if way.kind == "limit" else judge(found, way)
        del found
        for call in calls[1:]:
            call()
    except Exception as problem:  # whatever a kernel raises where it can't do a case
        return _broken(row, problem), []
    if verdict is None:
        return {}, calls
    if not verdict.passed:
        return {"failed": f"it errs by {verdict.error:.2e}, more than {verdict.allowed:.2e}"}, []
    return {"error": verdict.error, "allowed": verdict.allowed}, calls


def _line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 200 else text[:197] + "..."


def _forget(device: torch.device) -> None:
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
