"""What a tile is, sees and weighs: plain integers and numpy tables, no torch."""

from .layout import TileLayout
from .plan import AttentionPlan, Rectangle, UnwrappedPlan, Virtual, attention_plan, normalize_halo
from .reverse import ReversedPlan, ReverseTable, reversed_plan
from .windows import WINDOWS, normalized_windows, window_weights

__all__ = [
    "WINDOWS",
    "AttentionPlan",
    "Rectangle",
    "ReverseTable",
    "ReversedPlan",
    "TileLayout",
    "UnwrappedPlan",
    "Virtual",
    "attention_plan",
    "normalize_halo",
    "normalized_windows",
    "reversed_plan",
    "window_weights",
]
