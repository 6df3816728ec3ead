"""What was painted, one strip per method and model, for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import whole_file
from ...metrics import seam_lines
from .painting import Painted

LABEL, GAP = 16, 12


def draw_strips(models: Sequence[tuple[str, Sequence[Painted]]], path: Path, zoom: int = 2) -> None:
    """Writes a .jpg: a column per model, the first seed of every setting, ticks at the seams.

    Args:
        models: name and pictures.
        path: where to.
        zoom: pixels per pixel of small pictures; those wider than 1024 are not enlarged.
    """
    from PIL import Image, ImageDraw

    height, width = models[0][1][0].pictures.shape[-2:]
    zoom = 1 if width > 1024 else zoom
    row = LABEL + height * zoom + GAP // 2
    rows = max(len(painted) for _, painted in models)
    sheet = Image.new("RGB", ((width * zoom + GAP) * len(models) + GAP, row * rows + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, painted) in enumerate(models):
        for place, one in enumerate(painted):
            left, top = GAP + column * (width * zoom + GAP), GAP // 2 + place * row
            pen.text((left, top), f"{name}: {one.setting.name}", fill="#20262e")
            pixels = (np.moveaxis(one.pictures[0], 0, -1).clip(0, 1) * 255).round().astype(np.uint8)
            picture = Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + LABEL))
            for line in _ticks(one):
                pen.line((left + line * zoom, top + LABEL - 4, left + line * zoom, top + LABEL - 1), fill="#e8590c")
    with whole_file(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)


def _ticks(one: Painted) -> Any:
    return () if one.setting.kind == "untiled" else seam_lines(one.layout, 1)
