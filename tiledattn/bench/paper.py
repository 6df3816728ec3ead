"""Work and traffic of large canvases on paper, from plans alone: `python -m tiledattn.bench.paper`.

One forward of the denoiser, batch 1. Operations are multiplications and additions, each counted once.

- Attention counts 4 * D for each query and key that it sees, per head: two products. The plan tells the pairs of canvas
  tokens; text that joins a model's sequence sees, and is seen by, its own tile only.
- All other layers (linear maps, convolutions, attention to text) are in proportion to the tokens that are computed.
  Their work for one native picture was counted with PyTorch's FLOP counter on the model of diffusers.
- Tiles are native and have no overlap; the halo is the one that `enable_tiling` takes by default. Rings of convolutions
  cost no operations beyond those of an untiled model, norms next to none.
- *Whole-canvas attention* lets every token see the whole canvas (the untiled model). *Blended tiles* (MultiDiffusion)
  see nothing beyond themselves and overlap by a part of their side.
- Bytes of attention are the least that must move in bfloat16: queries, keys and values read once, the result written
  once. Gathering each tile's keys and values beforehand, where there is more than one, reads and writes what it sees.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ..geometry import TileLayout, attention_plan
from .notes import Note
from .tables import Cell, Table, bytes_text

CANVASES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
OVERLAPS = (25, 50, 75)  # percent of a tile's side
BYTES = 2  # of one number in bfloat16


class Level(NamedTuple):
    """Self-attention layers that work on tokens of one size."""

    layers: int
    heads: int
    dim: int
    pixels: int  # a token's side


class Model(NamedTuple):
    """A denoiser at its native size.

    `other` is the work of all that is not self-attention for one native picture, text included; `text` tokens join the
    sequence of every tile; the halo is `tile / halo_part`.
    """

    name: str
    tile: int  # pixels a side
    levels: tuple[Level, ...]
    text: int
    other: float
    halo_part: int


MODELS = (
    Model("SDXL", 1024, (Level(10, 10, 64, 16), Level(60, 20, 64, 32)), 0, 6.009617121e12, 8),
    Model("Flux.1", 1024, (Level(57, 24, 128, 16),), 512, 5.9512255414e13, 4),
)


class Cost(NamedTuple):
    """Operations of self-attention and of all else, the bytes that attention must move, those that gathering adds."""

    tiles: int
    attention: float
    other: float
    bytes: float
    gathered: float

    @property
    def step(self) -> float:
        """Operations of one forward."""
        return self.attention + self.other


def cost(model: Model, layout: TileLayout, halo: int) -> Cost:
    """What one forward costs, tiled so; layout and halo in pixels.

    A layout of one tile that is the whole canvas is the untiled model.
    """
    attention = size = gathered = 0.0
    for level in model.levels:
        tokens = layout.scaled(level.pixels)
        plan = attention_plan(tokens, (halo // level.pixels,) * 2)
        own, text, tiles = tokens.tile_positions, model.text, tokens.num_tiles
        pairs = plan.num_pairs + tiles * (own * text + text * (own + text))
        width = level.layers * level.heads * level.dim
        attention += 4.0 * pairs * width
        size += 4.0 * tiles * (own + text) * width * BYTES
        gathered += 4.0 * (plan.num_pairs // own + tiles * text) * width * BYTES * (tiles > 1)
    return Cost(layout.num_tiles, attention, model.other * _computed(model, layout), size, gathered)


def _computed(model: Model, layout: TileLayout) -> float:
    """Tokens that a forward computes over those of one native picture."""
    pixels = model.levels[0].pixels

    def tokens(side: Sequence[int]) -> int:
        return math.prod(length // pixels for length in side) + model.text

    return layout.num_tiles * tokens(layout.tile) / tokens((model.tile, model.tile))


def ours(model: Model, canvas: int) -> Cost:
    """Native tiles without overlap and the default halo, on a square canvas of so many pixels a side."""
    return cost(model, TileLayout((canvas, canvas), model.tile), model.tile // model.halo_part)


def whole(model: Model, canvas: int) -> Cost:
    """The untiled model."""
    return cost(model, TileLayout((canvas, canvas), canvas), 0)


def blended(model: Model, canvas: int, percent: int) -> Cost:
    """Native tiles that overlap by a part of their side and see nothing else."""
    return cost(model, TileLayout((canvas, canvas), model.tile, model.tile * percent // 100), 0)


def table(model: Model, canvases: Sequence[int] = CANVASES) -> Table:
    """A row for every canvas: ours in full, the others as ratios to it."""
    head = ["canvas", "tiles", "attention", "whole step", "exponent", "whole-canvas attention"]
    head += [f"blended, {percent}%" for percent in OVERLAPS]
    head += ["bytes of attention", "gathering adds"]
    rows, before = [], None
    for canvas in canvases:
        own = ours(model, canvas)
        grown = "" if before is None else f"{_exponent(before, own, canvases[len(rows) - 1], canvas):.2f}"
        others = [whole(model, canvas), *(blended(model, canvas, percent) for percent in OVERLAPS)]
        texts = [f"{canvas:,}²", f"{own.tiles:,}", _flop(own.attention), _flop(own.step), grown]
        texts += [f"{other.step / own.step:.3g}" for other in others]
        texts += [bytes_text(round(own.bytes)), bytes_text(round(own.gathered))]
        rows.append([Cell(text) for text in texts])
        before = own
    halo = model.tile // model.halo_part
    note = (
        f"{model.name}: tiles of {model.tile} pixels without overlap, a halo of {halo}. The exponent is that of the "
        "whole step against the canvas area since the row above. Whole-canvas attention and blended tiles: their whole "
        "step over ours."
    )
    return Table(model.name, head, rows, [Note(note)])


def _exponent(before: Cost, after: Cost, smaller: int, larger: int) -> float:
    return math.log(after.step / before.step) / (2 * math.log(larger / smaller))


def _flop(count: float) -> str:
    for factor, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= factor:
            return f"{count / factor:.3g} {name}"
    return f"{count / 1e9:.3g} GFLOP"


def tables() -> list[Table]:
    """One for every model."""
    return [table(model) for model in MODELS]


if __name__ == "__main__":
    from .report import lines_of

    sys.stdout.write("\n\n".join("\n".join(lines_of(made)) for made in tables()) + "\n")
