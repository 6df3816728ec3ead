"""Absolute positions of the canvas: what positions="canvas" means for a model that adds a table to its patches."""

from __future__ import annotations

from typing import Any

from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed
from torch import Tensor, nn

from ..ops import extract_tiles
from .frame import CurrentFrame, Frame, split_tiles
from .weak import Weak


def canvas_table(module: PatchEmbed, size: tuple[int, int]) -> Tensor | None:
    """What a `PatchEmbed` adds to the patches of a whole canvas.

    Args:
        module: the model's module: with a table of which it takes the centre (SD3), or sines and cosines that it
            stretches over the canvas (PixArt), or no positions.
        size: tokens of the canvas (rows, columns).

    Returns:
        [1, rows * columns, C]; None without positions.

    Raises:
        ValueError: a canvas larger than the table.
    """
    table: Tensor | None = module.pos_embed
    if table is None:
        return None
    if module.pos_embed_max_size:
        centre: Tensor = module.cropped_pos_embed(*(length * module.patch_size for length in size))
        return centre
    if size == (module.height, module.width):
        return table
    positions: Tensor = get_2d_sincos_pos_embed(
        table.shape[-1],
        size,
        base_size=module.base_size,
        interpolation_scale=module.interpolation_scale,
        device=table.device,
        output_type="pt",
    )
    return positions.float().unsqueeze(0)


class _Place:
    """Forward hook of a `PatchEmbed`: each tile gets the canvas's positions at its place, not those of a picture."""

    def __init__(self, current: CurrentFrame) -> None:
        self.current = current

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        frame = self.current.frame
        if frame is None or frame.tokens is None or frame.tokens.num_tiles == 1:
            return None
        with frame.pause():
            return _placed(module, args[0], frame)


def _placed(module: Any, tiles: Tensor, frame: Frame) -> Tensor | None:
    """Patches of `tiles` [T*B, C, height, width] with their positions on the canvas, [T*B, N, C]."""
    layout = frame.tokens
    assert layout is not None
    rows, columns = layout.size
    table = canvas_table(module, (rows, columns))
    if table is None:
        return None
    canvas = table.transpose(1, 2).reshape(1, -1, rows, columns)
    positions = extract_tiles(canvas, layout, backend=frame.backend).flatten(3).transpose(2, 3)  # [T, 1, N, C]
    patches: Tensor = module.proj(tiles).flatten(2).transpose(1, 2)
    if module.layer_norm:
        patches = module.norm(patches)
    placed: Tensor = (split_tiles(patches, layout) + positions).flatten(0, 1)
    return placed.to(patches.dtype)


class PlacedPositions:
    """Hooks on the modules of a model that add absolute positions to its patches.

    Args:
        modules: the modules, by name.
        current: where hooks find the forward pass under way.

    Raises:
        TypeError: a module that is no `PatchEmbed`.
    """

    def __init__(self, modules: dict[str, nn.Module], current: CurrentFrame) -> None:
        for name, module in modules.items():
            if not isinstance(module, PatchEmbed) or not module.flatten:
                raise TypeError(
                    f'{name}: positions="canvas" knows diffusers\' PatchEmbed, not {type(module).__name__}; use "tile"'
                )
        self._modules = [Weak(module) for module in modules.values()]
        self._current = current
        self._installed = False

    def install(self) -> None:
        """Puts the hooks on, once."""
        if self._installed:
            return
        self._installed = True
        for module in self._living():
            module.register_forward_hook(_Place(self._current), prepend=True)

    def restore(self) -> None:
        """Takes the hooks off."""
        for module in self._living():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(hook, _Place) and hook.current is self._current:
                    del module._forward_hooks[key]
        self._modules = []

    def _living(self) -> list[Any]:
        return [module for module in (reference() for reference in self._modules) if module is not None]
