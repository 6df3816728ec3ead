"""What a benchmark is made of: cases, the ways to do their work, and how their results are judged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import tiledattn as ta

Inputs = tuple[Tensor, ...]
Call = Callable[[], Any]  # a tensor, or several
Kind = Literal["ours", "peer", "bound", "limit"]

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # multiplied as tfloat32: variants.py
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class NotOfferedError(Exception):
    """A way can't do this case; the message says why."""


class Way(NamedTuple):
    """One way to do a case's work. `prepare` makes a call from inputs, with all that needs no timing done.

    Kinds: "ours"; a "peer" gives the same result; a "bound" does other work, less (no halo, or a part of it
    untimed) or more (the whole canvas), and is judged by what it does; a "limit" is what the machine can do at best.
    """

    name: str
    kind: Kind
    prepare: Callable[[Inputs], Call]


class Verdict(NamedTuple):
    """How far a result is from the exact one, and how far it may be."""

    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """False also for an error that is infinite or NaN, whatever is allowed."""
        return math.isfinite(self.error) and self.error <= self.allowed


Judge = Callable[[Any, Way], Verdict]


@dataclass(frozen=True)
class Case(ABC):
    """One piece of work that is done in several ways.

    Attributes:
        operation: what is done; cases of one operation share a table.
        name: as tables show it.
        dtypes: per device type, the dtypes that it is run with; a device type that is missing leaves the case out.
        quick: part of `--quick`.
    """

    operation: str
    name: str
    dtypes: Mapping[str, tuple[str, ...]]
    quick: bool = field(default=False, kw_only=True)

    unit = ""  # "TFLOP/s", "GB/s", or "" where only time counts

    @property
    def result_is_new(self) -> bool:
        """Whether every call makes its result's memory anew."""
        return True

    @abstractmethod
    def amount(self, dtype: torch.dtype) -> float:
        """Floating-point operations, or bytes read and written, of one call; 0 where only time counts."""

    def least_bytes(self, dtype: torch.dtype) -> float:
        """Bytes that move at least: inputs read once, outputs written once; 0 where that is unknown."""
        return 0.0

    @abstractmethod
    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """Random inputs."""

    @abstractmethod
    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours first, in the order in which "auto" tries them."""

    @abstractmethod
    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """Judges what a way made of these inputs, by float64.

        The budget is set by plain PyTorch in the precision of the inputs, or in `yardstick`, which holds them exactly.
        """


def our_backends(device: torch.device) -> list[str]:
    """The backends that "auto" would try on a device type and that run here, in that order."""
    elsewhere = {"cpu"} if device.type != "cpu" else {"triton", "cuda"}
    return [name for name, reason in ta.backends().items() if reason is None and name not in {"reference", *elsewhere}]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact value; infinite for NaN or a wrong shape."""
    if found.shape != exact.shape:
        return float("inf")
    error = torch.linalg.vector_norm(found.double() - exact.double()) / torch.linalg.vector_norm(exact.double())
    return float("inf") if bool(error.isnan()) else float(error)


def worst_row(found: Tensor, exact: Tensor) -> float:
    """The largest norm of a difference along the last axis over the root mean square of the exact norms there.

    `relative_error` of many rows hides a wrong one; this does not. Infinite for NaN or a wrong shape.
    """
    if found.shape != exact.shape:
        return float("inf")
    wrong = torch.linalg.vector_norm(found.double() - exact.double(), dim=-1).max()
    error = wrong / torch.linalg.vector_norm(exact.double(), dim=-1).square().mean().sqrt()
    return float("inf") if bool(error.isnan()) else float(error)


def budget(
    found: Tensor, plain: Tensor, exact: Tensor, error: Callable[[Tensor, Tensor], float] = relative_error
) -> Verdict:
    """At most twice what plain PyTorch errs in the same precision, plus one rounding unit of that precision.

    Args:
        found: what a way made; in another dtype than `plain` it fails, since a way may not choose its own tolerance.
        plain: the same by plain PyTorch, in the dtype of the inputs.
        exact: the same in a wider one.
        error: what is compared, `relative_error` or `worst_row`.
    """
    if found.dtype != plain.dtype:
        return Verdict(float("inf"), 0.0)
    return Verdict(error(found, exact), 2 * error(plain, exact) + torch.finfo(plain.dtype).eps)


def budget_by_rows(found: Tensor, plain: Tensor, exact: Tensor) -> Verdict:
    """The budget of all elements together or that of the worst row, whichever is nearer to being exceeded."""
    return nearest(budget(found, plain, exact), budget(found, plain, exact, worst_row))


def nearest(*verdicts: Verdict) -> Verdict:
    """The verdict that is nearest to its limit, or the farthest beyond."""
    return max(verdicts, key=lambda v: v.error / v.allowed if v.allowed else float("inf") if v.error else 0.0)


def random(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, the same in every precision up to its rounding."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(tuple(shape), device=device, dtype=torch.float32, generator=generator).to(dtype)
