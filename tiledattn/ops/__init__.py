"""The public operations: docstrings, semantic checks, and one registered operator each."""

from .attention import cross_tile_attention
from .blending import blend_tiles, extract_tiles
from .merge import merge_attention
from .normalization import group_norm_tiles
from .padding import pad_tiles
from .rotary import Rotary

__all__ = [
    "Rotary",
    "blend_tiles",
    "cross_tile_attention",
    "extract_tiles",
    "group_norm_tiles",
    "merge_attention",
    "pad_tiles",
]
