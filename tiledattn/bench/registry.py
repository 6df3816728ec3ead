"""All cases by name, gathered when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module

import torch

from .ways import Case

MODULES = ("attention_cases", "tile_cases", "backward_cases", "model_cases", "step_cases", "end_to_end")

Pair = tuple[Case, str]  # a case and the name of a dtype


@cache
def cases() -> tuple[Case, ...]:
    """`CASES` of every module, in the order of `MODULES`."""
    return tuple(case for name in MODULES for case in import_module(f".{name}", __package__).CASES)


def label(case: Case, dtype: str) -> str:
    """ "operation/case/dtype", which is what `--case` is compared with."""
    return f"{case.operation}/{case.name}/{dtype}"


def matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether a text is one of the globs, upper case as lower; a pattern without wildcards may be any part of it."""
    lower = text.lower()
    for pattern in (p.lower() for p in patterns):
        if fnmatchcase(lower, pattern) if any(c in pattern for c in "*?[") else pattern in lower:
            return True
    return False


def chosen(
    device: torch.device, patterns: Sequence[str] = (), dtypes: Sequence[str] = (), quick: bool = False
) -> list[Pair]:
    """Cases with each dtype that they are run in on a device; of these, what the arguments leave (empty: all)."""
    pairs = [(case, dtype) for case in cases() for dtype in case.dtypes.get(device.type, ())]
    return [
        (case, dtype)
        for case, dtype in pairs
        if (not patterns or matches(label(case, dtype), patterns))
        and (not dtypes or dtype in dtypes)
        and (case.quick or not quick)
    ]
