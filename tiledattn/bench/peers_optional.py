"""Peers from packages that few have: NATTEN, FlashAttention, MONAI, pytorch-toolbelt.

A missing package raises NotOfferedError with what installs it; nothing here is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

import tiledattn as ta

from .peers import Attend
from .ways import NotOfferedError

INSTALL = {
    "monai": "pip install monai",
    "pytorch_toolbelt": "pip install --no-deps pytorch-toolbelt opencv-python-headless",
    "natten": "pip install natten, built for this torch",
    "flash_attn": "pip install --no-build-isolation flash-attn",
    "flash_attn_interface": "FlashAttention 3 is built from the `hopper` folder of its repository",
}
MONAI_TILES = 4  # of a batch, as in MONAI's own examples


def package(name: str, module: str | None = None) -> ModuleType:
    """`module` of the package `name`, by default the package itself.

    Raises:
        NotOfferedError: it is not installed, or can't be imported; with what installs it.
    """
    if importlib.util.find_spec(name) is None:
        raise NotOfferedError(f"{name} is not installed: {INSTALL[name]}")
    try:
        return importlib.import_module(module or name)
    except ImportError as problem:
        raise NotOfferedError(f"{name} can't be imported ({problem}): {INSTALL[name]}") from problem


def neighbourhoods(layout: ta.TileLayout, halo: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    """Per tile and axis, where the window of NATTEN's queries begins and ends.

    NATTEN's queries in one group of `stride` share the window of the group's middle. With a stride of one tile and a
    window of the tile and its halo, that is what a tile sees here, except at the canvas's border: there NATTEN moves
    the window inwards, so that it always has the same size, and it knows no wrap.

    Raises:
        NotOfferedError: tiles that overlap or do not fill the canvas.
    """
    whole = all(n % w == 0 for n, w in zip(layout.size, layout.tile, strict=True))
    if any(layout.overlap) or not whole:
        raise NotOfferedError("NATTEN has no tiles; groups of queries are compared with tiles that lie side by side")
    lengths = window(layout, halo)
    found = []
    for origin in layout.origins:
        begins = [max(0, min(o - h, n - k)) for o, h, n, k in zip(origin, halo, layout.size, lengths, strict=True)]
        found.append(tuple((b, b + k) for b, k in zip(begins, lengths, strict=True)))
    return found


def window(layout: ta.TileLayout, halo: tuple[int, ...]) -> tuple[int, ...]:
    """NATTEN's `kernel_size` of the same reach: the tile and its halo on both sides, the canvas at most."""
    return tuple(min(n, w + 2 * h) for n, w, h in zip(layout.size, layout.tile, halo, strict=True))


def natten(layout: ta.TileLayout, halo: tuple[int, ...], device: torch.device, prefix: int = 0) -> Attend:
    """NATTEN's `na1d`, `na2d` or `na3d` with a stride of one tile: q, k, v [B, *size, H, D] to the same.

    Its users hold the canvas; putting tiles together and cutting them is no part of it. Idea of windows that a group of
    queries shares: Hassani et al., "Generalized Neighborhood Attention", 2025.

    Raises:
        NotOfferedError: no CUDA device, a prefix, tiles that overlap, or NATTEN is missing.
    """
    if device.type != "cuda":
        raise NotOfferedError("NATTEN's kernels need a CUDA device")
    if prefix:
        raise NotOfferedError("NATTEN's windows are on the canvas; a prefix per tile has no place in them")
    neighbourhoods(layout, halo)
    function: Any = getattr(package("natten", "natten.functional"), f"na{len(layout.size)}d")
    kernel_size = window(layout, halo)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, function(q, k, v, kernel_size=kernel_size, stride=layout.tile))

    return attend


def flash_attention(name: str, device: torch.device, dtype: torch.dtype, prefix: int = 0) -> Attend:
    """FlashAttention's function on q [T * B, S, H, D] and gathered keys and values [T * B, M, H, D].

    Args:
        name: "flash_attn" or, for FlashAttention 3, "flash_attn_interface".
        device: where it is to run.
        dtype: of the inputs.
        prefix: tokens of each sequence that see their own sequence only; theirs is a second call.

    Raises:
        NotOfferedError: no CUDA device, not half precision, or not installed.
    """
    if device.type != "cuda":
        raise NotOfferedError("FlashAttention needs a CUDA device")
    if dtype not in (torch.float16, torch.bfloat16):
        raise NotOfferedError(f"FlashAttention has float16 and bfloat16, not {str(dtype).removeprefix('torch.')}")
    function: Any = package(name).flash_attn_func

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v)
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)  # version 3 has returned the lse too

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = call(q[:, prefix:], k, v)
        own = q.shape[1]
        return torch.cat([call(q[:, :prefix], k[:, :own], v[:, :own]), out], 1) if prefix else out

    return attend


def monai_blending(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """MONAI's `sliding_window_inference` with a predictor that hands out the ready tiles: its accumulation.

    What else it does: it cuts windows, of one channel here, that the predictor does not read; it multiplies each batch
    of tiles by the weights in place (all ones); and it makes the map of counts anew at every call.

    Raises:
        NotOfferedError: MONAI is missing, or its windows would lie elsewhere.
    """
    inference = _sliding_window_inference()
    overlap = [o / w for o, w in zip(layout.overlap, layout.tile, strict=True)]
    steps = tuple(int(w * (1 - o)) for w, o in zip(layout.tile, overlap, strict=True))
    if steps != layout.step or tiles.shape[1] != 1 or any(layout.wrap):
        raise NotOfferedError(f"MONAI's windows lie {steps} apart, one canvas at a time, without wrap")
    done = 0

    def ready(windows: Tensor) -> Tensor:
        nonlocal done
        done += len(windows)
        return tiles[done - len(windows) : done, 0]

    canvas = tiles.new_empty(1, 1, *layout.size)
    return cast(Tensor, inference(canvas, layout.tile, MONAI_TILES, ready, overlap=overlap, mode="constant"))


@lru_cache(maxsize=1)
def _sliding_window_inference() -> Any:
    """Looked up once and not at every call, which is timed."""
    return package("monai", "monai.inferers").sliding_window_inference


def toolbelt_blending(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """pytorch-toolbelt's `TileMerger` with uniform weights: image and weights summed, then divided.

    Raises:
        NotOfferedError: pytorch-toolbelt is missing, or there are several canvases at once.
    """
    if tiles.shape[1] != 1 or any(layout.wrap) or len(layout.size) != 2:
        raise NotOfferedError("TileMerger holds one picture, without wrap")
    import numpy as np

    height, width = layout.tile
    weight = np.ones(layout.tile, dtype=np.float32)
    merger = _tile_merger()(layout.size, tiles.shape[2], weight, device=tiles.device, dtype=tiles.dtype)
    merger.integrate_batch(tiles[:, 0], [(x, y, width, height) for y, x in layout.origins])
    return cast(Tensor, merger.merge()[None])


@lru_cache(maxsize=1)
def _tile_merger() -> Any:
    """The class. Its module is loaded from its file: the package's own __init__ also wants torchvision.

    A torchvision that was built for another torch breaks every library that looks for it.
    """
    spec = importlib.util.find_spec("pytorch_toolbelt")
    if spec is None or not spec.submodule_search_locations:
        raise NotOfferedError(f"pytorch_toolbelt is not installed: {INSTALL['pytorch_toolbelt']}")
    path = Path(spec.submodule_search_locations[0]) / "inference" / "tiles.py"
    of_file = importlib.util.spec_from_file_location("tiledattn_bench_toolbelt_tiles", path)
    if of_file is None or of_file.loader is None or not path.exists():
        raise NotOfferedError(f"pytorch_toolbelt has no inference/tiles.py: {INSTALL['pytorch_toolbelt']}")
    module = importlib.util.module_from_spec(of_file)
    try:
        of_file.loader.exec_module(module)
    except ImportError as problem:
        reason = f"pytorch_toolbelt can't be imported ({problem}): {INSTALL['pytorch_toolbelt']}"
        raise NotOfferedError(reason) from problem
    return module.TileMerger
