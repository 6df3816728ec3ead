"""What a tile is, sees and weighs: plain integers and numpy tables, no torch."""

from .layout import TileLayout
from .plan import AttentionPlan, Rectangle, UnwrappedPlan, Virtual, attention_plan, normalize_halo
from .windows import WINDOWS, normalized_windows, window_weights

__all__ = [
    "WINDOWS",
    "AttentionPlan",
    "Rectangle",
    "TileLayout",
    "UnwrappedPlan",
    "Virtual",
    "attention_plan",
    "normalize_halo",
    "normalized_windows",
    "window_weights",
]
