"""Draws the layouts of the documentation, with --paint also the strips of its first page: `python docs/draw.py`.

The pictures lie in docs/images.
"""

from __future__ import annotations

import argparse
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


STRIPS = {
    "tiles alone": {"halo": 0, "conv_halo": False, "norm": "tile"},
    "tiles coupled, no overlap": {},
}


def paint() -> None:
    """The shipped UNet's wrapped wall of six tiles, twice from the same noise."""
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image, ImageDraw, ImageFont

    import tiledattn.diffusers as td
    from tiledattn.models import textures_unet

    pipe = StableDiffusionPipeline.from_pretrained(textures_unet())
    pipe.set_progress_bar_config(disable=True)
    zoom, room, font = 3, 34, ImageFont.load_default(22)
    sheet = Image.new("RGB", (384 * zoom, len(STRIPS) * (64 * zoom + room)), "white")
    for row, (name, options) in enumerate(STRIPS.items()):
        with td.enable_tiling(pipe, wrap=(False, True), **options):
            call = {"height": 64, "width": 384, "num_inference_steps": 20, "guidance_scale": 1.5}
            generator = torch.Generator().manual_seed(3)
            strip = pipe("a photo of a brick wall", generator=generator, **call).images[0]
        top = row * (64 * zoom + room)
        ImageDraw.Draw(sheet).text((2, top + 3), name, fill="#20262e", font=font)
        sheet.paste(strip.resize((384 * zoom, 64 * zoom), Image.Resampling.LANCZOS), (0, top + room))
        borders = ImageDraw.Draw(sheet)
        for tile in range(6):  # where tiles begin
            borders.line(
                [(tile * 64 * zoom, top + room - 7), (tile * 64 * zoom, top + room - 1)], fill="#e8590c", width=3
            )
    sheet.save(HERE / "images" / "start.png", optimize=True)


def main() -> int:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paint", action="store_true", help="paint the strips as well, which takes half a minute")
    if parser.parse_args().paint:
        paint()
    for name, drawing in DRAWINGS.items():
        plot_layout(drawing.layout, HERE / "images" / f"{name}.png", drawing.halo, drawing.tile)
        sys.stdout.write(f"images/{name}.png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
