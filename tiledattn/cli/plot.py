"""`tiledattn plot`: a drawing of a layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from .command import DebugOption, bad_usage, check_out, command, parse_extent, parse_halo, parse_size, parse_wrap, read


@command
def plot(
    size: Annotated[str, typer.Option(help="Canvas, WxH.")],
    tile: Annotated[str, typer.Option(help="Tile, a number or WxH.")],
    overlap: Annotated[str, typer.Option(help="Positions adjacent tiles share, a number or WxH.")] = "0",
    halo: Annotated[str, typer.Option(help='Reach beyond a tile, a number, WxH or "all".')] = "0",
    wrap: Annotated[str, typer.Option(help="Periodic axes: none, x, y or xy.")] = "none",
    highlight: Annotated[int | None, typer.Option(help="Number of the tile whose halo is drawn.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.")] = Path(
        "layout.png"
    ),
    debug: DebugOption = False,
) -> None:
    """Draw a layout: canvas, tiles, overlaps, and one tile's halo coloured by the tiles that lend it.

    [dim]Example: tiledattn plot --size 1024x512 --tile 128 --overlap 16 --halo 32 --wrap x --out layout.png[/dim]
    """
    canvas, reach = read("--size", parse_size, size), read("--halo", parse_halo, halo)
    tiles, shared = read("--tile", parse_extent, tile), read("--overlap", parse_extent, overlap)
    periodic = read("--wrap", parse_wrap, wrap)
    check_out(out)

    from ..geometry import TileLayout
    from ..plotting import grid_in_words

    with bad_usage():
        layout = TileLayout(canvas, tiles, shared, periodic)
    with bad_usage(tile="highlight", path="out"):
        layout.plot(out, halo=reach, tile=highlight)
    computed = layout.num_tiles * layout.tile_positions / math.prod(layout.size)
    tiles_in_words = f"{layout.num_tiles} tile{'s' * (layout.num_tiles > 1)}, {grid_in_words(layout)}"
    typer.echo(f"{out}: {tiles_in_words}; {computed:.2f} positions computed per canvas position")
