"""Decoding with circular context on wrapped axes, so that the ends of the picture meet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry import TileLayout
from .couplings import CouplingMode
from .frame import Frame
from .weak import Weak

Decode = Callable[..., Any]

VIDEO_TILE = 32  # latents; half of it is about what a pixel of a video decoder depends on


@dataclass(eq=False)
class CircularDecode:
    """A VAE's `decode`, circular on wrapped axes; set as an instance attribute by `install`.

    Without the VAE's own tiling the result is exact: padded convolutions read round the canvas (the rest of a decoder
    mixes positions everywhere or nowhere). With `vae.enable_tiling()` the latents are continued by half a VAE tile at
    either end and decoded; the picture's continuation at the far end is then faded into its beginning, over as many
    pixels as the VAE fades its own tiles. So it is for VAEs of videos, whose decoders aren't coupled.

    Attributes:
        wrap: the periodic axes (height, width).
        pixels: pixels per latent.
        backend: backend of the operations.
        active: False: decodes as if it were not there.
        replaced: the instance attribute it replaced; None: the method of the VAE's class.
    """

    wrap: tuple[bool, bool]
    pixels: int
    backend: str
    active: bool = True
    replaced: Decode | None = None

    def install(self, vae: Any) -> None:
        """Replaces `vae.decode`."""
        self.replaced = vars(vae).get("decode")
        vae.decode = functools.partial(_decode, self, Weak(vae))

    def remove(self, vae: Any) -> None:
        """Puts `vae.decode` back; where a stranger has wrapped it since, it stays there, inert."""
        self.active = False
        if vae is None or _circular_of(vars(vae).get("decode")) is not self:
            return
        replaced = self.replaced
        while (inner := _circular_of(replaced)) is not None and not inner.active:
            replaced = inner.replaced
        if replaced is None:
            del vae.decode
        else:
            vae.decode = replaced

    def run(self, vae: Any, original: Decode, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Decodes latents [B, C, height, width] or [B, C, frames, height, width] with `original`."""
        if z.ndim == 5 or getattr(vae, "use_tiling", False):
            return self._run_continued(vae, original, z, *args, **kwargs)
        size = (z.shape[-2] * self.pixels, z.shape[-1] * self.pixels)
        frame = Frame(TileLayout(size, size, 0, self.wrap), backend=self.backend)
        with CouplingMode(frame, rings=True, norm="tile"):
            return original(z, *args, **kwargs)

    def _run_continued(self, vae: Any, original: Decode, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        tile = int(getattr(vae, "tile_latent_min_size", VIDEO_TILE if z.ndim == 5 else 64))
        fade = int(tile * float(getattr(vae, "tile_overlap_factor", 0.25))) * self.pixels
        margin = max(1, tile // 2)
        sizes = z.shape[-2:]
        for axis, wrap in zip((-2, -1), self.wrap, strict=True):
            if wrap:
                places = torch.arange(-margin, z.shape[axis] + margin, device=z.device) % z.shape[axis]
                z = z.index_select(axis, places)

        def close(picture: Tensor) -> Tensor:
            for axis, wrap, size in zip((-2, -1), self.wrap, sizes, strict=True):
                if wrap:
                    picture = _join_ends(picture, axis, margin * self.pixels, size * self.pixels, fade)
            return picture.contiguous()

        out = original(z, *args, **kwargs)
        if isinstance(out, Tensor):
            return close(out)
        if isinstance(out, tuple):
            return (close(out[0]), *out[1:])
        return type(out)(sample=close(out.sample))


def _decode(circular: CircularDecode, reference: Weak[Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
    vae = reference()
    if vae is None:
        raise ReferenceError("the VAE of this decode is gone; keep the VAE or its pipeline")
    original = functools.partial(type(vae).decode, vae) if circular.replaced is None else circular.replaced
    return circular.run(vae, original, z, *args, **kwargs) if circular.active else original(z, *args, **kwargs)


def _circular_of(decode: Any) -> CircularDecode | None:
    circular = isinstance(decode, functools.partial) and decode.func is _decode
    return decode.args[0] if circular else None


def _join_ends(picture: Tensor, axis: int, margin: int, length: int, fade: int) -> Tensor:
    """Crops `margin` pixels at either end of an axis and fades what goes on beyond the far end into the beginning."""
    middle = picture.narrow(axis, margin, length)
    fade = min(fade, margin, length)
    if fade == 0:
        return middle
    shape = [fade if a == axis else 1 for a in (-2, -1)]
    weight = (torch.arange(fade, device=picture.device, dtype=picture.dtype) / fade).reshape(shape)
    beyond = picture.narrow(axis, margin + length, fade)
    start = torch.lerp(beyond, middle.narrow(axis, 0, fade), weight.expand_as(beyond))
    return torch.cat([start, middle.narrow(axis, fade, length - fade)], dim=axis)
