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


@dataclass
class CircularDecode:
    """A VAE's `decode`, circular on wrapped axes; set as an instance attribute by `install`.

    Without the VAE's own tiling the result is exact: padded convolutions read round the canvas (the rest of a decoder
    mixes positions everywhere or nowhere). With `vae.enable_tiling()` the latents are continued by half a VAE tile at
    either end, decoded, and cropped.

    Args:
        vae: the autoencoder.
        wrap: the periodic axes (height, width).
        pixels: pixels per latent.
        backend: backend of the operations.
    """

    vae: Any
    wrap: tuple[bool, bool]
    pixels: int
    backend: str
    active: bool = True
    original: Any = None
    replaced: Any = None
    function: Any = None

    def install(self) -> None:
        """Replaces `vae.decode`."""
        self.replaced = vars(self.vae).get("decode")
        self.original = self.vae.decode

        @functools.wraps(self.original)
        def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._decode(z, *args, **kwargs) if self.active else self.original(z, *args, **kwargs)

        decode.circular = self  # type: ignore[attr-defined]
        self.function = decode
        self.vae.decode = decode

    def remove(self) -> None:
        """Puts `vae.decode` back; where a stranger has wrapped it since, it stays there, inert."""
        self.active = False
        if vars(self.vae).get("decode") is not self.function:
            return
        replaced = self.replaced
        while isinstance(inner := getattr(replaced, "circular", None), CircularDecode) and not inner.active:
            replaced = inner.replaced
        if replaced is None:
            del self.vae.decode
        else:
            self.vae.decode = replaced

    def _decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if getattr(self.vae, "use_tiling", False):
            return self._decode_continued(z, *args, **kwargs)
        size = (z.shape[-2] * self.pixels, z.shape[-1] * self.pixels)
        frame = Frame(TileLayout(size, size, 0, self.wrap), backend=self.backend)
        with CouplingMode(frame, rings=True, norm="tile"):
            return self.original(z, *args, **kwargs)

    def _decode_continued(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        reach = max(1, int(getattr(self.vae, "tile_latent_min_size", 64)) // 2)
        margins = []
        for axis, wrap in zip((-2, -1), self.wrap, strict=True):
            length = z.shape[axis]
            margin = reach if wrap else 0
            places = torch.arange(-margin, length + margin, device=z.device) % length
            margins.append((margin * self.pixels, length * self.pixels))
            z = z.index_select(axis, places)
        crop = _cropper(margins)
        out = self.original(z, *args, **kwargs)
        if isinstance(out, Tensor):
            return crop(out)
        if isinstance(out, tuple):
            return (crop(out[0]), *out[1:])
        return type(out)(sample=crop(out.sample))


def _cropper(margins: list[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    (top, height), (left, width) = margins

    def crop(image: Tensor) -> Tensor:
        return image[..., top : top + height, left : left + width].contiguous()

    return crop
