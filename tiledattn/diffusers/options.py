"""The arguments of `enable_tiling`, checked once and put in latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import dispatch
from ..geometry import WINDOWS, TileLayout

NORMS = ("tile", "neighbours", "canvas")
SCHEDULES = ("constant", "quadratic")
SIZE_CONDITIONINGS = ("tile", "crop", "canvas")
UNITS = ("pixel", "latent")

Extent = int | Sequence[int]
Schedule = str | Callable[[int, int], float]


@dataclass(frozen=True)
class Model:
    """What the options are checked against: the denoiser's facts, in latents."""

    granularity: int
    native_tile: tuple[int, int]
    pixels: int
    has_vae: bool
    has_scheduler: bool


@dataclass(frozen=True, eq=False)
class Options:
    """Checked arguments of `enable_tiling`. `tile`, `overlap` and `halo` are in latents, (height, width).

    `scale` is how many of the user's units a latent is, `granularity` what sizes must be multiples of in latents,
    `pixels` how many pixels a latent is; `norm_backend` is `backend`, or "auto" where that has no group norm.
    """

    tile: tuple[int, int]
    overlap: tuple[int, int]
    halo: tuple[int, int] | Literal["all"]
    window: str | tuple[Tensor, ...]
    wrap: tuple[bool, bool]
    conv_halo: bool
    norm: str
    halo_schedule: Schedule
    num_steps: int | None
    size_conditioning: str
    backend: str
    norm_backend: str
    unit: str
    scale: int
    granularity: int
    pixels: int

    @property
    def has_halo(self) -> bool:
        """Whether attention crosses borders."""
        return self.halo == "all" or any(self.halo)

    @property
    def has_couplings(self) -> bool:
        """Whether convolutions or norms cross borders."""
        return self.conv_halo or self.norm != "tile"

    def layout_for(self, height: int, width: int) -> TileLayout:
        """The layout of a canvas of `height` x `width` latents; a tile larger than the canvas becomes the canvas.

        Raises:
            ValueError: a canvas that the model's levels can't divide, naming the nearest sizes that can.
        """
        size = (height, width)
        tile = tuple(min(t, length) for t, length in zip(self.tile, size, strict=True))
        overlap = tuple(o if t < length else 0 for o, t, length in zip(self.overlap, tile, size, strict=True))
        layout = TileLayout(size, tile, overlap, self.wrap)
        if layout.num_tiles > 1 or any(self.wrap):
            for name, length in zip(("height", "width"), size, strict=True):
                self._check_multiple(f"{name} of the canvas", length)
        return layout

    def window_for(self, layout: TileLayout, device: torch.device) -> str | tuple[Tensor, ...]:
        """The window of a layout's tiles: a name, or tensors on `device`, of ones where an axis has a single tile."""
        if isinstance(self.window, str):
            return self.window
        return tuple(
            weights.to(device) if tiles > 1 else torch.ones(length, device=device)
            for weights, tiles, length in zip(self.window, layout.grid, layout.tile, strict=True)
        )

    def _check_multiple(self, name: str, latents: int) -> None:
        check_multiple(name, latents * self.scale, self.granularity * self.scale, self.unit, 1)


def make_options(
    model: Model,
    *,
    tile: Extent | None,
    overlap: Extent,
    halo: Extent | str | None,
    window: str | Sequence[Tensor],
    wrap: bool | Sequence[bool],
    conv_halo: bool,
    norm: str,
    halo_schedule: Schedule,
    num_steps: int | None,
    size_conditioning: str,
    backend: str,
    unit: str | None,
) -> Options:
    """Checks the arguments of `enable_tiling` against a model.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what works.
    """
    unit = _unit(unit, model)
    scale = model.pixels if unit == "pixel" else 1
    tiles = _tile(tile, model, unit, scale)
    overlaps = _overlap(overlap, tiles, model, unit, scale)
    if not isinstance(conv_halo, bool):
        raise TypeError(f"conv_halo: got {conv_halo!r}; expected True or False")
    _one_of("norm", norm, NORMS)
    _one_of("size_conditioning", size_conditioning, SIZE_CONDITIONINGS)
    _check_schedule(halo_schedule, num_steps, model)
    dispatch.check_name(backend)
    return Options(
        tile=tiles,
        overlap=overlaps,
        halo=_halo(halo, tiles, unit, scale),
        window=_window(window, tiles),
        wrap=_wrap(wrap),
        conv_halo=conv_halo,
        norm=norm,
        halo_schedule=halo_schedule,
        num_steps=num_steps,
        size_conditioning=size_conditioning,
        backend=backend,
        norm_backend=backend if dispatch.provides(backend, "group_norm_tiles") else "auto",
        unit=unit,
        scale=scale,
        granularity=model.granularity,
        pixels=model.pixels,
    )


def check_multiple(name: str, value: int, multiple: int, unit: str, least: int) -> None:
    """Raises ValueError naming the nearest multiples, `least` times `multiple` at least."""
    if value % multiple == 0 and value >= least * multiple:
        return
    below = value // multiple * multiple
    near = [v for v in (below, below + multiple) if v >= least * multiple]
    nearest = f"nearest are {near[0]} and {near[1]}" if len(near) == 2 else f"nearest is {near[0]}"
    raise ValueError(f"{name}: got {value} {unit}s; it must be a multiple of {multiple} here; the {nearest}")


def _unit(unit: str | None, model: Model) -> str:
    if unit is not None:
        _one_of("unit", unit, UNITS)
    if unit == "latent" or model.has_vae:
        return "pixel" if unit is None else unit
    raise ValueError(
        "unit: a bare model has no VAE to tell how many pixels a latent is; pass unit='latent' and give tile, overlap "
        "and halo in latents"
    )


def _tile(tile: Extent | None, model: Model, unit: str, scale: int) -> tuple[int, int]:
    step = model.granularity
    if tile is None:
        height, width = (max(step, value // step * step) for value in model.native_tile)
        return height, width
    height, width = _pair("tile", tile, 1, unit)
    for name, value in (("tile height", height), ("tile width", width)):
        check_multiple(name, value, step * scale, unit, 1)
    return height // scale, width // scale


def _overlap(overlap: Extent, tile: tuple[int, int], model: Model, unit: str, scale: int) -> tuple[int, int]:
    pair = _pair("overlap", overlap, 0, unit)
    for name, value, width in zip(("overlap height", "overlap width"), pair, tile, strict=True):
        if value >= width * scale:
            raise ValueError(f"{name}: got {value} {unit}s; it must be below the tile's {width * scale}")
        check_multiple(name, value, model.granularity * scale, unit, 0)
    return pair[0] // scale, pair[1] // scale


def _halo(halo: Extent | str | None, tile: tuple[int, int], unit: str, scale: int) -> tuple[int, int] | Literal["all"]:
    if halo is None:
        return max(1, tile[0] // 8), max(1, tile[1] // 8)
    if isinstance(halo, str):
        if halo != "all":
            raise ValueError(f'halo: got {halo!r}; expected an int, (height, width) or "all"')
        return "all"
    pair = _pair("halo", halo, 0, unit)
    for name, value in zip(("halo height", "halo width"), pair, strict=True):
        check_multiple(name, value, scale, unit, 0)
    return pair[0] // scale, pair[1] // scale


def _pair(name: str, value: object, least: int, unit: str) -> tuple[int, int]:
    values = [value, value] if isinstance(value, int) else value
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(
            f"{name}: got {value!r} ({type(value).__name__}); expected an int in {unit}s or (height, width)"
        )
    if len(values) != 2:
        raise ValueError(f"{name}: got {len(values)} values {tuple(values)}; expected an int or (height, width)")
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"{name}: got {item!r} ({type(item).__name__}); expected a whole number of {unit}s")
        if item < least:
            raise ValueError(f"{name}: got {item}; it must be at least {least}")
    return values[0], values[1]


def _wrap(wrap: object) -> tuple[bool, bool]:
    values = [wrap, wrap] if isinstance(wrap, bool) else wrap
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, bool) for v in values):
        raise TypeError(f"wrap: got {wrap!r}; expected True, False or two of them (height, width)")
    if len(values) != 2:
        raise ValueError(f"wrap: got {len(values)} values {tuple(values)}; expected a bool or (height, width)")
    return values[0], values[1]


def _window(window: object, tile: tuple[int, int]) -> str | tuple[Tensor, ...]:
    if isinstance(window, str):
        _one_of("window", window, WINDOWS)
        return window
    if isinstance(window, Tensor) or not isinstance(window, Sequence):
        raise TypeError(
            f"window: got {type(window).__name__}; expected one of {', '.join(WINDOWS)} or two 1-D tensors "
            "(height, width)"
        )
    shapes = [tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in window]
    if shapes != [(length,) for length in tile]:
        raise ValueError(
            f"window: got {shapes}; expected tensors of shape ({tile[0]},) and ({tile[1]},), the tile in latents"
        )
    if not all(bool((item > 0).all() and item.isfinite().all()) for item in window):
        raise ValueError("window: weights must be positive and finite everywhere")
    return tuple(window)


def _check_schedule(schedule: object, num_steps: object, model: Model) -> None:
    if isinstance(schedule, str):
        _one_of("halo_schedule", schedule, SCHEDULES)
    elif not callable(schedule):
        raise TypeError(
            f"halo_schedule: got {type(schedule).__name__}; expected {' or '.join(map(repr, SCHEDULES))} or a function "
            "of (step, number of steps) that returns a weight in [0, 1]"
        )
    if num_steps is not None:
        if isinstance(num_steps, bool) or not isinstance(num_steps, int):
            raise TypeError(f"num_steps: got {num_steps!r} ({type(num_steps).__name__}); expected an int")
        if num_steps < 1:
            raise ValueError(f"num_steps: got {num_steps}; it must be at least 1")
    elif schedule != "constant" and not model.has_scheduler:
        raise ValueError(
            "num_steps: a bare model has no scheduler to tell how many steps there are, which this halo_schedule "
            "needs; pass num_steps="
        )


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected one of {', '.join(known)}")
    if value not in known:
        raise ValueError(f"{name}: got {value!r}; known are {', '.join(known)}")
