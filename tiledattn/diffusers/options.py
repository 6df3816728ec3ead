"""The arguments of `enable_tiling`, checked once and put in latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import dispatch
from ..geometry import WINDOWS, TileLayout
from ..geometry.numbers import is_whole
from .axes import AxisUnit, Extent, read_halo, read_overlap, read_tile, read_wrap
from .refresh import Refresh, Refreshed, read_refresh
from .regions import Region, read_regions

NORMS = ("tile", "neighbours", "canvas")
SCHEDULES = ("constant", "quadratic")
SIZE_CONDITIONINGS = ("tile", "crop", "canvas")
UNITS = ("pixel", "latent")
POSITIONS = ("tile", "canvas")
TIMESTEP_SHIFTS = ("tile", "canvas")
BLENDS = ("auto", "prediction", "attention")

Schedule = str | Callable[[int, int], float]


@dataclass(frozen=True)
class Model:
    """What the options are checked against: the denoiser's facts per axis, in positions of its canvas."""

    axes: tuple[str, ...]
    granularity: tuple[int, ...]
    native_tile: tuple[int, ...]
    pixels: tuple[int, ...]
    has_vae: bool
    has_scheduler: bool
    no_halo: str | None
    halo_part: int
    no_canvas_positions: str | None
    no_regions: str | None
    no_joining: str | None


@dataclass(frozen=True, eq=False)
class Options:
    """Checked arguments of `enable_tiling`. `tile`, `overlap` and `halo` are in positions of the canvas, per axis.

    `axes` tells how the user's units become positions, `norm_backend` is `backend`, or "auto" where that has no group
    norm, `pixels_per_axis` are pixels (frames) per position.
    """

    tile: tuple[int, ...]
    overlap: tuple[int, ...]
    halo: tuple[int, ...] | Literal["all"]
    window: str | tuple[Tensor, ...]
    blend: str
    wrap: tuple[bool, ...]
    conv_halo: bool
    norm: str
    halo_schedule: Schedule
    num_steps: int | None
    size_conditioning: str
    positions: str
    timestep_shift: str
    backend: str
    norm_backend: str
    regions: tuple[Region, ...]
    jitter: int | None
    refresh: Refresh | None
    axes: tuple[AxisUnit, ...]
    pixels_per_axis: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Pixels per position, in width."""
        return self.pixels_per_axis[-1]

    @property
    def granularity(self) -> int:
        """What widths must be multiples of, in positions."""
        return self.axes[-1].granularity

    @property
    def has_halo(self) -> bool:
        """Whether attention crosses borders."""
        return self.halo == "all" or any(self.halo)

    @property
    def has_couplings(self) -> bool:
        """Whether convolutions or norms cross borders."""
        return self.conv_halo or self.norm != "tile"

    @property
    def crosses_everywhere(self) -> bool:
        """Whether attention, convolutions and norms all cross borders."""
        return self.has_halo and self.conv_halo and self.norm == "canvas"

    def layout_for(self, *size: int) -> TileLayout:
        """The layout of a canvas of `size` positions; a tile larger than the canvas becomes the canvas.

        Raises:
            ValueError: a canvas that the model's levels can't divide, naming the nearest sizes that can.
        """
        tile = tuple(min(t, length) for t, length in zip(self.tile, size, strict=True))
        overlap = tuple(o if t < length else 0 for o, t, length in zip(self.overlap, tile, size, strict=True))
        layout = TileLayout(size, tile, overlap, self.wrap)
        if layout.num_tiles > 1 or any(self.wrap):
            for axis, length in zip(self.axes, size, strict=True):
                if length % axis.granularity:
                    axis.length(f"{axis.name} of the canvas", axis.units(length))
        return layout

    def window_for(self, layout: TileLayout, device: torch.device) -> str | tuple[Tensor, ...]:
        """The window of a layout's tiles: a name, or tensors on `device`, of ones where an axis has a single tile."""
        if isinstance(self.window, str):
            return self.window
        return tuple(
            weights.to(device) if tiles > 1 else torch.ones(length, device=device)
            for weights, tiles, length in zip(self.window, layout.grid, layout.tile, strict=True)
        )


def make_options(
    model: Model,
    *,
    tile: Extent | None,
    overlap: Extent,
    halo: Extent | str | None,
    window: str | Sequence[Tensor],
    blend: str,
    wrap: bool | Sequence[bool],
    conv_halo: bool,
    norm: str,
    halo_schedule: Schedule,
    num_steps: int | None,
    size_conditioning: str,
    positions: str,
    timestep_shift: str,
    backend: str,
    unit: str | None,
    regions: Sequence[Region] | None,
    jitter: int | None,
    refresh: Refreshed | None,
) -> Options:
    """Checks the arguments of `enable_tiling` against a model.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what works.
    """
    axes = _axes(_unit(unit, model), model)
    tiles = read_tile(tile, axes, model.native_tile)
    overlaps = read_overlap(overlap, axes, tiles)
    reach = read_halo(halo, axes, tiles, model.halo_part)
    wraps = read_wrap(wrap, axes)
    if not isinstance(conv_halo, bool):
        raise TypeError(f"conv_halo: got {conv_halo!r}; expected True or False")
    _one_of("norm", norm, NORMS)
    _one_of("size_conditioning", size_conditioning, SIZE_CONDITIONINGS)
    _one_of("positions", positions, POSITIONS)
    _one_of("timestep_shift", timestep_shift, TIMESTEP_SHIFTS)
    if positions == "canvas" and model.no_canvas_positions is not None:
        raise ValueError(f'positions: got "canvas"; {model.no_canvas_positions}; use "tile"')
    if positions == "canvas" and any(wraps):
        raise ValueError(
            'positions: "canvas" gives a periodic canvas two ends that don\'t meet; use "tile", or no wrap'
        )
    if model.no_halo is not None:
        if reach == "all" or (halo is not None and any(reach)):
            raise ValueError(f"halo: got {halo!r}; {model.no_halo}; pass halo=0")
        reach = (0,) * len(axes)
    _check_schedule(halo_schedule, num_steps, model)
    dispatch.check_name(backend)
    _check_jitter(jitter)
    refreshed = read_refresh(refresh)
    _check_places(positions, jitter, refreshed)
    boxes = read_regions(regions)
    if boxes and model.no_regions is not None:
        raise NotImplementedError(f"regions: {model.no_regions}")
    options = Options(
        tile=tiles,
        overlap=overlaps,
        halo=reach,
        window=_window(window, tiles, axes),
        blend=blend,
        wrap=wraps,
        conv_halo=conv_halo,
        norm=norm,
        halo_schedule=halo_schedule,
        num_steps=None if num_steps is None else int(num_steps),
        size_conditioning=size_conditioning,
        positions=positions,
        timestep_shift=timestep_shift,
        backend=backend,
        norm_backend=backend if dispatch.provides(backend, "group_norm_tiles") else "auto",
        regions=boxes,
        jitter=None if jitter is None else int(jitter),
        refresh=refreshed,
        axes=axes,
        pixels_per_axis=model.pixels,
    )
    _check_blend(options, model)
    return options


def _axes(unit: str, model: Model) -> tuple[AxisUnit, ...]:
    out = []
    for name, granularity, pixels in zip(model.axes, model.granularity, model.pixels, strict=True):
        if unit == "latent":
            out.append(AxisUnit(name, "latent", 1, granularity, 1))
        elif name == "frames":
            out.append(AxisUnit(name, "frame", pixels, granularity, 1))
        else:
            out.append(AxisUnit(name, "pixel", pixels, granularity, pixels))
    return tuple(out)


def _unit(unit: str | None, model: Model) -> str:
    if unit is not None:
        _one_of("unit", unit, UNITS)
    if unit == "latent" or model.has_vae:
        return "pixel" if unit is None else unit
    raise ValueError(
        "unit: a bare model has no VAE to tell how many pixels a latent is; pass unit='latent' and give tile, overlap "
        "and halo in latents"
    )


def _window(window: object, tile: tuple[int, ...], axes: tuple[AxisUnit, ...]) -> str | tuple[Tensor, ...]:
    if isinstance(window, str):
        _one_of("window", window, WINDOWS)
        return window
    if isinstance(window, Tensor) or not isinstance(window, Sequence):
        raise TypeError(
            f"window: got {type(window).__name__}; expected one of {', '.join(WINDOWS)} or 1-D tensors, "
            f"one each for {', '.join(axis.name for axis in axes)}"
        )
    shapes = [tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in window]
    if shapes != [(length,) for length in tile]:
        wanted = " and ".join(f"({length},)" for length in tile)
        raise ValueError(f"window: got {shapes}; expected tensors of shape {wanted}, the tile in latents")
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
        if not is_whole(num_steps):
            raise TypeError(f"num_steps: got {num_steps!r} ({type(num_steps).__name__}); expected an int")
        if num_steps < 1:
            raise ValueError(f"num_steps: got {num_steps}; it must be at least 1")
    elif schedule != "constant" and not model.has_scheduler:
        raise ValueError(
            "num_steps: a bare model has no scheduler to tell how many steps there are, which this halo_schedule "
            "needs; pass num_steps="
        )


def _check_jitter(jitter: object) -> None:
    if jitter is None:
        return
    if not is_whole(jitter):
        raise TypeError(f"jitter: got {jitter!r} ({type(jitter).__name__}); expected None, or a seed, a whole number")
    if jitter < 0:
        raise ValueError(f"jitter: got {jitter}; a seed must be at least 0")


def _check_places(positions: str, jitter: int | None, refresh: Refresh | None) -> None:
    """Raises ValueError for options that need the whole canvas, or a grid that stays, with others that move it."""
    if positions == "canvas":
        for name, given in (("jitter", jitter), ("refresh", refresh)):
            if given is not None:
                raise ValueError(f"{name}: can't be had with positions=\"canvas\", which counts from the grid's corner")
    if jitter is not None and refresh is not None and refresh.mask is None:
        raise ValueError("refresh: tile indices mean other places at every step with jitter; pass a mask instead")


def _check_blend(options: Options, model: Model) -> None:
    """Raises for what cuts a model into tiles where only its attention is to be cut."""
    _one_of("blend", options.blend, BLENDS)
    if options.blend != "attention":
        return
    if model.no_joining is not None:
        raise ValueError(f'blend: got "attention"; {model.no_joining}; use "prediction"')
    if not options.crosses_everywhere:
        raise ValueError(
            f'blend: got "attention", which needs everything coupled, but {_uncoupled(options)}; '
            'use "prediction" or "auto"'
        )
    for name, given in (
        ("regions", bool(options.regions)),
        ("jitter", options.jitter is not None),
        ("refresh", options.refresh is not None),
    ):
        if given:
            raise ValueError(
                f'blend: "attention" computes positions that tiles share once, but with {name} tiles differ there; '
                f'use "prediction" or "auto", or leave {name} out'
            )


def _uncoupled(options: Options) -> str:
    """What of the couplings is off."""
    off = [
        "halo is 0" if not options.has_halo else "",
        "conv_halo is False" if not options.conv_halo else "",
        f'norm is "{options.norm}", not "canvas"' if options.norm != "canvas" else "",
    ]
    return " and ".join(filter(None, off))


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected one of {', '.join(known)}")
    if value not in known:
        raise ValueError(f"{name}: got {value!r}; known are {', '.join(known)}")
