"""CogVideoX: exact attention layer by layer, tables of a tile's own size, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers.cogvideox import NEWER, ROTARY, call_cogvideox, make_cogvideox, rotary_table
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td

from .video_layers import LAYOUTS, axial_table, canvas_size, layer_errors, positions

DIMS = (4, 6, 6)


def steps(model: Any, layout: ta.TileLayout) -> list[float]:
    """Spacing of a tile's own table, found by looking for the angle of the fastest pair of each axis."""
    tile = tuple(n * p for n, p in zip(layout.tile, (model.config.patch_size_t or 1, 2, 2), strict=True))
    cos, sin = (x.double().unflatten(0, layout.tile) for x in rotary_table(model, tile))
    angles = torch.atan2(sin, cos)
    out = []
    for axis, channel in enumerate((0, 4, 10)):
        along = angles[..., channel].movedim(axis, 0)
        turn = (along[1] - along[0]).flatten()[0] if layout.tile[axis] > 1 else torch.ones(())
        out.append(float(turn % (2 * torch.pi)))
    return out


def table(model: Any, layout: ta.TileLayout, origin: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The canvas, in steps of a tile's own table; the tile at `origin` has exactly its own."""
    tile = tuple(n * p for n, p in zip(layout.tile, (model.config.patch_size_t or 1, 2, 2), strict=True))
    first = torch.atan2(*(x[0].double() for x in reversed(rotary_table(model, tile))))[[0, 4, 10]]
    places = positions(layout, origin) * torch.tensor(steps(model, layout), dtype=torch.float64) + first
    return axial_table(DIMS, 10000.0, places)


@pytest.mark.parametrize("options", [ROTARY, NEWER], ids=["5b", "1.5"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_see_the_whole_canvas_and_one_text(options: dict[str, Any], layout: ta.TileLayout) -> None:
    model = make_cogvideox(**options)()
    call = call_cogvideox(**options)(canvas_size(model, layout), 2, torch.float32)
    errors = layer_errors(model, call, layout, table, halo="all")
    assert len(errors) == 2
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(model, call, layout, table, halo=0).values()) > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_of_2b_see_the_whole_canvas(layout: ta.TileLayout) -> None:
    model = make_cogvideox()()
    call = call_cogvideox()(canvas_size(model, layout), 2, torch.float32)

    def none(*_: Any) -> Any:
        return None

    assert max(layer_errors(model, call, layout, none, halo="all").values()) < 1e-5
    assert min(layer_errors(model, call, layout, none, halo=0).values()) > 1e-2


@pytest.mark.parametrize("options", [{}, ROTARY, NEWER], ids=["2b", "5b", "1.5"])
def test_a_tile_alone_is_a_video_of_its_size(options: dict[str, Any]) -> None:
    """Without a halo each tile is what the stock model makes of it, positions included."""
    model, make = make_cogvideox(**options)(), call_cogvideox(**options)
    call = make((8, 8, 16), 1, torch.float32)
    with td.enable_tiling(model, tile=(4, 4, 8), halo=0, unit="latent"):
        got = model(**call).sample
    own = make((4, 4, 8), 1, torch.float32)
    want = model(**{**own, "hidden_states": call["hidden_states"][:, 4:, :, 4:, 8:]}).sample
    assert (got[:, 4:, :, 4:, 8:] - want).abs().max() < 1e-5 * want.abs().max()


def test_learned_positions_take_tiles_of_their_size_only() -> None:
    options = {**ROTARY, "use_learned_positional_embeddings": True}
    model, call = make_cogvideox(**options)(), call_cogvideox(**ROTARY)((5, 8, 8), 1, torch.float32)
    with (
        td.enable_tiling(model, tile=(5, 4, 4), unit="latent"),
        pytest.raises(ValueError, match=r"learned its positions for \(4, 8\)"),
    ):
        model(**call)
    with td.enable_tiling(model, tile=(5, 4, 8), unit="latent"):
        assert model(**call).sample.isfinite().all()


def test_a_table_of_another_canvas_is_refused() -> None:
    model, call = make_cogvideox(**ROTARY)(), call_cogvideox(**ROTARY)((5, 8, 8), 1, torch.float32)
    with td.enable_tiling(model, tile=(5, 4, 4), unit="latent"):
        with pytest.raises(ValueError, match="image_rotary_emb: got 20 tokens"):
            model(**{**call, "image_rotary_emb": tuple(x[:20] for x in call["image_rotary_emb"])})
        with pytest.raises(ValueError, match="image_rotary_emb: got None"):
            model(**{**call, "image_rotary_emb": None})
        with pytest.raises(NotImplementedError, match="timestep_cond"):
            model(**call, timestep_cond=torch.zeros(1, 8))
