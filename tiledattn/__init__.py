"""tiledattn: diffusion models that paint far beyond the size they were trained for, in tiles that see across borders.

A canvas is cut into tiles; all tiles are denoised together, everything that mixes positions crosses tile borders
(attention by a halo, convolutions by rings, norms by their scope), and predictions are blended into one canvas.

Two lines for a diffusers pipeline are in `tiledattn.diffusers`; the operations are here.
"""

from .dispatch import BackendUnavailableError, backends, use_backend
from .geometry import TileLayout
from .ops import (
    Rotary,
    blend_tiles,
    cross_tile_attention,
    extract_tiles,
    group_norm_tiles,
    merge_attention,
    pad_tiles,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Rotary",
    "TileLayout",
    "__version__",
    "backends",
    "blend_tiles",
    "cross_tile_attention",
    "extract_tiles",
    "group_norm_tiles",
    "merge_attention",
    "pad_tiles",
    "use_backend",
]
