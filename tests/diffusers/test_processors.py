"""CrossTileAttnProcessor against the stock processors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
)
from tiny_diffusers import error, make_unet, shake, unet_inputs
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.couplings import CouplingMode
from tiledattn.diffusers.frame import Frame

LAYOUT = ta.TileLayout((8, 12), (4, 4))


def layer(**options: Any) -> Attention:
    return shake(Attention(**{"query_dim": 16, "heads": 2, "dim_head": 8, **options}))


def with_frame(halo: Any = "all", weight: float = 1.0) -> Any:
    return SimpleNamespace(frame=Frame(LAYOUT, halo, weight))


def canvas_and_tiles(channels: int = 16) -> tuple[Tensor, Tensor]:
    """The same positions as a canvas [B, C, h, w] and as tiles [T*B, C, h, w]."""
    canvas = torch.randn(2, channels, *LAYOUT.size, generator=torch.Generator().manual_seed(0))
    return canvas, ta.extract_tiles(canvas, LAYOUT).flatten(0, 1)


def to_canvas(tiles: Tensor) -> Tensor:
    return ta.blend_tiles(tiles.reshape(LAYOUT.num_tiles, -1, *tiles.shape[1:]), LAYOUT)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_without_tiling_it_is_the_stock_processor(kind: str) -> None:
    unet = make_unet(kind)
    x, t, kwargs = unet_inputs(kind, 16, 16)
    want = unet(x, t, **kwargs).sample
    unet.set_attn_processor(td.CrossTileAttnProcessor())
    assert torch.equal(unet(x, t, **kwargs).sample, want)


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 1, 96).index_fill(2, torch.tensor([3]), -1e4)])
@pytest.mark.parametrize("text", [None, torch.randn(2, 96, 16)])
def test_without_tiling_every_argument_goes_through(mask: Tensor | None, text: Tensor | None) -> None:
    attn = layer()
    canvas, _ = canvas_and_tiles()
    want = attn(tokens(canvas), text, mask)
    attn.set_processor(td.CrossTileAttnProcessor())
    assert torch.equal(attn(tokens(canvas), text, mask), want)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "out_bias": False},
        {"qk_norm": "layer_norm"},
        {"qk_norm": "rms_norm"},
        {"rescale_output_factor": 2.0, "residual_connection": True},
        {"scale_qk": False},
        {"upcast_attention": True, "upcast_softmax": True},
    ],
    ids=lambda o: next(iter(o), "plain"),
)
@pytest.mark.parametrize("stock", [AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor])
@pytest.mark.parametrize("flat", [True, False], ids=["tokens", "4-D"])
def test_with_the_whole_halo_it_is_the_stock_processor_on_the_canvas(
    options: dict[str, Any], stock: Any, flat: bool
) -> None:
    if "qk_norm" in options and stock in (AttnProcessor, SlicedAttnProcessor):
        pytest.skip("this stock processor knows no such norm")
    if "scale_qk" in options and stock in (AttnProcessor2_0, FusedAttnProcessor2_0):
        pytest.skip("this stock processor ignores the layer's scale")
    attn = layer(**options)
    if stock is FusedAttnProcessor2_0:
        attn.fuse_projections()
    original = stock(1) if stock is SlicedAttnProcessor else stock()
    attn.set_processor(original)
    canvas, tiles = canvas_and_tiles()
    want = attn(tokens(canvas) if flat else canvas)
    attn.set_processor(td.CrossTileAttnProcessor(with_frame(), original))
    got = attn(tokens(tiles) if flat else tiles)
    if flat:
        want = want.transpose(1, 2).reshape(canvas.shape)
        got = got.transpose(1, 2).reshape(tiles.shape)
    assert error(to_canvas(got), want) < 1e-5


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_halo_it_is_the_stock_processor_on_tiles(weight: float) -> None:
    attn = layer()
    _, tiles = canvas_and_tiles()
    want = attn(tokens(tiles))
    attn.set_processor(td.CrossTileAttnProcessor(with_frame("all" if weight == 0 else (0, 0), weight)))
    assert error(attn(tokens(tiles)), want) < 1e-5


def test_the_halo_shrinks_with_the_level_and_is_rounded_up() -> None:
    frame = Frame(ta.TileLayout((16, 32), (8, 16)), (3, 8))
    assert [frame.token_factor(n) for n in (128, 32, 8, 2, 64, 0, 127)] == [1, 2, 4, 8, None, None, None]
    assert [frame.level_halo(k) for k in (1, 2, 4, 8)] == [(3, 8), (2, 4), (1, 2), (1, 1)]
    assert [frame.factor(h, w) for h, w in ((8, 16), (4, 8), (4, 4), (0, 0), (16, 32))] == [1, 2, None, None, None]


def test_cross_attention_is_left_alone() -> None:
    attn = layer(cross_attention_dim=16)
    _, tiles = canvas_and_tiles()
    text = torch.randn(tiles.shape[0], 5, 16)
    want = attn(tokens(tiles), text)
    attn.set_processor(td.CrossTileAttnProcessor(with_frame()))
    assert torch.equal(attn(tokens(tiles), text), want)


def test_a_mask_on_self_attention_is_refused() -> None:
    attn = layer()
    _, tiles = canvas_and_tiles()
    attn.set_processor(td.CrossTileAttnProcessor(with_frame()))
    with pytest.raises(ValueError, match="attention_mask"):
        attn(tokens(tiles), attention_mask=torch.zeros(12, 1, 16))


@pytest.mark.parametrize("shape", [(12, 15, 16), (11, 16, 16)])
def test_merged_or_dropped_tokens_are_refused(shape: tuple[int, ...]) -> None:
    attn = layer()
    attn.set_processor(td.CrossTileAttnProcessor(with_frame()))
    with pytest.raises(ValueError, match="halo=0"):
        attn(torch.randn(shape))


def test_what_diffusers_looks_for() -> None:
    assert td.CrossTileAttnProcessor._attention_backend is None
    assert td.CrossTileAttnProcessor._parallel_config is None


def test_spatial_norm_takes_its_map_from_the_same_tile() -> None:
    attn = layer(query_dim=32, spatial_norm_dim=4, residual_connection=True)
    canvas, tiles = canvas_and_tiles(32)
    guide, guide_tiles = canvas_and_tiles(4)
    want = AttnProcessor2_0()(attn, canvas, temb=guide)
    tiling = with_frame()
    with CouplingMode(tiling.frame, rings=True, norm="canvas"):
        got = td.CrossTileAttnProcessor(tiling)(attn, tiles, temb=guide_tiles)
    assert error(to_canvas(got), want) < 1e-5
