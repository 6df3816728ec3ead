"""A plan's integer tables as tensors on a device, cached by value: small, and the same for every call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..geometry import AttentionPlan, TileLayout, normalized_windows, reversed_plan
from ..geometry.axis import Axis
from ..geometry.windows import normalize_axis

Args = ParamSpec("Args")
Result = TypeVar("Result")


_captured: dict[int, object] = {}  # tables that a CUDA graph reads whenever it is replayed


def cached(most: int) -> Callable[[Callable[Args, Result]], Callable[Args, Result]]:
    """For functions that make tables: keeps the last `most` results, by value, and for good those that are asked for
    while a CUDA graph is being captured. Tables that are first made in inference mode serve in training too, and those
    that other CUDA streams read than the one they were made on aren't overwritten before these are done.
    """

    def decorate(make: Callable[Args, Result]) -> Callable[Args, Result]:
        @lru_cache(maxsize=most)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            with torch.inference_mode(False), torch.no_grad():
                tables = make(*args, **kwargs)
            on_gpu = _on_gpu(tables)
            return tables, on_gpu, torch.cuda.current_stream(on_gpu[0].device) if on_gpu else None

        @wraps(make)
        def wrapper(*args: Args.args, **kwargs: Args.kwargs) -> Result:
            tables, on_gpu, home = remembered(*args, **kwargs)  # type: ignore[arg-type]
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
                _captured[id(tables)] = tables
            elif on_gpu and (stream := torch.cuda.current_stream(on_gpu[0].device)) != home:
                for x in on_gpu:
                    x.record_stream(stream)
            found: Result = tables
            return found

        return wrapper

    return decorate


def _on_gpu(tables: object) -> list[Tensor]:
    """The tensors in it, and in tuples in it, that are on a CUDA device."""
    if isinstance(tables, Tensor):
        return [tables] if tables.is_cuda else []
    return [x for part in tables for x in _on_gpu(part)] if isinstance(tables, tuple) else []


class AttentionTables(NamedTuple):
    """Device copy of `AttentionPlan.table`.

    The halo of tile t is `t * N + index[starts[c] : starts[c + 1]]` (flat canvas tokens) with c = class_of_tile[t];
    flat token f is canvas token f % N of tile f // N of the pool, and lies at sequence place P + f % N.
    """

    class_of_tile: Tensor  # int32 [T]
    starts: Tensor  # int64 [classes + 1]
    index: Tensor  # type: ignore[assignment]  # int32 [starts[-1]]; hides tuple.index, which nobody calls


@cached(32)
def attention_tables(plan: AttentionPlan, device: torch.device) -> AttentionTables:
    """The plan's tables on `device`."""
    starts, index = plan.table
    return AttentionTables(
        torch.from_numpy(plan.class_of_tile).to(device),
        torch.from_numpy(starts).to(device),
        torch.from_numpy(index).to(device),
    )


class ReverseTables(NamedTuple):
    """Device copy of a plan's `ReverseTable`: which tiles see the tokens of tile u of the pool.

    The cells of u are cells[cell_starts[c] : cell_starts[c + 1]] with c = class_of_lender[u]; a cell
    (first_token, tokens, first_borrower, borrowers) names ranges of `tokens` and `borrowers`.
    """

    class_of_lender: Tensor  # int32 [T']
    cell_starts: Tensor  # int64 [classes + 1]
    cells: Tensor  # int64 [n, 4]
    tokens: Tensor  # int32, canvas tokens of the lender
    borrowers: Tensor  # int32, tile deltas borrower - lender


@cached(32)
def reverse_tables(plan: AttentionPlan, device: torch.device) -> ReverseTables:
    """The reversed plan's tables on `device`."""
    found = reversed_plan(plan)
    return ReverseTables(*(torch.from_numpy(x).to(device) for x in (found.class_of_lender, *found.table)))


@cached(32)
def group_members(plan: AttentionPlan, device: torch.device) -> tuple[Tensor, ...]:
    """The tiles of each of `AttentionPlan.groups` on `device`, int64."""
    return tuple(torch.from_numpy(members).to(device) for _, members in plan.groups)


@cached(256)
def window_tables(layout: TileLayout, kind: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`normalized_windows` on `device`: per axis [tiles on the axis, tile]."""
    return tuple(torch.tensor(table, dtype=dtype, device=device) for table in normalized_windows(layout, kind))


def custom_window_tables(
    layout: TileLayout, windows: list[Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The same from a caller's 1-D windows, one [tile] per axis.

    Raises:
        ValueError: a weight that is not positive and finite, naming the axis.
    """
    tables = []
    for number, (axis, window) in enumerate(zip(layout.axes, windows, strict=True)):
        weights = window.detach().cpu().double().numpy()  # in this order: MPS has no float64
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(
                f"window[{number}]: weights are between {weights.min()} and {weights.max()}; "
                "they must be positive and finite"
            )
        tables.append(_axis_table(axis, weights.tobytes(), device, dtype))
    return tuple(tables)


@cached(256)
def _axis_table(axis: Axis, weights: bytes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A caller's window on an axis, [tiles on the axis, tile], by value: a CUDA graph can't copy it to its device."""
    return torch.tensor(normalize_axis(axis, np.frombuffer(weights)), dtype=dtype, device=device)
