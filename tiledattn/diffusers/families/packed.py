"""Families whose canvas comes as a sequence of tokens [B, S, C], 2x2 latents each, perhaps with reference images."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...ops import Rotary
from .base import CallContext, Family, axial_frequencies, device_rotary

Grid = tuple[int, int]

NATIVE = 64  # tokens: 1024 pixels
PIXELS = 16  # per token, of VAEs with 8 pixels per latent


class PackedFamily(Family):
    """Image models that take tokens; a position of the canvas is a token, so 2x2 latents.

    Behind the canvas's tokens may stand those of reference images. Each tile gets its crop of them, and no other tile
    sees it.
    """

    kwargs: str
    """The argument with LoRA's scale and what attention processors get."""
    positions = "rotary"
    no_canvas_positions = "text would stand as far from a tile as from the canvas's corner, farther than in training"
    text = "first"

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """1024x1024 pixels."""
        return (NATIVE, NATIVE)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """Twice the VAE's reduction; 16 without one."""
        return (2 * int(getattr(pipe, "vae_scale_factor", PIXELS // 2)),) * 2

    @abstractmethod
    def grids(self, call: dict[str, Any]) -> list[Grid]:
        """(height, width) of the canvas and of the reference images, in tokens, in the sequence's order."""

    @abstractmethod
    def place(self, call: dict[str, Any], grids: list[Grid], context: CallContext) -> dict[str, Any]:
        """The arguments that say where the tokens of a tile and its reference images are."""

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels; image, row and column turn a share of them each."""
        rope = model.pos_embed
        table = axial_frequencies(tuple(rope.axes_dim), float(rope.theta))[1:3]
        return device_rotary(table, context.call[self.canvas])

    def check_call(self, call: dict[str, Any]) -> None:
        """Raises for arguments that can't be tiled, and for attention arguments that aren't known."""
        super().check_call(call)
        strange = sorted(set(call.get(self.kwargs) or {}) - {"scale"})
        if strange:
            raise NotImplementedError(
                f"{self.kwargs}: can't be tiled with {', '.join(strange)}; only 'scale' is known; leave them out"
            )

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """The canvas [B, C, height, width], without reference images."""
        self.check_call(call)
        tokens = call[self.canvas]
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"{self.canvas}: got {got}; expected a tensor [B, tokens, C]")
        grids = self.grids(call)
        if tokens.shape[1] != sum(h * w for h, w in grids):
            raise ValueError(f"{self.canvas}: got {tokens.shape[1]} tokens; their places are those of {grids}")
        return unpack(tokens[:, : grids[0][0] * grids[0][1]], grids[0])

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Tokens of tiles, each with its crop of the reference images behind."""
        new = super().tile_call(call, tiles, context, model)
        grids, layout = self.grids(call), context.layout
        strange = [grid for grid in grids[1:] if grid != context.size]
        if strange and not context.whole:
            raise NotImplementedError(
                f"{self.canvas}: a reference image of {strange[0]} tokens can't be cut into tiles of a canvas of "
                f"{context.size}; make it as large as the canvas, or the tile as large as the canvas"
            )
        places = [slice(end - h * w, end) for (h, w), end in zip(grids, _ends(grids), strict=True)]
        images = [call[self.canvas][:, place] for place in places[1:]]
        if not context.whole:
            images = [
                context.cut_tokens(self.canvas, image, grid) for image, grid in zip(images, grids[1:], strict=True)
            ]
            grids = [(layout.tile[0], layout.tile[1])] * len(grids)
        new[self.canvas] = torch.cat([pack(tiles), *images], 1)
        for name in ("timestep", "guidance"):
            if isinstance(call.get(name), Tensor) and call[name].ndim:
                new[name] = context.repeat(name, call[name])
        return {**new, **self.place(call, grids, context)}

    def tokens_behind(self, call: dict[str, Any], context: CallContext) -> int:
        """The reference images' tokens of a tile."""
        return int(call[self.canvas].shape[1]) - context.layout.tile_positions

    def prediction_of(self, output: Any, context: CallContext) -> Tensor:
        """The prediction [T*B, C, height, width] of tiles."""
        return self.outputs_of(output, context)[0]

    def with_prediction(self, output: Any, prediction: Tensor, context: CallContext) -> Any:
        """The model's output with the canvas's tokens alone."""
        return super().with_prediction(output, pack(prediction), context)

    def outputs_of(self, output: Any, context: CallContext) -> list[Tensor]:
        """The prediction, and what the model says of the reference images where they were cut."""
        tokens, layout = super().prediction_of(output, context), context.layout
        parts = torch.split(tokens, layout.tile_positions, 1) if not context.whole else (tokens,)
        tile = (layout.tile[0], layout.tile[1])
        return [unpack(part[:, : layout.tile_positions], tile) for part in parts]

    def with_outputs(self, output: Any, outputs: list[Tensor], context: CallContext) -> Any:
        """The model's output with tokens of the canvas and of reference images."""
        tokens = [pack(x) for x in outputs]
        if context.whole:
            tokens.append(super().prediction_of(output, context)[:, context.layout.tile_positions :])
        return super().with_prediction(output, torch.cat(tokens, 1), context)


def pack(x: Tensor) -> Tensor:
    """[B, C, height, width] -> [B, tokens, C]."""
    return x.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: Grid) -> Tensor:
    """[B, tokens, C] -> [B, C, height, width]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _ends(grids: list[Grid]) -> list[int]:
    ends = [0]
    for height, width in grids:
        ends.append(ends[-1] + height * width)
    return ends[1:]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def grids_of_ids(name: str, ids: Tensor) -> list[Grid]:
    """The images whose tokens have positions `ids` [S, axes] of (image, row, column, ...), each in row-major order.

    Raises:
        ValueError: positions that are no whole images that begin at row 0 and column 0.
    """
    ids = ids.detach().cpu()
    starts = [0, *((ids[1:, 0] != ids[:-1, 0]).nonzero().flatten() + 1).tolist(), len(ids)]
    grids = []
    for start, end in pairwise(starts):
        image = ids[start:end]
        width = max(1, int((image[:, 1] == image[0, 1]).long().cumprod(0).sum()))
        grid = (len(image) // width, width)
        # rounded as the pipeline rounds them: bfloat16 knows integers up to 256
        if len(image) % width or not torch.equal(image, ids_of_grid(image[0], grid).to(image.dtype)):
            raise ValueError(
                f"{name}: the positions of tokens {start} to {end - 1} aren't those of an image in row-major order "
                "from row 0 and column 0; nothing else can be cut into tiles"
            )
        grids.append(grid)
    return grids


def ids_of_grid(first: Tensor, grid: Grid) -> Tensor:
    """Positions [height * width, axes], float32, of an image whose first token is at `first` [axes]."""
    ids = first.float().repeat(grid[0] * grid[1], 1)
    ids[:, 1] = torch.arange(grid[0], device=first.device).repeat_interleave(grid[1])
    ids[:, 2] = torch.arange(grid[1], device=first.device).repeat(grid[0])
    return ids
