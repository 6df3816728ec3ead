"""Shapes of real models: the self-attention of their layers, their latents and their pixels, at canvases up to 8K.

The tables are data; the cases are made from them. Head counts and dims are those of the models' configurations in
diffusers 0.42 (for SD1.5 and SDXL: of their published UNet configurations), tiles are the models' native sizes, and
halos are what `enable_tiling` takes by default: an eighth of the tile for UNets, a quarter for transformers, at coarser
levels and in tokens rounded up.

Canvases are periodic, so that all tiles have equally many neighbours (`attention_cases`); an axis of one tile has none.
Classifier-free guidance in one batch counts as batch 2 (SD1.5, SDXL, the shipped models); Flux.1 is distilled, and the
others are called twice. The prefix is Flux.1's and Qwen-Image's default `max_sequence_length`; Qwen-Image's own
prompts are as long as their text, so that fewer tokens are usual.

On a CPU the layers of large models are reduced to some heads of one batch entry at 2K, as their names say ("2 of 10
heads"); heads and batch entries are independent and alike, so that time per unit of work is what is compared. Wan's
tiles of 32,760 tokens are left to GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tiledattn as ta

from .attention_cases import AttentionCase
from .tile_cases import TileCase
from .ways import Case

Canvases = tuple[tuple[str, tuple[int, ...]], ...]  # a name and the grid of native tiles
Dtypes = Mapping[str, tuple[str, ...]]

OF_512: Canvases = (("2K", (4, 4)), ("4K", (8, 8)), ("8K", (16, 16)))
OF_1024: Canvases = (("2K", (2, 2)), ("4K", (4, 4)), ("8K", (8, 8)))
WIDE, LONG, LARGE = ("960x1664", (1, 2, 2)), ("333 frames", (4, 1, 1)), ("1920x3328", (1, 4, 4))
STRIP, SQUARE, OF_64 = ("64x384", (1, 6)), ("256x256", (4, 4)), ("2K", (32, 32))


class Layer(NamedTuple):
    """Self-attention layers of one shape.

    `tile` and `halo` are in tokens at this layer, `heads_on_cpu` is how many of its heads a CPU is given: all of them
    together with the whole batch, some with one batch entry of the smallest canvas, or 0.
    """

    model: str
    tile: tuple[int, ...]
    halo: tuple[int, ...]
    heads: int
    dim: int
    prefix: int
    batch: int
    canvases: Canvases
    heads_on_cpu: int


LAYERS = (
    Layer("SD1.5", (64, 64), (8, 8), 8, 40, 0, 2, OF_512, 1),
    Layer("SD1.5", (32, 32), (4, 4), 8, 80, 0, 2, OF_512, 2),
    Layer("SD1.5", (16, 16), (2, 2), 8, 160, 0, 2, OF_512, 4),
    Layer("SD1.5", (8, 8), (1, 1), 8, 160, 0, 2, OF_512[1:2], 0),
    Layer("SDXL", (64, 64), (8, 8), 10, 64, 0, 2, OF_1024, 2),
    Layer("SDXL", (32, 32), (4, 4), 20, 64, 0, 2, OF_1024, 5),
    Layer("Flux.1", (64, 64), (16, 16), 24, 128, 512, 1, OF_1024, 1),
    Layer("Qwen-Image", (64, 64), (16, 16), 24, 128, 512, 1, OF_1024[1:2], 0),
    Layer("Wan 1.3B", (21, 30, 52), (5, 8, 13), 12, 128, 0, 1, (WIDE, LONG, LARGE), 0),
    Layer("Wan 14B", (21, 30, 52), (5, 8, 13), 40, 128, 0, 1, (WIDE, LONG), 0),
    Layer("textures UNet", (16, 16), (2, 2), 3, 16, 0, 2, (STRIP, SQUARE, OF_64), 3),
    Layer("textures UNet", (8, 8), (1, 1), 3, 32, 0, 2, (SQUARE,), 3),
    Layer("textures DiT", (1, 16, 16), (1, 4, 4), 4, 32, 0, 2, (("64x384", (1, 1, 6)), ("256x256", (1, 4, 4))), 4),
)


class Picture(NamedTuple):
    """What is cut and blended: latents, in latents, or pixels. `on_cpu`: small enough for its memory and patience."""

    name: str
    channels: int
    size: int
    tile: int
    overlap: int
    on_cpu: bool


PICTURES = (
    Picture("SD1.5 latents, 2K", 4, 256, 64, 16, True),
    Picture("SDXL latents, 4K", 4, 512, 128, 32, True),
    Picture("SDXL latents, 8K", 4, 1024, 128, 32, True),
    Picture("Flux.1 latents, 4K", 16, 512, 128, 32, True),
    Picture("Flux.1 latents, 8K", 16, 1024, 128, 32, True),
    Picture("VAE pixels, 2K", 3, 2048, 512, 128, True),
    Picture("VAE pixels, 4K", 3, 4096, 1024, 128, True),
    Picture("VAE pixels, 8K", 3, 8192, 1024, 128, False),
)

_ON_CPU = ("float32", "bfloat16")


def _size(tile: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(w * n for w, n in zip(tile, grid, strict=True))


def _times(lengths: tuple[int, ...]) -> str:
    return "x".join(map(str, lengths))


def _of_layer(layer: Layer, canvas: str, grid: tuple[int, ...], heads: int, batch: int, dtypes: Dtypes) -> Case:
    """One case; `heads` and `batch` may be fewer than the layer has, which its name then says."""
    layout = ta.TileLayout(_size(layer.tile, grid), layer.tile, 0, tuple(n > 1 for n in grid))
    tiles = f"{layout.num_tiles} tiles of {_times(layer.tile)}"
    prefix = f" + {layer.prefix}" if layer.prefix else ""
    reduced = f", {heads} of {layer.heads} heads" if heads < layer.heads else f", H{heads}"
    halo = str(layer.halo[0]) if len(set(layer.halo)) == 1 else _times(layer.halo)
    name = f"{layer.model}, {canvas}: {tiles}{prefix}, halo {halo}{reduced} D{layer.dim} B{batch}"
    return AttentionCase(
        "attention of models",
        name,
        dtypes,
        layout,
        layer.halo,
        heads,
        layer.dim,
        batch,
        prefix=layer.prefix,
    )


def of_layer(layer: Layer) -> list[Case]:
    """The cases of a layer: each canvas on GPUs, and what a CPU can do of it."""
    whole_on_cpu = layer.heads_on_cpu == layer.heads
    found = []
    for number, (canvas, grid) in enumerate(layer.canvases):
        on_gpu: Dtypes = {"cuda": ("bfloat16",)}
        dtypes = {"cpu": _ON_CPU, **on_gpu} if whole_on_cpu else on_gpu
        found.append(_of_layer(layer, canvas, grid, layer.heads, layer.batch, dtypes))
        if number == 0 and layer.heads_on_cpu and not whole_on_cpu:
            found.append(_of_layer(layer, canvas, grid, layer.heads_on_cpu, 1, {"cpu": _ON_CPU}))
    return found


def of_picture(picture: Picture) -> list[Case]:
    """Blending and extraction; 25% or 12.5% of a tile is shared, since without overlap there is nothing to blend."""
    layout = ta.TileLayout((picture.size,) * 2, picture.tile, picture.overlap)
    name = f"{picture.name}: {layout.num_tiles} tiles of {picture.channels}x{_times(layout.tile)}"
    dtypes = {"cuda": ("bfloat16",), **({"cpu": ("float32",)} if picture.on_cpu else {})}
    return [TileCase(operation, name, dtypes, layout, picture.channels) for operation in ("blending", "extraction")]


CASES: list[Case] = [
    *(case for layer in LAYERS for case in of_layer(layer)),
    *(case for picture in PICTURES for case in of_picture(picture)),
]
