"""The demo's comparison sheet: a row per method, a block per prompt, the layout above every picture."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file
from ..geometry import TileLayout
from ..metrics import seam_lines
from ..plotting import shared_runs
from .methods import Painted
from .report import Row

DPI = 100
PICTURE_WIDTH = 768
LABEL, GAP, STRIP, HEADER, BLOCK, FOOTER = 376, 84, 24, 78, 34, 24
LINE, LETTER = 18, 8  # of the caption, pixels a line and a letter
INK, GREY, TILE, SHARED, WRAP = "#20262e", "#7b8594", "#c3cad6", "#3b5bdb", "#e8590c"


def draw_sheet(painted: Sequence[Painted], rows: Sequence[Row], path: Path) -> None:
    """Writes the sheet: two blocks of prompts abreast, the methods' figures at the left.

    Pictures are rolled so that the line where their ends meet lies inside, at the orange mark.

    Args:
        painted: everything that was painted; the first seed of each is shown.
        rows: the figures, one row per method in the order that they were painted in.
        path: a .png.
    """
    from matplotlib.figure import Figure

    prompts = list(dict.fromkeys(one.prompt for one in painted))
    methods = list(dict.fromkeys(one.method for one in painted))
    columns = min(2, len(prompts))
    bands = -(-len(prompts) // columns)
    zoom = max(1, PICTURE_WIDTH // painted[0].layout.size[1])
    height, width = (n * zoom for n in painted[0].layout.size)
    lane = STRIP + height + 12
    caption = textwrap.wrap(_caption(painted), (LABEL + columns * (width + GAP)) // LETTER)
    header = HEADER + LINE * (len(caption) - 1)
    total = (
        LABEL + columns * (width + GAP),
        header + bands * (BLOCK + lane * len(methods)) + FOOTER,
    )
    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    _write(figure, total, 24, 30, f"The same noise, tiled {len(methods)} ways", size=17, weight="bold", color=INK)
    for number, line in enumerate(caption):
        _write(figure, total, 24, 58 + LINE * number, line, size=10.5, color=GREY)
    for place, prompt in enumerate(prompts):
        band, column = divmod(place, columns)
        top, left = header + band * (BLOCK + lane * len(methods)), LABEL + column * (width + GAP)
        _write(figure, total, left, top + 16, prompt, size=12.5, weight="bold", color=INK)
        _write(figure, total, left + width + 12, top + 16, "contrast", size=8.5, color=GREY)
        for lane_number, method in enumerate(methods):
            one = next(o for o in painted if o.prompt == prompt and o.method is method)
            y = top + BLOCK + lane_number * lane
            _draw_strip(_axes(figure, total, left, y, width, STRIP), one)
            _draw_picture(_axes(figure, total, left, y + STRIP, width, height), one)
            contrast, middle = rows[lane_number].per_prompt[prompt], (left + width + 12, y + STRIP + height / 2)
            _write(figure, total, *middle, f"{contrast.value:.2f}", size=13, color=INK)
            if not math.isnan(contrast.low):
                ends = f"{contrast.low:.2f}–{contrast.high:.2f}"
                _write(figure, total, middle[0], middle[1] + 17, ends, size=7.5, color=GREY)
            if column == 0:
                _label(figure, total, y + STRIP + height / 2, rows[lane_number])
    with whole_file(path) as temporary, warnings.catch_warnings():
        # Names in a script that matplotlib's font lacks are boxes on the sheet, no lines on stderr.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png", dpi=DPI)


def shift_of(layout: TileLayout) -> int:
    """How far pictures are rolled to the right: half the canvas, and half a tile."""
    return layout.size[1] // 2 + layout.tile[1] // 2 if layout.wrap[1] else 0


def _draw_picture(axes: Any, one: Painted) -> None:
    picture = np.moveaxis(one.pictures[0], 0, -1).clip(0, 1)
    axes.imshow(np.roll(picture, shift_of(one.layout), axis=1), interpolation="nearest", aspect="auto")


def _draw_strip(axes: Any, one: Painted) -> None:
    """The tiles in two alternating lanes, overlaps in blue; ticks at the seams, orange where the ends meet.

    Arrows across the borders stand for couplings.
    """
    from matplotlib.patches import Rectangle

    layout = one.layout
    width, shift, tile = layout.size[1], shift_of(layout), layout.tile[1]
    axes.set_xlim(0, width)
    axes.set_ylim(0, 1)
    lanes = 2 if layout.overlap[1] else 1

    def paint(first: int, length: int, low: float, tall: float, **style: Any) -> None:
        for copy in (-width, 0, width):
            start = (first + shift) % width + copy
            axes.add_patch(Rectangle((start, low), length, tall, linewidth=0, **style))

    for number, origin in enumerate(layout.axis_origins[1]):
        low, tall = (0.36, 0.5) if lanes == 1 else (0.36 + 0.3 * (number % 2), 0.26)
        paint(origin + 1, tile - 2, low, tall, facecolor=TILE)
    for axis, first, length in shared_runs(layout):
        if axis == 1:
            paint(first, length, 0.36, 0.56, facecolor=SHARED, alpha=0.25)
    reach = tile / 7
    for line in seam_lines(layout, 1):
        place = (line + shift) % width
        if line or not layout.wrap[1]:
            axes.plot([place, place], [0.02, 0.26], color=INK, linewidth=1.1)
        if one.method.halo and 0 < place < width:
            style = {"arrowstyle": "<->", "color": SHARED, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (place - reach, 0.61), (place + reach, 0.61), arrowprops=style)
    if layout.wrap[1]:
        axes.plot([shift % width], [0.14], marker="v", markersize=5.5, color=WRAP)


def _label(figure: Any, total: tuple[float, float], y: float, row: Row) -> None:
    _write(figure, total, 24, y - 30, f"{row.model}: {row.method}", size=12, weight="bold", color=INK)
    _write(figure, total, 24, y - 8, f"{row.tiles} tiles, {row.computed:.2f} computed per position", size=9, color=GREY)
    _write(figure, total, 24, y + 12, f"seam contrast {row.seam_contrast}", size=9.5, color=INK)
    _write(figure, total, 24, y + 31, f"tone step {row.tone_step}", size=9.5, color=INK)


def _caption(painted: Sequence[Painted]) -> str:
    layout = painted[0].layout
    times = layout.size[1] / layout.tile[1]
    return (
        f"{layout.size[1]} x {layout.size[0]} pixels, {times:g} times the model's native width, wrapped. Above each "
        "picture: its tiles, overlaps in blue, arrows where tiles are coupled, ticks at the seams, orange where the "
        "ends meet. 1.0 is seamless."
    )


def _write(figure: Any, total: tuple[float, float], x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x / total[0], 1 - y / total[1], text, va="center", **style)


def _axes(figure: Any, total: tuple[float, float], x: float, y: float, width: float, height: float) -> Any:
    """Axes over a box in pixels from the upper left corner, without frame or ticks."""
    axes = figure.add_axes((x / total[0], 1 - (y + height) / total[1], width / total[0], height / total[1]))
    axes.set_axis_off()
    return axes
