"""Drawings of a layout: canvas, tiles, overlaps, and what one tile sees (matplotlib, extra `cli`)."""

from __future__ import annotations

import itertools
import math
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from .files import whole_file
from .geometry import TileLayout, attention_plan, normalize_halo
from .geometry.layout import Ints
from .geometry.numbers import is_whole
from .geometry.plan import Halo, Rectangle

INK, GREY, PAPER, SHARED = "#20262e", "#8b95a5", "#f5f6f8", "#3b5bdb"
MAX_DRAWN = 1 << 16  # tiles; that many take seconds
OWNER_COLOURS = ("#e8590c", "#0ca678", "#f59f00", "#7048e8", "#1c7ed6", "#d6336c", "#66a80f", "#0b7285")
MAX_LABELS, MAX_OWNERS = 600, 8
# Inches: the least width of the text above and below a drawing, and the height of one line of it.
TEXT_WIDTH, TITLE_LINE, SUBTITLE_LINE, LEGEND_LINE = 4.4, 0.24, 0.19, 0.2


def plot_layout(
    layout: TileLayout, path: str | os.PathLike[str], halo: Ints | str = 0, tile: int | None = None
) -> None:
    """Draws canvas, tiles, overlaps and one tile's halo, coloured by owner, to a picture file.

    The file appears whole or not at all.

    Args:
        layout: what to draw; of 3 axes the last two, of 1 axis a strip.
        path: where to write; the ending chooses the format (.png, .svg, .pdf).
        halo: the reach to draw, as in `cross_tile_attention`.
        tile: which tile's halo to draw; default the one in the middle of the grid.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: more than `MAX_DRAWN` tiles, one that the layout lacks, a bad halo, or an ending that matplotlib
            can't write.
    """
    flat, reach, chosen = _in_two_axes(layout, halo, tile)
    figure_class = _figure_class()
    low, high = _extent(flat, reach, chosen)
    height, width = (b - a for a, b in zip(low, high, strict=True))
    inches = min(9.0 / width, 6.5 / height)
    drawn = max(width * inches, 0.2), max(height * inches, 0.2)
    across = max(drawn[0], TEXT_WIDTH)
    # Bold letters of 12 points are about 0.109 inches wide, plain ones of 9.5 points 0.078.
    title = textwrap.wrap(_title(layout), int(across / 0.109))
    subtitle = textwrap.wrap(_subtitle(layout, halo), int(across / 0.078))
    figure = figure_class(figsize=(across + 1.0, drawn[1]), facecolor="white")
    legend, rows = _legend(figure, _entries(flat, reach, chosen), across)
    above = 0.18 + TITLE_LINE * len(title) + SUBTITLE_LINE * len(subtitle) + 0.14
    below = 0.52 + LEGEND_LINE * rows
    total = across + 1.0, above + drawn[1] + below
    figure.set_size_inches(*total)
    left = (0.55 + (across - drawn[0]) / 2) / total[0]
    axes = figure.add_axes((left, below / total[1], drawn[0] / total[0], drawn[1] / total[1]))
    draw_layout(axes, flat, reach, chosen)
    if len(layout.size) == 1:
        axes.set_yticks([])
    top = 0.18
    for line, height, style in (
        *((line, TITLE_LINE, {"size": 12, "weight": "bold", "color": INK}) for line in title),
        *((line, SUBTITLE_LINE, {"size": 9.5, "color": GREY}) for line in subtitle),
    ):
        figure.text(0.55 / total[0], 1 - (top + height / 2) / total[1], line, va="center", **style)
        top += height
    legend.set_bbox_to_anchor((0.55 / total[0], 0.12 / total[1]), figure.transFigure)
    _save(figure, path)


def draw_layout(axes: Any, layout: TileLayout, halo: Ints | str = 0, tile: int | None = None) -> None:
    """Draws a layout of two axes into matplotlib axes, as `plot_layout` does; the y axis points down.

    With a halo of 0 and no tile given, only canvas, tiles and overlaps are drawn.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle as Box

    layout, reach, chosen = _in_two_axes(layout, halo, tile)
    height, width = layout.size
    low, high = _extent(layout, reach, chosen)
    axes.set_xlim(low[1], high[1])
    axes.set_ylim(high[0], low[0])
    axes.set_aspect("equal")
    canvas = Box((0, 0), width, height, facecolor=PAPER, edgecolor="none", zorder=0)
    axes.add_patch(canvas)
    for axis, first, length in shared_runs(layout):
        corner, shape = ((0, first), (width, length)) if axis == 0 else ((first, 0), (length, height))
        axes.add_patch(Box(corner, *shape, facecolor=SHARED, alpha=0.16, edgecolor="none", zorder=1))
    outlines = [Box((x, y), layout.tile[1], layout.tile[0]) for y, x in layout.origins]
    outlines += [Box((x, y), layout.tile[1], layout.tile[0]) for y, x in _copies(layout)]
    grid = PatchCollection(outlines, facecolor="none", edgecolor=GREY, linewidth=0.8, zorder=4)
    axes.add_collection(grid)
    grid.set_clip_path(canvas)
    if chosen is not None:
        _draw_reach(axes, layout, reach, chosen, canvas)
    axes.add_patch(Box((0, 0), width, height, facecolor="none", edgecolor=INK, linewidth=1.3, zorder=6))
    _number_tiles(axes, layout, chosen)
    _finish(axes, layout)


def _in_two_axes(
    layout: TileLayout, halo: Ints | str, tile: int | None
) -> tuple[TileLayout, tuple[int, ...], int | None]:
    """Layout, halo and highlighted tile in the two axes that are drawn."""
    if not isinstance(layout, TileLayout):
        raise TypeError(f"layout: got {type(layout).__name__}; expected a TileLayout")
    if layout.num_tiles > MAX_DRAWN:
        raise ValueError(f"layout: {layout.num_tiles:,} tiles; at most {MAX_DRAWN:,} can be drawn; use larger tiles")
    reach = normalize_halo(layout, cast(Halo, halo))
    if tile is not None and not (is_whole(tile) and 0 <= tile < layout.num_tiles):
        raise ValueError(f"tile: got {tile!r}; the layout has tiles 0 to {layout.num_tiles - 1}")
    if len(layout.size) == 1:
        thickness = max(1, layout.tile[0] // 3)
        layout = TileLayout(
            (thickness, *layout.size), (thickness, *layout.tile), (0, *layout.overlap), (False, *layout.wrap)
        )
        reach = (0, *reach)
    elif len(layout.size) == 3:
        layout = TileLayout(layout.size[1:], layout.tile[1:], layout.overlap[1:], layout.wrap[1:])
        reach, tile = reach[1:], None if tile is None else tile % layout.num_tiles
    if tile is None and any(reach):
        rows, columns = layout.grid
        tile = rows // 2 * columns + columns // 2
    return layout, reach, tile


def _extent(
    layout: TileLayout, reach: tuple[int, ...], tile: int | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last corner of the drawing: the canvas, a margin, and what a halo reaches beyond the borders."""
    low, high = [0.0, 0.0], [float(n) for n in layout.size]
    if tile is not None:
        for box in _boxes(layout, reach, tile):
            for axis, origin in enumerate(layout.origins[tile]):
                low[axis] = min(low[axis], origin + box.offset[axis])
                high[axis] = max(high[axis], origin + box.offset[axis] + box.shape[axis])
    margin = 0.004 * max(layout.size)
    return (low[0] - margin, low[1] - margin), (high[0] + margin, high[1] + margin)


def _draw_reach(axes: Any, layout: TileLayout, reach: tuple[int, ...], tile: int, canvas: Any) -> None:
    """The tile itself, its halo in the colours of the owners, and the owners' outlines."""
    from matplotlib.patches import Rectangle as Box

    def paint(corner: tuple[int, int], shape: tuple[int, int], zorder: float, **style: Any) -> None:
        for y, x in _wrapped(layout, corner, shape):
            box = Box((x, y), shape[1], shape[0], zorder=zorder, **style)
            axes.add_patch(box)
            box.set_clip_path(canvas)

    y, x = layout.origins[tile]
    colours = _owner_colours(layout, reach, tile)
    for box in _boxes(layout, reach, tile):
        colour = colours[tile + box.tile_delta]
        corner, shape = (y + box.offset[0], x + box.offset[1]), (box.shape[0], box.shape[1])
        axes.add_patch(
            Box(
                corner[::-1],
                *shape[::-1],
                facecolor=colour,
                alpha=0.28,
                edgecolor=colour,
                linestyle=":",
                zorder=2,
            )
        )
        paint(corner, shape, 3, facecolor=colour, alpha=0.8, edgecolor="none")
    for owner, colour in colours.items():
        origin, shape = layout.origins[owner], (layout.tile[0], layout.tile[1])
        paint((origin[0], origin[1]), shape, 1.5, facecolor=colour, alpha=0.16, edgecolor="none")
    paint((y, x), (layout.tile[0], layout.tile[1]), 5, facecolor=INK, edgecolor=INK, linewidth=1.6)


def _boxes(layout: TileLayout, reach: tuple[int, ...], tile: int) -> tuple[Rectangle, ...]:
    plan = attention_plan(layout, reach)
    return plan.rectangles(int(plan.class_of_tile[tile]))


def _owner_colours(layout: TileLayout, reach: tuple[int, ...], tile: int) -> dict[int, str]:
    owners = sorted({tile + box.tile_delta for box in _boxes(layout, reach, tile)} - {tile})
    return dict(zip(owners, itertools.cycle(OWNER_COLOURS), strict=False))


def _wrapped(layout: TileLayout, corner: tuple[int, int], shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The corners at which a rectangle shows on the canvas, once or more where it crosses a periodic border."""
    per_axis = []
    for place, extent, length, wrap in zip(corner, shape, layout.size, layout.wrap, strict=True):
        shifts = (-length, 0, length) if wrap else (0,)
        per_axis.append([place + s for s in shifts if place + s < length and place + s + extent > 0])
    yield from itertools.product(*per_axis)


def _copies(layout: TileLayout) -> list[tuple[int, int]]:
    """Second corners of the tiles that cross a periodic border."""
    copies = []
    for y, x in layout.origins:
        if y + layout.tile[0] > layout.size[0] or x + layout.tile[1] > layout.size[1]:
            copies += [c for c in _wrapped(layout, (y, x), (layout.tile[0], layout.tile[1])) if c != (y, x)]
    return copies


def shared_runs(layout: TileLayout) -> Iterator[tuple[int, int, int]]:
    """(axis, first position, length) of every run of positions that two or more tiles of the axis contain."""
    for axis, origins in enumerate(layout.axis_origins):
        places = (np.asarray(origins)[:, None] + np.arange(layout.tile[axis])) % layout.size[axis]
        shared = np.bincount(places.ravel(), minlength=layout.size[axis]) > 1
        ends = np.flatnonzero(np.diff(shared.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        for start, end in ends.tolist():
            yield axis, start, end - start


def _number_tiles(axes: Any, layout: TileLayout, chosen: int | None) -> None:
    """Tile numbers in the middles of the tiles, where there is room for them."""
    from matplotlib.patheffects import withStroke

    box = axes.get_position()
    inches = axes.figure.get_size_inches()
    points = 72 * min(
        box.width * inches[0] / abs(axes.get_xlim()[1] - axes.get_xlim()[0]),
        box.height * inches[1] / abs(axes.get_ylim()[1] - axes.get_ylim()[0]),
    )
    digits = len(str(layout.num_tiles - 1))
    room = min(min(layout.step[0], layout.tile[0]) * 0.42, layout.step[1] * 1.1 / digits)
    size = min(points * room, 10.0)
    if size < 4.5 or layout.num_tiles > MAX_LABELS:
        return
    edge = 0.7 * size / points
    for index, (y, x) in enumerate(layout.origins):
        centre = [
            min(max((origin + width / 2) % length, edge), length - edge)
            for origin, width, length in zip((y, x), layout.tile, layout.size, strict=True)
        ]
        style = {"color": "white", "weight": "bold"} if index == chosen else {"color": INK, "alpha": 0.8}
        around = [] if index == chosen else [withStroke(linewidth=1.8, foreground=PAPER, alpha=0.6)]
        place = {"ha": "center", "va": "center", "zorder": 7, "size": size, "path_effects": around}
        axes.text(centre[1], centre[0], str(index), **place, **style)


def _finish(axes: Any, layout: TileLayout) -> None:
    """Ticks at the tiles' origins, and dashes along periodic borders."""
    for axis, set_ticks in ((1, axes.set_xticks), (0, axes.set_yticks)):
        origins = layout.axis_origins[axis]
        every = -(-len(origins) // 12)
        set_ticks([*origins[::every], layout.size[axis]])
    axes.tick_params(colors=GREY, labelsize=7.5, length=2.5, width=0.6, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    height, width = layout.size
    style = {"color": "white", "linewidth": 2.2, "linestyle": (0, (2, 2)), "zorder": 6.5}
    if layout.wrap[1]:
        axes.plot([0, 0], [0, height], **style)
        axes.plot([width, width], [0, height], **style)
    if layout.wrap[0]:
        axes.plot([0, width], [0, 0], **style)
        axes.plot([0, width], [height, height], **style)


def _entries(layout: TileLayout, reach: tuple[int, ...], chosen: int | None) -> list[Any]:
    """What the legend explains, in the order of reading."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(facecolor=PAPER, edgecolor=GREY, label="tile")]
    if next(shared_runs(layout), None) is not None:
        entries.append(Patch(facecolor=SHARED, alpha=0.25, label="overlap"))
    if any(layout.wrap):
        entries.append(Line2D([], [], color=INK, linestyle=(0, (2, 2)), label="wraps"))
    if chosen is not None:
        entries.append(Patch(facecolor=INK, label=f"tile {chosen}"))
        owners = list(_owner_colours(layout, reach, chosen).items())
        for number, (owner, colour) in enumerate(owners[:MAX_OWNERS]):
            label = f"{owner}" if number else f"its halo, lent by {owner}"
            entries.append(Patch(facecolor=colour, alpha=0.8, label=label))
        if len(owners) > MAX_OWNERS:
            entries.append(Line2D([], [], linestyle="", label=f"and {len(owners) - MAX_OWNERS} more"))
    return entries


def _legend(figure: Any, entries: list[Any], inches: float) -> tuple[Any, int]:
    """The legend in as few rows as fit into a width, and how many they are."""
    for rows in range(1, len(entries) + 1):
        columns = -(-len(entries) // rows)
        legend = figure.legend(
            # matplotlib fills column by column; this makes the order that of the rows.
            handles=[entry for column in range(columns) for entry in entries[column::columns]],
            loc="lower left",
            borderaxespad=0,
            borderpad=0,
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            handlelength=1.1,
            handletextpad=0.4,
            columnspacing=1.1,
        )
        if columns == 1 or legend.get_window_extent().width / figure.dpi <= inches:
            break
        legend.remove()
    return legend, -(-len(entries) // columns)


def grid_in_words(layout: TileLayout) -> str:
    """How many tiles a layout has along each axis: "9 rows x 5 columns"."""
    names = {1: ("column",), 2: ("row", "column"), 3: ("span of frames", "row", "column")}[len(layout.size)]
    return " x ".join(
        f"{count} {name if count == 1 else name.replace('span', 'spans') if ' ' in name else f'{name}s'}"
        for count, name in zip(layout.grid, names, strict=True)
    )


def _title(layout: TileLayout) -> str:
    tiles = "1 tile" if layout.num_tiles == 1 else f"{layout.num_tiles} tiles"
    square = len(layout.tile) == 2 and len(set(layout.tile)) == 1
    tile = f"{layout.tile[0]} x {layout.tile[1]}" if square else _shape(layout.tile)
    # Lines are not broken at these spaces.
    whole = [text.replace(" ", "\N{NO-BREAK SPACE}") for text in (grid_in_words(layout), tile, _shape(layout.size))]
    return f"{tiles} ({whole[0]}) of {whole[1]} on a canvas {whole[2]}"


def _subtitle(layout: TileLayout, halo: Ints | str) -> str:
    names = {1: ("the axis",), 2: ("y", "x"), 3: ("frames", "y", "x")}[len(layout.size)]
    wrapped = [name for name, wrap in zip(names, layout.wrap, strict=True) if wrap]
    computed = layout.num_tiles * layout.tile_positions / math.prod(layout.size)
    parts = [
        f"overlap {_per_axis(layout.overlap, names)}",
        f"halo {halo if isinstance(halo, (int, str)) else _per_axis(tuple(halo), names)}",
        f"wraps on {' and '.join(wrapped)}" if wrapped else "no wrap",
        f"{computed:.2f} positions computed per canvas position",
    ]
    return ", ".join(parts)


def _shape(lengths: tuple[int, ...]) -> str:
    """Lengths with the names of their axes: "1024 high x 512 wide"."""
    names = {1: ("long",), 2: ("high", "wide"), 3: ("frames", "high", "wide")}[len(lengths)]
    return " x ".join(f"{length} {name}" for length, name in zip(lengths, names, strict=True))


def _per_axis(values: tuple[int, ...], names: tuple[str, ...]) -> str:
    """One number where all axes have the same, else each with the name of its axis: "16 on y and 0 on x"."""
    if len(set(values)) == 1:
        return str(values[0])
    return " and ".join(f"{value} on {name}" for value, name in zip(values, names, strict=True))


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a layout needs matplotlib: pip install 'tiledattn[cli]'") from error
    return Figure


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    target = Path(path)
    kind = target.suffix[1:].lower()
    known = sorted(figure.canvas.get_supported_filetypes())
    if kind not in known:
        raise ValueError(f"path: got {str(target)!r}; its ending must be one of .{', .'.join(known)}")
    with whole_file(target) as temporary:
        figure.savefig(temporary, format=kind, dpi=160, facecolor="white")
