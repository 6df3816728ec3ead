"""Model families: what `enable_tiling` has to know about a denoiser. One file each; add the instance to FAMILIES."""

from __future__ import annotations

from typing import Any

from .base import Family
from .cogvideox import CogVideoXFamily
from .controlnet import ControlNetFamily
from .flux import FluxFamily
from .flux2 import Flux2Family
from .flux_controlnet import FluxControlNetFamily
from .hunyuan import HunyuanVideoFamily
from .hunyuan15 import HunyuanVideo15Family
from .ltx import LTXVideoFamily
from .ltx2 import LTX2VideoFamily
from .lumina2 import Lumina2Family
from .mochi import MochiFamily
from .pixart import PixArtFamily
from .qwenimage import QwenImageFamily
from .sana import SanaFamily
from .sd3 import SD3Family
from .unet import UNetFamily
from .wan import WanFamily
from .zimage import ZImageFamily

FAMILIES: tuple[Family, ...] = (
    UNetFamily(),
    ControlNetFamily(),
    WanFamily(),
    Lumina2Family(),
    PixArtFamily(),
    SanaFamily(),
    SD3Family(),
    ZImageFamily(),
    FluxFamily(),
    FluxControlNetFamily(),
    Flux2Family(),
    QwenImageFamily(),
    CogVideoXFamily(),
    HunyuanVideoFamily(),
    HunyuanVideo15Family(),
    LTXVideoFamily(),
    LTX2VideoFamily(),
    MochiFamily(),
)

__all__ = ["FAMILIES", "Family", "family_of"]


def family_of(model: Any) -> Family:
    """The family that `model` belongs to.

    Raises:
        TypeError: none, naming the model's class and the supported ones.
    """
    for family in FAMILIES:
        if family.matches(model):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.classes)
    raise TypeError(
        f"can't tile {type(model).__name__}; supported denoisers are {known}; docs/families.md tells how to add one"
    )
