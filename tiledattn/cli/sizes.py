"""Sizes as options give them: tiles with frames, canvases and clips that a pipeline and its model can paint."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from .command import UsageError

if TYPE_CHECKING:
    from ..diffusers.options import Options

# Pipelines of UNets and of transformers take only multiples of it, whatever their VAE.
UNET_STEP, TRANSFORMER_STEP = 8, 16
# Of transformers, those whose pipelines want more.
STEPS = {"LTX": 32, "Sana": 32}


def parse_extents(text: str) -> int | tuple[int, ...]:
    """ "64" as 64, "64x32" (width x height) as (32, 64), "64x32x17" (frames last) as (17, 32, 64).

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"\s*(\d+)(?:\s*[xX*]\s*(\d+)(?:\s*[xX*]\s*(\d+))?)?\s*", text)
    if found is None:
        raise ValueError(f"got {text!r}; expected a number such as 64, WxH such as 128x64, or WxHxF for video")
    numbers = tuple(int(number) for number in reversed(found.groups()) if number is not None)
    return numbers if len(numbers) > 1 else numbers[0]


def parse_reach(text: str) -> int | tuple[int, ...] | Literal["all"]:
    """As `parse_extents`, or "all".

    Raises:
        ValueError: another form.
    """
    if text.strip().lower() == "all":
        return "all"
    try:
        return parse_extents(text)
    except ValueError:
        raise ValueError(f'got {text!r}; expected a number such as 64, WxH, WxHxF for video, or "all"') from None


def parse_region(text: str) -> tuple[tuple[float, float, float, float], str]:
    """ "left,top,right,bottom: prompt" as the box and the prompt.

    Raises:
        ValueError: another form.
    """
    box, colon, prompt = text.partition(":")
    try:
        left, top, right, bottom = (float(number) for number in box.split(","))
    except ValueError:
        colon = ""
    if not colon or not prompt.strip():
        raise ValueError(f'got {text!r}; expected "left,top,right,bottom: prompt", such as "0,0,512,512: a lake"')
    return (left, top, right, bottom), prompt.strip()


def check_axes(pipe: Any, extents: Mapping[str, Any], video: bool) -> None:
    """Raises UsageError for WxHxF that options give for a model without frames."""
    for option, value in extents.items():
        if not video and isinstance(value, tuple) and len(value) == 3:
            frames, height, width = value
            raise UsageError(
                f"{option}: got {width}x{height}x{frames}; {type(pipe).__name__} paints pictures, which have no "
                f"frames: {width}x{height}"
            )


def check_canvas(pipe: Any, height: int, width: int, options: Options) -> None:
    """Raises ValueError naming the nearest sizes that work, where the model's levels or its pipeline can't divide one.

    A UNet's picture of one tile that doesn't wrap needs only the pipeline's own multiple, a tiled one the levels' as
    well.
    """
    step = multiple(pipe, height, width, options)
    if not (height % step or width % step):
        return
    below = (height // step * step, width // step * step)
    above = (-(-height // step) * step, -(-width // step) * step)
    near = [f"{w}x{h}" for h, w in (below, above) if h and w]
    nearest = f"nearest that work are {near[0]} and {near[1]}" if len(near) == 2 else f"nearest that works is {near[0]}"
    raise ValueError(f"got {width}x{height}; both must be multiples of {step} pixels here; the {nearest}")


def multiple(pipe: Any, height: int, width: int, options: Options) -> int:
    """What both lengths of a picture must be multiples of, in pixels."""
    tile = [length * options.pixels for length in options.tile[-2:]]
    tiled = height > tile[0] or width > tile[1] or any(options.wrap)
    unet = getattr(pipe, "unet", None) is not None
    wanted = (step for name, step in STEPS.items() if type(pipe).__name__.startswith(name))
    step = UNET_STEP if unet else next(wanted, TRANSFORMER_STEP)
    return math.lcm(step, options.pixels * (options.granularity if tiled or not unet else 1))


def check_frames(frames: int, options: Options) -> None:
    """Raises ValueError naming the nearest numbers of frames that work, where the VAE makes no latents of some."""
    per_latent = options.pixels_per_axis[0]
    rest = (frames - 1) % per_latent
    if rest:
        below = frames - rest
        raise ValueError(
            f"got {frames}; it must be 1 or a multiple of {per_latent} more here; the nearest that work are {below} "
            f"and {below + per_latent}"
        )
