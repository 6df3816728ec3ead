"""CouplingMode: what it lets see across borders, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS, wrapping
from tiny_diffusers import error
from torch import Tensor, nn

import tiledattn as ta
from tiledattn.diffusers.couplings import CouplingMode
from tiledattn.diffusers.frame import Frame

LAYOUTS = [
    ta.TileLayout((16, 24), (8, 8)),
    ta.TileLayout((16, 24), (8, 8), (4, 0)),
    ta.TileLayout((8, 24), (8, 8), wrap=(False, True)),
]


def canvas_of(layout: ta.TileLayout, factor: int = 1, batch: int = 2) -> Tensor:
    size = [n // factor for n in layout.size]
    return torch.randn(batch, 8, *size, generator=torch.Generator().manual_seed(0))


def on_tiles(
    function: Callable[[Tensor], Tensor], canvas: Tensor, layout: ta.TileLayout, factor: int = 1, norm: str = "tile"
) -> Tensor:
    """`function` of the tiles of a level under the mode, put together again (at whatever resolution comes out)."""
    tiles = ta.extract_tiles(canvas, layout.scaled(factor)).flatten(0, 1)
    with CouplingMode(Frame(layout), rings=True, norm=norm):
        out = function(tiles)
    ratio = layout.tile[1] // out.shape[-1]
    return ta.blend_tiles(out.reshape(layout.num_tiles, -1, *out.shape[1:]), layout.scaled(ratio))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "overlap", "wrap"])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_those_of_the_canvas(kind: str, factor: int, layout: ta.TileLayout) -> None:
    conv = nn.Conv2d(8, 8, **CONVOLUTIONS[kind]).requires_grad_(False)
    canvas = canvas_of(layout, factor)
    whole = wrapping(conv, 4) if any(layout.wrap) else conv
    assert error(on_tiles(conv, canvas, layout, factor), whole(canvas)) < 1e-5


@pytest.mark.parametrize("size", [(16, 24), (12, 24)], ids=["even", "last tile overlaps"])
def test_convolutions_keep_what_a_tile_holds_itself(size: tuple[int, int]) -> None:
    layout = ta.TileLayout(size, (8, 8))
    conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    tiles = torch.randn(layout.num_tiles, 2, 8, 8, 8)
    with CouplingMode(Frame(layout), rings=True, norm="tile"):
        out = conv(tiles.flatten(0, 1))
    padded = ta.pad_tiles(tiles, layout, 1, backend="reference").flatten(0, 1).float()
    assert error(out, F.conv2d(padded, conv.weight, conv.bias)) < 1e-5


def test_uneven_padding_is_that_of_the_canvas() -> None:
    conv = nn.Conv2d(8, 8, 3, stride=2).requires_grad_(False)

    def down(x: Tensor) -> Tensor:
        return conv(F.pad(x, (0, 1, 0, 1)))

    for layout in LAYOUTS[:2]:
        assert error(on_tiles(down, canvas_of(layout), layout), down(canvas_of(layout))) < 1e-5


@pytest.mark.parametrize("function", ["interpolate", "avg_pool", "max_pool", "pad by nothing", "linear"])
def test_what_mixes_nothing_passes(function: str) -> None:
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "interpolate": lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="nearest"),
        "avg_pool": nn.AvgPool2d(2, 2),
        "max_pool": nn.MaxPool2d(2),
        "pad by nothing": lambda x: F.pad(x, (0, 0, 0, 0)),
        "linear": lambda x: x.movedim(1, -1).matmul(torch.eye(8)).movedim(-1, 1),
    }
    layout = LAYOUTS[0]
    want = calls[function](canvas_of(layout))
    assert error(on_tiles(calls[function], canvas_of(layout), layout), want) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "overlap", "wrap"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("flat", [True, False], ids=["tokens", "4-D"])
def test_group_norms_are_those_of_the_canvas(layout: ta.TileLayout, affine: bool, flat: bool) -> None:
    norm = nn.GroupNorm(4, 8, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
    canvas = canvas_of(layout, 2)

    def function(x: Tensor) -> Tensor:
        return norm(x.flatten(2)).reshape(x.shape) if flat else norm(x)

    with torch.no_grad():
        assert error(on_tiles(function, canvas, layout, 2, norm="canvas"), norm(canvas)) < 1e-5


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_group_norms_keep_the_dtype_with_weights_of_another(weights: torch.dtype) -> None:
    norm, layout = nn.GroupNorm(4, 8).to(weights), LAYOUTS[0]
    canvas = canvas_of(layout).bfloat16()
    with torch.no_grad():
        out = on_tiles(norm, canvas, layout, norm="canvas")
        assert out.dtype == torch.bfloat16
        assert error(out.float(), norm.float()(canvas.float())) < 2e-2


def test_autocast_gives_what_it_gives_untiled() -> None:
    norm, conv, layout = nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 3, padding=1), LAYOUTS[0]

    def function(x: Tensor) -> Tensor:
        return conv(norm(x))

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = function(canvas_of(layout))
        got = on_tiles(function, canvas_of(layout), layout, norm="canvas")
    assert got.dtype == want.dtype
    assert error(got.float(), want.float()) < 2e-2


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), "bilinear"),
    "bilinear by position": (lambda x: F.interpolate(x, (16, 16), None, "bilinear"), "bilinear"),
    "overlapping pool": (lambda x: F.max_pool2d(x, 3, stride=1, padding=1), "pooling"),
    "transposed": (nn.ConvTranspose2d(8, 8, 4, 2, 1), "transposed"),
    "fourier": (lambda x: torch.fft.fftn(x, dim=(-2, -1)).real, "disable_freeu"),
    "circular padding": (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "circular"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflect"),
    "padding by ones": (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "zero padding"),
    "cropping": (lambda x: F.pad(x, (-1, 1, 0, 0)), "zero padding"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_coupled_is_refused(kind: str) -> None:
    function, words = REFUSED[kind]
    with pytest.raises(NotImplementedError, match=words) as refusal:
        on_tiles(function, canvas_of(LAYOUTS[0]), LAYOUTS[0])
    assert "conv_halo=False" in str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "pad", "mode"),
    [
        ((12, 64, 8), (0, 8), "constant"),  # channels of tokens
        ((12, 64, 8), (0, 0, 0, 3), "constant"),  # tokens, for a kernel's sake
        ((12, 2, 64, 4), (0, 4), "constant"),  # the head dim of attention
        ((12, 8, 8, 8), (0, 0, 0, 0, 0, 4), "constant"),  # channels of a canvas
        ((11, 8, 8, 8), (1, 1, 1, 1), "reflect"),  # rows of no tiles
        ((3, 8), (1, 0), "constant"),
        ((2, 3, 4, 8, 8), (1, 1, 1, 1), "constant"),
    ],
)
def test_padding_of_what_is_no_canvas_passes(shape: tuple[int, ...], pad: tuple[int, ...], mode: str) -> None:
    x = torch.randn(shape)
    with CouplingMode(Frame(LAYOUTS[0]), rings=True, norm="canvas"):
        got = F.pad(x, pad, mode)
    assert torch.equal(got, F.pad(x, pad, mode))


@pytest.mark.parametrize("shape", [(12, 8, 5, 5), (12, 8, 8, 4), (11, 8, 8, 8), (8, 8, 8)])
def test_a_tensor_of_no_level_is_refused(shape: tuple[int, ...]) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    with CouplingMode(Frame(LAYOUTS[0]), rings=True, norm="tile"), pytest.raises(ValueError, match="no level"):
        conv(torch.randn(shape))
    with CouplingMode(Frame(LAYOUTS[0]), rings=False, norm="canvas"), pytest.raises(ValueError, match="no level"):
        F.group_norm(torch.randn(shape[0], 8, 5, 5), 4)


def test_a_stride_that_does_not_divide_is_refused() -> None:
    layout = ta.TileLayout((9, 9), (3, 3))
    with CouplingMode(Frame(layout), rings=True, norm="tile"), pytest.raises(ValueError, match="stride"):
        nn.Conv2d(8, 8, 3, stride=2, padding=1)(torch.randn(9, 8, 3, 3))


def test_couplings_can_be_off_one_by_one() -> None:
    layout = LAYOUTS[0]
    tiles = ta.extract_tiles(canvas_of(layout), layout).flatten(0, 1)
    conv, norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)
    with CouplingMode(Frame(layout), rings=False, norm="tile"):
        got = conv(norm(tiles)), torch.fft.fftn(tiles)
    assert torch.equal(got[0], conv(norm(tiles)))
    assert torch.equal(got[1], torch.fft.fftn(tiles))
