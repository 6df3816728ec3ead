"""Draws the layouts of the documentation: `python docs/draw.py`. The pictures lie in docs/images."""

from __future__ import annotations

import pathlib
import sys
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tiledattn.geometry import TileLayout  # noqa: E402  # found beside this folder
from tiledattn.plotting import plot_layout  # noqa: E402


class Drawing(NamedTuple):
    """A layout, and the tile whose halo is shown; without a halo and a tile, canvas, tiles and overlaps alone."""

    layout: TileLayout
    halo: int | tuple[int, ...] = 0
    tile: int | None = None


DRAWINGS = {
    "layout": Drawing(TileLayout((96, 180), (32, 48), (0, 12), wrap=(False, True)), 12),
    "layout-overlap": Drawing(TileLayout((80, 152), 32, 8)),
    "layout-halo": Drawing(TileLayout((96, 160), 32), 8),
    "layout-wrap": Drawing(TileLayout((64, 160), 32, wrap=(False, True)), 8, tile=5),
    "layout-frames": Drawing(TileLayout(81, 21), 4),
}


def main() -> int:
    """Writes all pictures."""
    for name, drawing in DRAWINGS.items():
        plot_layout(drawing.layout, HERE / "images" / f"{name}.png", drawing.halo, drawing.tile)
        sys.stdout.write(f"images/{name}.png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
