"""Fused kernels in Triton: one launch an operation, for NVIDIA, AMD and Intel GPUs, or interpreted on a CPU.

The third-party package is imported when a kernel is first needed, so that this module can say why it cannot run on a
machine that lacks it.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ...geometry import AttentionPlan, TileLayout

NAME = "triton"

MIN_VERSION = (3, 6)
MAX_HEAD_DIM = 256
MIN_CAPABILITY = (8, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
RUNS_ON = "NVIDIA GPUs of compute capability 8.0 and newer, ROCm and XPU devices"
PROVEN_ON: tuple[str, ...] = ()
OPS = ("cross_tile_attention", "cross_tile_attention_backward", "extract_tiles", "blend_tiles", "pad_tiles")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _package_reason() -> str | None:
    """Why the installed package will not do; imports it."""
    try:
        import triton
    except Exception as error:
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_VERSION:
        return f"triton {triton.__version__} is older than {'.'.join(map(str, MIN_VERSION))}"
    return None


def probe() -> str | None:
    """None where the kernels can run on this machine, else the reason why not."""
    if not _is_installed():
        return "the triton package is not installed"
    if not (interpreted() or torch.cuda.is_available() or torch.xpu.is_available()):
        return "no CUDA, ROCm or XPU device"
    return _package_reason()


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None where a call of operation `op` is taken, else the reason why not; `head_dim` is 0 for ops without one."""
    if op not in OPS:
        return f"{op} is not offered by the triton backend"
    if dtype not in DTYPES:
        return f"{op}: {dtype} is not supported, only float16, bfloat16 and float32"
    if head_dim > MAX_HEAD_DIM:
        return f"{op}: head dim {head_dim} is above {MAX_HEAD_DIM}"
    if interpreted():
        if dtype == torch.bfloat16 and op not in ("extract_tiles", "pad_tiles"):
            return f"{op}: Triton's interpreter rounds bfloat16 wrongly"
        return None if device.type == "cpu" else f"{op}: tensors on {device}, but TRITON_INTERPRET is set"
    if device.type not in ("cuda", "xpu"):
        return f"{op}: tensors on {device}; the triton backend needs a CUDA, ROCm or XPU device"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return f"{op}: compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def cross_tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: AttentionPlan,
    num_prefix_tokens: int,
    prefix_mask: Tensor | None,
    halo_weight: float,
    scale: float,
    return_lse: bool,
    frequencies: Tensor | None = None,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor]:
    """Fused attention of every tile over its own tokens and the plan's halo.

    Args:
        q: [T, B, S, H, D], any strides; S = num_prefix_tokens + tokens of a tile.
        k: [T, B, S, Hkv, D], any strides; Hkv divides H.
        v: like k.
        plan: which tokens of which tiles each tile sees besides its own.
        num_prefix_tokens: leading tokens that lie on no canvas position.
        prefix_mask: bool [T, B, P], True = attend, or None.
        halo_weight: in [0, 1]; its logarithm is added to halo logits, 0 leaves the halo out.
        scale: factor on the logits.
        return_lse: whether to compute the log-sum-exp.
        frequencies: rotary frequencies [axes, J] or [axes, H, J] of q and k at tile-local positions, or None. With
            them the plan is an unwrapped one.
        interleaved: whether a rotary pair is two adjacent channels.

    Returns:
        The output, contiguous, like q; and lse, float32 [T, B, H, S] in natural log (empty without `return_lse`).
    """
    from ..rotary import make_pool, pool_turns, turn_queries
    from ..tables import attention_tables
    from .attention import cross_tile_attention_fwd

    if frequencies is not None and q.numel():
        turns = pool_turns(plan, frequencies, interleaved, q)
        q, (k, v) = turn_queries(q, turns), make_pool(k, v, turns)
    return cross_tile_attention_fwd(
        q,
        k,
        v,
        attention_tables(plan, q.device) if halo_weight > 0 else None,
        num_prefix_tokens=num_prefix_tokens,
        prefix_mask=prefix_mask,
        halo_weight=halo_weight,
        scale=scale,
        return_lse=return_lse,
    )


def cross_tile_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    plan: AttentionPlan,
    num_prefix_tokens: int,
    prefix_mask: Tensor | None,
    halo_weight: float,
    scale: float,
    return_lse: bool,
    frequencies: Tensor | None = None,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v: dq over the plan, dk and dv over the reversed plan, without atomics.

    `out` and `lse` are what the forward returned; an empty lse has both computed anew. `grad_lse` counts with
    `return_lse` only; None is zeros. Other arguments as for `cross_tile_attention`.
    """
    from ..rotary import fold_pool, make_pool, pool_turns, turn_queries, turn_queries_back
    from .attention_backward import cross_tile_attention_bwd

    options: dict[str, Any] = {
        "num_prefix_tokens": num_prefix_tokens,
        "prefix_mask": prefix_mask,
        "halo_weight": halo_weight,
        "scale": scale,
    }
    if frequencies is None or q.numel() == 0:
        turns, (queries, keys, values) = None, (q, k, v)
    else:
        turns = pool_turns(plan, frequencies, interleaved, q)
        queries, (keys, values) = turn_queries(q, turns), make_pool(k, v, turns)
    if lse.numel() == 0:
        out, lse = cross_tile_attention(queries, keys, values, plan=plan, return_lse=True, **options)
    grads = grad_out, grad_lse if return_lse else None
    tensors = queries, keys, values, out, lse
    if turns is None:
        return cross_tile_attention_bwd(*grads, *tensors, plan, **options)
    # sums over copies of a tile in float32
    dq, dk, dv = cross_tile_attention_bwd(*grads, *tensors, plan, grad_dtype=torch.float32, **options)
    dq, (dk, dv) = turn_queries_back(dq, turns), fold_pool(dk, dv, turns)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def extract_tiles(canvas: Tensor, *, layout: TileLayout, out: Tensor | None = None) -> Tensor:
    """Cuts [B, C, *size] (any strides) into [T, B, C, *tile] (contiguous), in one launch."""
    from .tiles import extract_tiles_fwd

    return extract_tiles_fwd(canvas, layout, out=out)


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
    """Blends [T, B, C, *tile] (any strides) into [B, C, *size] (contiguous), in one launch.

    Args:
        tiles: the tile batch.
        layout: how the canvas is cut.
        weights: per axis the normalised weights of every tile, float32 [tiles on the axis, tile].
        out: where the result goes, None for new memory.

    Every position is accumulated in float32, tiles in ascending order.
    """
    from .tiles import blend_tiles_fwd

    return blend_tiles_fwd(tiles, layout, weights, out=out)


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """Adds a ring from the owners, (before, after) positions per axis, zeros outside the canvas, in one launch."""
    from .tiles import pad_tiles_fwd

    return pad_tiles_fwd(tiles, layout, pad)
