"""What a run will do: which ways of which cases, and what they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._subclasses import FakeTensorMode

import tiledattn as ta

from . import registry
from .app import UsageError
from .ways import DTYPES, Case, NotOfferedError, Way

Wanted = Callable[[Way], bool]


def wanted(
    pairs: Sequence[registry.Pair],
    device: torch.device,
    backends: Sequence[str] = (),
    peers: Sequence[str] = (),
    no_peers: bool = False,
    quick: bool = False,
) -> Wanted:
    """Which ways are run: of ours those of the backends, of the others those whose names match (empty: all); limits.

    A backend's name also stands for its variants: "cuda" for "cuda, sm_90a". Ways of ours that are not named after a
    backend (whole steps and pictures) are always run. If `quick`, other work (kind "bound") is left out unless a peer
    is named: attention to the whole canvas takes longer than all the rest.

    Raises:
        UsageError: a name that is none of the ways of these cases, with those that are, or a backend that can't run.
    """
    if no_peers and peers:
        raise UsageError("--no-peers: got --peer too; expected one of them")
    if backends or peers:
        ways = [way for case, dtype in pairs for way in _ways(case, device, dtype)]
        ours = [way.name for way in ways if way.kind == "ours" and _names_backend(way)]
        for name in backends:
            if not any(_of_backend(way, name) for way in ours):
                raise UsageError(f"--backend: got {name!r}{_why_not(name)}; expected one of {_listed(ours)}")
        others = [way.name for way in ways if way.kind in ("peer", "bound")]
        for name in peers:
            if not any(registry.matches(way, [name]) for way in others):
                raise UsageError(f"--peer: got {name!r}; expected (a part of) one of {_listed(others)}")

    def chosen(way: Way) -> bool:
        if way.kind == "limit":
            return True
        if way.kind == "ours":
            return not (backends and _names_backend(way)) or any(_of_backend(way.name, name) for name in backends)
        if quick and not peers and way.kind == "bound":
            return False
        return not no_peers and (not peers or registry.matches(way.name, peers))

    return chosen


def listing(pairs: Sequence[registry.Pair], device: torch.device, wanted: Wanted, case_seconds: float) -> str:
    """The cases as text, a line each with work, bytes and memory of one call, and a line with the ways.

    Memory is that of inputs and result, without what a way takes beyond.
    """
    lines, names = [], list[str]()
    for case, dtype in pairs:
        ways = [way.name for way in _ways(case, device, dtype) if wanted(way)]
        names += [f"    {len(ways)} way{'s' * (len(ways) != 1)}: {'; '.join(ways)}"]
        lines.append(f"{registry.label(case, dtype)}: {_needs(case, dtype)}")
    lines = [line for pair in zip(lines, names, strict=True) for line in pair]
    total = case_seconds * len(pairs)
    end = f"{len(pairs)} cases on {device.type}, {case_seconds:.3g} s of samples each: about {total:.0f} s; set-up,"
    return "\n".join([*lines, f"{end} checks, compilation, memory and at least 3 samples of slow ways come on top"])


def _needs(case: Case, dtype: str) -> str:
    precision = DTYPES[dtype]
    amount, least = case.amount(precision), case.least_bytes(precision)
    work = {"TFLOP/s": f"{_number(amount, 1e9)} GFLOP", "GB/s": f"{_number(amount, 1e6)} MB moved"}.get(case.unit)
    # of a case that only takes time a model's weights and layers would be most
    memory = max(least, _input_bytes(case, precision)) if case.unit else 0.0
    return (
        ", ".join(filter(None, [work, f"at least {_number(memory, 1e6)} MB of memory" if memory else None]))
        or "time only"
    )


def _number(value: float, unit: float) -> str:
    return f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


def _input_bytes(case: Case, precision: torch.dtype) -> float:
    """Of one set of inputs, none of which is made; 0 where only making them would tell."""
    try:
        with FakeTensorMode():
            inputs = case.inputs(torch.device("cpu"), precision, 0)
            return float(sum(x.numel() * x.element_size() for x in inputs))
    except Exception:  # a case that needs a real model, or a package that is not here
        return 0.0


def _ways(case: Case, device: torch.device, dtype: str) -> list[Way]:
    try:
        return case.ways(device, DTYPES[dtype])
    except NotOfferedError:
        return []


def _names_backend(way: Way) -> bool:
    return any(_of_backend(way.name, name) for name in ta.backends())


def _of_backend(way: str, name: str) -> bool:
    return way.lower() == name.lower() or way.lower().startswith(f"{name.lower()}, ")


def _why_not(name: str) -> str:
    reason = ta.backends().get(name.lower())
    return f", which can't run here: {reason}" if reason else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in dict.fromkeys(names)) or "none"
