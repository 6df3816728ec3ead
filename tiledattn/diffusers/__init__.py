"""Tiling for diffusers pipelines: `enable_tiling(pipe)` and the pipeline paints beyond its native size.

Needs the extra: `pip install 'tiledattn[diffusers]'`.
"""

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "tiledattn.diffusers needs diffusers, which is not installed: pip install 'tiledattn[diffusers]'"
    ) from error

from .enable import disable_tiling, enable_tiling
from .families import FAMILIES, Family
from .processors import CrossTileAttnProcessor
from .regions import Region
from .tiling import Tiling

__all__ = ["FAMILIES", "CrossTileAttnProcessor", "Family", "Region", "Tiling", "disable_tiling", "enable_tiling"]
