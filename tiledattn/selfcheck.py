"""The self-check of kernels that have not been proven on the device at hand.

A compiled kernel may be wrong on hardware it never ran on. Before "auto" takes one, small cases are compared with
float64 on the CPU: it may err at most twice what the PyTorch backend errs on the device in that precision, plus one
rounding unit. Where float32 is multiplied as tfloat32, that precision is float16, whose mantissa is as long: PyTorch's
own attention doesn't follow that setting everywhere. Once per process, backend, operation, device, dtype and head dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backends.tables import window_tables
from .geometry import TileLayout, attention_plan

_logger = logging.getLogger("tiledattn")

_LAYOUT = TileLayout(size=(24, 40), tile=(16, 16), overlap=(0, 4), wrap=(False, True))

_BOXES = TileLayout(size=(32, 32), tile=(16, 16), overlap=0, wrap=(False, True))  # a halo of 4 consists of 4x4 boxes

Case = Callable[[ModuleType, torch.device, torch.dtype], Tensor]


class _NotNowError(RuntimeError):
    """Nothing can be said now; the message says why. Not remembered."""


def failed_self_check(
    module: ModuleType, plain: ModuleType, op: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    """None if `module` may be trusted with `op` on this device, else why not; `plain` is the PyTorch backend."""
    if module is plain:
        return None
    try:
        return _checked(module, plain, op, device, dtype, head_dim, _as_tfloat32(op, device, dtype))
    except _NotNowError as reason:
        return str(reason)


def _as_tfloat32(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an operation's products of float32 are allowed to be those of tfloat32, which other kernels make."""
    if device.type != "cuda" or dtype != torch.float32 or not op.startswith("cross_tile_attention"):
        return False
    return torch.backends.cuda.matmul.fp32_precision not in ("ieee", "none")


@cache
def _checked(
    module: ModuleType,
    plain: ModuleType,
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    tfloat32: bool,
) -> str | None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise _NotNowError("it has not been checked on this device yet; call it once before capturing a graph")
    try:
        reason = _compare(module, plain, op, device, dtype, head_dim, torch.float16 if tfloat32 else dtype)
    except Exception as problem:  # whatever a compiler or driver raises, the call must go on elsewhere
        if isinstance(problem, torch.OutOfMemoryError) or "out of memory" in str(problem):
            raise _NotNowError(f"its self-check ran out of memory: {problem}") from problem
        reason = f"its self-check raised {type(problem).__name__}: {problem}"
    if reason is not None:
        _logger.warning("backend %r, %s on %s, %s: %s", module.NAME, op, device, dtype, reason)
    return reason


def _compare(
    module: ModuleType,
    plain: ModuleType,
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    yardstick: torch.dtype,
) -> str | None:
    """None, or by how much `module` errs too much in `dtype`; `plain` shows in `yardstick`, which holds the inputs."""
    for case in _cases(op, yardstick, head_dim):
        exact = case(plain, torch.device("cpu"), torch.float64)
        error = _relative_error(case(module, device, dtype), exact)
        allowed = 2 * _relative_error(case(plain, device, yardstick), exact) + torch.finfo(yardstick).eps
        if not error <= allowed:
            return f"its self-check erred by {error:.2e}, more than {allowed:.2e}"
    return None


def _relative_error(found: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.vector_norm(found.cpu().double() - exact) / torch.linalg.vector_norm(exact)
    return float("inf") if bool(torch.isnan(difference)) else float(difference)


def _random(dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers that every precision holds exactly, on the CPU."""
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)  # torch's own are refused in a vmap
    return torch.from_numpy(numbers).to(dtype)


def _cases(op: str, dtype: torch.dtype, head_dim: int) -> list[Case]:
    """Small calls of `op`, each a function of backend, device and precision."""
    if op == "cross_tile_attention":
        return [
            _attention_case(_LAYOUT, 5, dtype, head_dim, masked=False, lse=False),
            _attention_case(_LAYOUT, 5, dtype, head_dim, masked=True, lse=True),
            _attention_case(_BOXES, 4, dtype, head_dim, masked=True, lse=True),
        ]
    if op == "cross_tile_attention_backward":
        return [
            _gradient_case(dtype, head_dim, masked=False, lse=False),
            _gradient_case(dtype, head_dim, masked=True, lse=True),
        ]
    if op == "group_norm_tiles":
        return [_norm_case(dtype, "canvas"), _norm_case(dtype, "neighbours")]
    return [_tiling_case(op, dtype)]


def _attention_inputs(
    layout: TileLayout, dtype: torch.dtype, head_dim: int, masked: bool
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """q, k, v with three prefix tokens, and a mask of those."""
    tiles, prefix = layout.num_tiles, 3
    q = _random(dtype, tiles, 2, prefix + layout.tile_positions, 4, head_dim)
    k, v = _random(dtype, 2, *q.shape[:3], 2, head_dim).unbind(0)
    return (q, k, v), _random(torch.float32, tiles, 2, prefix) > 0 if masked else None


def _attention_options(layout: TileLayout, halo: int, mask: Tensor | None, head_dim: int, lse: bool) -> dict[str, Any]:
    return {
        "plan": attention_plan(layout, (halo, halo)),
        "num_prefix_tokens": 3,
        "prefix_mask": mask,
        "halo_weight": 0.5,
        "scale": head_dim**-0.5,
        "return_lse": lse,
    }


def _flat(*parts: Tensor) -> Tensor:
    return torch.cat([x.flatten().cpu().double() for x in parts])


def _attention_case(layout: TileLayout, halo: int, dtype: torch.dtype, head_dim: int, masked: bool, lse: bool) -> Case:
    inputs, mask = _attention_inputs(layout, dtype, head_dim, masked)

    def run(backend: ModuleType, device: torch.device, precision: torch.dtype) -> Tensor:
        options = _attention_options(layout, halo, None if mask is None else mask.to(device), head_dim, lse)
        return _flat(*backend.cross_tile_attention(*(x.to(device, precision) for x in inputs), **options))

    return run


def _gradient_case(dtype: torch.dtype, head_dim: int, masked: bool, lse: bool) -> Case:
    """Gradients, from what the same backend's forward gave."""
    inputs, mask = _attention_inputs(_LAYOUT, dtype, head_dim, masked)
    grad_out = _random(dtype, *inputs[0].shape)
    grad_lse = _random(torch.float32, *(grad_out.shape[d] for d in (0, 1, 3, 2))) if lse else None

    def run(backend: ModuleType, device: torch.device, precision: torch.dtype) -> Tensor:
        options = _attention_options(_LAYOUT, 5, None if mask is None else mask.to(device), head_dim, True)
        tensors = [x.to(device, precision) for x in inputs]
        out, sums = backend.cross_tile_attention(*tensors, **options)
        grads = grad_out.to(device, precision), None if grad_lse is None else grad_lse.to(device, sums.dtype)
        return _flat(*backend.cross_tile_attention_backward(*grads, *tensors, out, sums, **options))

    return run


def _norm_case(dtype: torch.dtype, scope: str) -> Case:
    tiles = _random(dtype, _LAYOUT.num_tiles, 2, 6, *_LAYOUT.tile)
    parameters = _random(dtype, 2, 6)

    def run(backend: ModuleType, device: torch.device, precision: torch.dtype) -> Tensor:
        x, (weight, bias) = tiles.to(device, precision), parameters.to(device, precision)
        result: Tensor = backend.group_norm_tiles(
            x, layout=_LAYOUT, num_groups=3, weight=weight, bias=bias, eps=1e-5, scope=scope
        )
        return result

    return run


def _tiling_case(op: str, dtype: torch.dtype) -> Case:
    canvas = _random(dtype, 2, 3, *_LAYOUT.size)
    batch = _random(dtype, _LAYOUT.num_tiles, 2, 3, *_LAYOUT.tile)

    def run(backend: ModuleType, device: torch.device, precision: torch.dtype) -> Tensor:
        function = getattr(backend, op)
        result: Tensor
        if op == "extract_tiles":
            result = function(canvas.to(device, precision), layout=_LAYOUT)
        elif op == "pad_tiles":
            result = function(batch.to(device, precision), layout=_LAYOUT, pad=((1, 1), (2, 2)))
        else:
            sums = torch.float64 if precision == torch.float64 else torch.float32
            weights = window_tables(_LAYOUT, "hann", device, sums)
            result = function(batch.to(device, precision), layout=_LAYOUT, weights=weights)
        return result

    return run
