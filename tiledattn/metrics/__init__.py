"""How visible the seams of a tiled picture are, as numbers.

Pictures are arrays or tensors ``[..., C, *size]`` of real numbers, usually in [0, 1] (all measures but grey
levels are free of the scale): one picture, a batch, or seeds x prompts; ``size`` is the layout's, in pixels.
Results have the leading shape, one number a picture.

A *line* p of an axis is the border between positions p - 1 and p. The *seam lines* of a layout (`seam_lines`)
are the lines where the tile changes in which a position lies deepest: the tiles' borders at overlap 0, the
middle of the overlap otherwise; on a periodic axis of one tile, line 0. They cut each axis into *cells*.

A measure of one picture is a ratio of two means (`seam_contrast`, `tone_step`, `wrap_score`); over several
pictures give the two means (`seam_gradients`, `tone_differences`, `wrap_gradients`) to `ratio_interval`:

    >>> str(ratio_interval(*seam_gradients(pictures, layout, period=8)))  # doctest: +SKIP
    '2.03 (1.91 to 2.16)'
"""

from .intervals import Interval, interval, ratio_interval
from .lines import control_lines, seam_lines
from .overlaps import overlap_disagreement
from .seams import seam_contrast, seam_gradients, wrap_gradients, wrap_score
from .tones import tone_differences, tone_step

__all__ = [
    "Interval",
    "control_lines",
    "interval",
    "overlap_disagreement",
    "ratio_interval",
    "seam_contrast",
    "seam_gradients",
    "seam_lines",
    "tone_differences",
    "tone_step",
    "wrap_gradients",
    "wrap_score",
]
