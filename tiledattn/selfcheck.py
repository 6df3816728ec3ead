"""The self-check of kernels that have not been proven on the device at hand.

A compiled kernel may be wrong on hardware it never ran on. Before "auto" takes one, a small case is compared with
float64 on the same device: it may err at most twice what the PyTorch backend errs in that precision, plus one rounding
unit. Once per process, backend, operation, device, dtype and head dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .backends.tables import window_tables
from .geometry import TileLayout, attention_plan

_logger = logging.getLogger("tiledattn")

_LAYOUT = TileLayout(size=(24, 40), tile=(16, 16), overlap=(0, 4), wrap=(False, True))


class _CapturingError(RuntimeError):
    """A CUDA graph is being captured: nothing can be compared now."""


def failed_self_check(
    module: ModuleType, plain: ModuleType, op: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    """None if `module` may be trusted with `op` on this device, else why not; `plain` is the PyTorch backend."""
    if module is plain:
        return None
    try:
        return _checked(module, plain, op, device, dtype, head_dim)
    except _CapturingError:
        return "it has not been checked on this device yet; call it once before capturing a graph"


@cache
def _checked(
    module: ModuleType, plain: ModuleType, op: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise _CapturingError
    run = _case(op, device, dtype, head_dim)
    exact = run(plain, torch.float64)
    try:
        error = _relative_error(run(module, dtype), exact)
    except Exception as problem:  # whatever a compiler or driver raises, the call must go on elsewhere
        reason = f"its self-check raised {type(problem).__name__}: {problem}"
        _logger.warning("backend %r, %s on %s, %s: %s", module.NAME, op, device, dtype, reason)
        return reason
    allowed = 2 * _relative_error(run(plain, dtype), exact) + torch.finfo(dtype).eps
    if error <= allowed:
        return None
    reason = f"its self-check erred by {error:.2e}, more than {allowed:.2e}"
    _logger.warning("backend %r, %s on %s, %s: %s", module.NAME, op, device, dtype, reason)
    return reason


def _relative_error(found: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact)
    return float("inf") if bool(torch.isnan(difference)) else float(difference)


def _case(
    op: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Callable[[ModuleType, torch.dtype], Tensor]:
    """A small call of `op` whose inputs are the same values in every precision."""

    def random(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        return numbers.to(dtype).to(device)

    layout, tiles = _LAYOUT, _LAYOUT.num_tiles
    if op == "cross_tile_attention":
        q = random(tiles, 2, 3 + layout.tile_positions, 4, head_dim)
        k, v = random(2, *q.shape[:3], 2, head_dim).unbind(0)

        def attention(backend: ModuleType, precision: torch.dtype) -> Tensor:
            out: Tensor = backend.cross_tile_attention(
                *(x.to(precision) for x in (q, k, v)),
                plan=attention_plan(layout, (5, 5)),
                num_prefix_tokens=3,
                prefix_mask=None,
                halo_weight=0.5,
                scale=head_dim**-0.5,
                return_lse=False,
            )[0]
            return out

        return attention

    canvas, batch = random(2, 3, *layout.size), random(tiles, 2, 3, *layout.tile)

    def tiling(backend: ModuleType, precision: torch.dtype) -> Tensor:
        function = getattr(backend, op)
        result: Tensor
        if op == "extract_tiles":
            result = function(canvas.to(precision), layout=layout)
        elif op == "pad_tiles":
            result = function(batch.to(precision), layout=layout, pad=((1, 1), (2, 2)))
        else:
            accumulator = torch.float64 if precision == torch.float64 else torch.float32
            weights = window_tables(layout, "hann", device, accumulator)
            result = function(batch.to(precision), layout=layout, weights=weights)
        return result

    return tiling
