"""Runs cases: checks every way's result, then takes times of those that passed."""

from __future__ import annotations

import gc
from typing import Any

import torch

import tiledattn as ta

from . import attention_cases, backward_cases, tile_cases
from .timing import Clock, CpuClock, CudaClock, measure
from .variants import held, products, yardstick
from .ways import DTYPES, Call, Case, Inputs, Judge, NotOfferedError, Way

CASES: list[Case] = [*attention_cases.CASES, *tile_cases.CASES, *backward_cases.CASES]


def chosen(device: torch.device, only: str = "") -> list[tuple[Case, str]]:
    """Cases with a dtype that are run on a device and whose label holds `only`."""
    pairs = [(case, dtype) for case in CASES for dtype in case.dtypes.get(device.type, ())]
    return [pair for pair in pairs if only in label(*pair)]


def label(case: Case, dtype: str) -> str:
    return f"{case.operation}, {case.name}, {dtype}"


@torch.no_grad()
def run(case: Case, dtype: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Checks and times all ways of a case; the entry of `cases` in the run's JSON."""
    with products(dtype):
        return _run(case, dtype, device, seconds)


def _run(case: Case, dtype: str, device: torch.device, seconds: float) -> dict[str, Any]:
    precision = DTYPES[dtype]
    first = held(case.inputs(device, precision, 0), dtype)
    clock = _clock(device, first)
    sets = [first, *(held(case.inputs(device, precision, seed), dtype) for seed in range(1, clock.sets))]
    judge = case.judge(first, yardstick(dtype))
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, list[Call]] = {}
    for way in case.ways(device, precision):
        rows[way.name] = {"way": way.name, "kind": way.kind}
        outcome, ready = _check(way, sets, judge)
        rows[way.name].update(outcome)
        if ready:
            calls[way.name] = ready
        if way.kind == "limit" and case.unit == "TFLOP/s":
            rows[way.name]["amount"] = attention_cases.product_flop(device)
    for name, times in measure(clock, calls, seconds).items():
        rows[name].update(seconds=times.median, spread=times.spread, samples=times.samples)
    del calls, sets, first
    _forget(device)
    return {
        "operation": case.operation,
        "case": case.name,
        "dtype": dtype,
        "unit": case.unit,
        "amount": case.amount(precision),
        "rows": list(rows.values()),
    }


def _clock(device: torch.device, inputs: Inputs) -> Clock:
    if device.type == "cpu":
        return CpuClock()
    return CudaClock(device, sum(x.numel() * x.element_size() for x in inputs))


def _check(way: Way, sets: list[Inputs], judge: Judge) -> tuple[dict[str, Any], list[Call]]:
    """Error and calls of a way, or why there are none."""
    try:
        calls = [way.prepare(inputs) for inputs in sets]
        found = calls[0]()
    except (NotOfferedError, ta.BackendUnavailableError) as reason:
        return {"skipped": _line(reason)}, []
    except Exception as problem:  # whatever a peer's kernel raises where it can't do a case
        outcome = "failed" if way.kind == "ours" else "skipped"
        return {outcome: f"{type(problem).__name__}: {_line(problem)}"}, []
    if way.kind == "limit":
        return {}, calls
    verdict = judge(found, way)
    if not verdict.passed:
        return {"failed": f"it errs by {verdict.error:.2e}, more than {verdict.allowed:.2e}"}, []
    return {"error": verdict.error, "allowed": verdict.allowed}, calls


def _line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 200 else text[:197] + "..."


def _forget(device: torch.device) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
