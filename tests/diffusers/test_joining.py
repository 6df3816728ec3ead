"""Tiles that stay joined: the same as cut ones, and only where they may be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS, wrapping
from diffusers.models.attention_processor import AttnProcessor2_0
from hypothesis import given
from hypothesis import strategies as st
from tiny_diffusers import circular, error, make_unet, unet_inputs
from tiny_transformers import pixart
from torch import Tensor, nn

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import unet as unet_family
from tiledattn.diffusers.frame import Frame
from tiledattn.diffusers.joining import RoundMode, join_tokens, log_blending, may_be_joined, split_tokens

ROUNDING = 2e-5


@given(st.tuples(*[st.integers(1, 4)] * 6))
def test_tokens_are_cut_as_tiles_are(numbers: tuple[int, ...]) -> None:
    rows, columns, height, width, batch, channels = numbers
    layout = ta.TileLayout((rows * height, columns * width), (height, width))
    canvas = torch.randn(batch, channels, *layout.size)
    tokens = canvas.flatten(2).transpose(1, 2)
    tiles = split_tokens(tokens, layout)
    assert torch.equal(tiles, ta.extract_tiles(canvas, layout).flatten(0, 1).flatten(2).transpose(1, 2))
    assert torch.equal(join_tokens(tiles, layout), tokens)


def cut(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Tensor]) -> Tensor:
    """What `function` gives where no tiles may stay joined."""
    with monkeypatch.context() as patch:
        patch.setattr(unet_family, "may_be_joined", lambda layout, widest: False)
        return function()


def predict(model: Any, kind: str, size: tuple[int, int], on_tiles: Any = None, **options: Any) -> Tensor:
    x, t, kwargs = unet_inputs(kind, *size)
    with torch.no_grad(), td.enable_tiling(model, **{"tile": 8, "unit": "latent", "halo": 4, **options}) as tiling:
        tiling.on_tiles = on_tiles
        return model(x, t, **kwargs).sample


OPTIONS: dict[str, dict[str, Any]] = {
    "halo": {},
    "all": {"halo": "all"},
    "wrapped": {"wrap": True},
    "wrapped on x": {"wrap": (False, True)},
    "weight": {"halo_schedule": lambda i, n: 0.5, "num_steps": 4},
    "no weight": {"halo_schedule": lambda i, n: 0.0, "num_steps": 4},
    "tile's size": {"size_conditioning": "tile"},
    "canvas's size": {"size_conditioning": "canvas"},
}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_joined_tiles_give_what_cut_ones_do(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_unet(kind)
    joined = predict(model, kind, (16, 24), **options)
    assert error(joined, cut(monkeypatch, lambda: predict(model, kind, (16, 24), **options))) < ROUNDING


@pytest.mark.parametrize(
    "config",
    [
        {"down_block_types": ("AttnDownBlock2D",) * 3, "up_block_types": ("AttnUpBlock2D",) * 3},
        {"downsample_padding": 0},
        {"mid_block_type": "UNetMidBlock2D"},
    ],
    ids=["attention blocks", "uneven padding", "plain middle"],
)
@pytest.mark.parametrize("wrap", [False, True])
def test_other_unets(config: dict[str, Any], wrap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_unet("sd", **config)
    joined = predict(model, "sd", (16, 24), wrap=wrap)
    assert error(joined, cut(monkeypatch, lambda: predict(model, "sd", (16, 24), wrap=wrap))) < ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_projections_and_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_unet("sd")
    model.fuse_qkv_projections()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        joined = predict(model, "sd", (16, 24))
        want = cut(monkeypatch, lambda: predict(model, "sd", (16, 24)))
    assert error(joined, want) < (ROUNDING if dtype == torch.float32 else 0.1)


def test_whoever_watches_gets_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_unet("sd"), list[Tensor]()

    def note(tiles: Tensor, layout: ta.TileLayout, step: int) -> None:
        seen.append(tiles)

    predict(model, "sd", (16, 24), on_tiles=note)
    cut(monkeypatch, lambda: predict(model, "sd", (16, 24), on_tiles=note))
    assert seen[0].shape == (6, 2, 4, 8, 8)
    assert error(seen[0], seen[1]) < ROUNDING


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 2),
        ({"wrap": True}, 2),
        ({"overlap": 4}, 2),
        ({"overlap": 4, "blend": "prediction"}, 2 * 15),
        ({"tile": (8, 16)}, 2),  # the last tile of a row overlaps
        ({"tile": (8, 16), "blend": "prediction"}, 2 * 4),
        ({"norm": "neighbours"}, 2 * 6),
        ({"norm": "tile"}, 2 * 6),
        ({"conv_halo": False}, 2 * 6),
        ({"halo": 0}, 2 * 6),
        ({"jitter": 1, "wrap": True}, 2 * 6),
        ({"tile": (16, 24)}, 2),
        ({"overlap": 4, "blend": "attention"}, 2),
        ({"tile": (8, 16), "blend": "attention"}, 2),
        ({"tile": (16, 24), "blend": "attention"}, 2),
    ],
    ids=str,
)
def test_which_tiles_stay_joined(options: dict[str, Any], rows: int) -> None:
    model, seen = make_unet("sd"), list[int]()
    model.conv_in.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    predict(model, "sd", (16, 24), **options)
    assert seen == [rows]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_crops_differ_from_tile_to_tile(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where a model is told of them."""
    model, seen = make_unet(kind), list[int]()
    model.conv_in.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    log_blending.cache_clear()
    caplog.set_level("INFO", "tiledattn")
    for _ in range(2):
        predict(model, kind, (16, 24), size_conditioning="crop", overlap=4)
    lines = [record.getMessage() for record in caplog.records if "blended as predictions" in record.getMessage()]
    if kind == "sd":
        assert (seen, lines) == ([2, 2], [])
        return
    assert seen == [30, 30]
    assert len(lines) == 1
    assert lines[0].startswith("UNet2DConditionModel: tiles that overlap")
    predict(model, kind, (16, 24), overlap=4, norm="tile")
    assert "not everything is coupled" in caplog.records[-1].getMessage()
    with pytest.raises(NotImplementedError, match=r"size_conditioning=.crop. tells every tile another place; use"):
        predict(model, kind, (16, 24), size_conditioning="crop", blend="attention")


def test_very_large_canvases_are_cut() -> None:
    assert may_be_joined(ta.TileLayout((512, 512), 128), 2560)
    assert not may_be_joined(ta.TileLayout((1024, 1024), 128), 2560)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_go_round(kind: str) -> None:
    layout = ta.TileLayout((16, 24), (8, 8), wrap=(False, True))
    conv = nn.Conv2d(8, 8, **CONVOLUTIONS[kind]).requires_grad_(False)
    canvas = torch.randn(2, 8, *layout.size)
    with RoundMode(Frame(layout, joined=True)):
        got = conv(canvas)
    assert error(got, wrapping(conv, 4)(canvas)) < 1e-5


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_padding_goes_round_on_every_level(factor: int) -> None:
    layout = ta.TileLayout((16, 24), (8, 8), wrap=(True, True))
    canvas = torch.randn(2, 8, *(n // factor for n in layout.size))
    pads = [(0, 1, 2, 1), (1, 1, 0, 0)]
    want = [F.pad(canvas, pad, mode="circular") for pad in pads]
    with RoundMode(Frame(layout, joined=True)):
        assert all(torch.equal(F.pad(canvas, pad), right) for pad, right in zip(pads, want, strict=True))
        with pytest.raises(NotImplementedError, match="zero padding of height and width"):
            F.pad(canvas, (0, 1))
        assert F.pad(canvas[..., 1:], (1, 0, 0, 0))[..., 0].abs().max() == 0  # of no level


STOPS_AT_ENDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), "bilinear"),
    "overlapping pool": (lambda x: F.max_pool2d(x, 3, stride=1, padding=1), "pooling"),
    "transposed": (nn.ConvTranspose2d(8, 8, 4, 2, 1), "transposed"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflect"),
    "padding by ones": (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "zero padding"),
    "cropping": (lambda x: F.pad(x, (-1, 1, 0, 0)), "zero padding"),
}


@pytest.mark.parametrize("kind", STOPS_AT_ENDS)
def test_what_would_stop_at_the_ends_is_refused(kind: str) -> None:
    function, words = STOPS_AT_ENDS[kind]
    layout = ta.TileLayout((16, 24), (8, 8), wrap=(False, True))
    with RoundMode(Frame(layout, joined=True)):
        with pytest.raises(NotImplementedError, match=words):
            function(torch.randn(2, 8, 16, 24))
        F.interpolate(torch.randn(2, 8, 16, 24), scale_factor=2.0, mode="nearest")
        torch.fft.fftn(torch.randn(2, 8, 16, 24), dim=(-2, -1))


def test_what_is_no_level_or_too_small_is_refused() -> None:
    layout = ta.TileLayout((4, 8), (4, 4), wrap=True)
    with RoundMode(Frame(layout, joined=True)):
        with pytest.raises(ValueError, match=r"no level of the canvas \(4, 8\)"):
            nn.Conv2d(8, 8, 3, padding=1)(torch.randn(2, 8, 5, 5))
        with pytest.raises(ValueError, match="got 2; it must be at most the level's 1"):
            nn.Conv2d(8, 8, 5, padding=2)(torch.randn(2, 8, 1, 2))
        assert nn.Conv2d(8, 8, 1)(torch.randn(2, 8, 5, 5)).shape[2:] == (5, 5)


def test_a_wrapped_canvas_is_the_circular_unet() -> None:
    model = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 24)
    got = predict(model, "sd", (16, 24), halo="all", wrap=(False, True))
    assert error(got, circular(model, (False, True))(x, t, **kwargs).sample) < ROUNDING


class LoopProcessor:
    """Self-attention of overlapping tiles, tile by tile, outputs averaged by weights; else stock."""

    def __init__(
        self, layout: ta.TileLayout, halo: int, weights: tuple[Tensor, Tensor], halo_weight: float = 1.0
    ) -> None:
        self.layout, self.halo, self.weights, self.halo_weight = layout, halo, weights, halo_weight

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *rest: Any, **more: Any
    ) -> Tensor:
        if encoder_hidden_states is not None:
            out: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, *rest, **more)
            return out
        factor = round((math.prod(self.layout.size) // hidden_states.shape[1]) ** 0.5)
        layout, halo = self.layout.scaled(factor), -(-self.halo // factor)
        ys, xs = (torch.arange(n) for n in layout.size)
        q, k, v = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )  # [B, H, N, D]
        total, weight = torch.zeros_like(q), torch.zeros(layout.size)
        for origin in layout.origins:
            own, seen = [], []
            for places, first, length, size, wrap in zip(
                (ys, xs), origin, layout.tile, layout.size, layout.wrap, strict=True
            ):
                local = (places - first) % size if wrap else places - first
                inside = (local >= 0) & (local < length)
                reach = (local >= -halo) & (local < length + halo)
                if wrap:
                    reach |= local - size >= -halo
                own.append(inside), seen.append(reach)
            queries = (own[0][:, None] & own[1]).flatten().nonzero()[:, 0]
            keys = (seen[0][:, None] & seen[1]).flatten().nonzero()[:, 0]
            bias = torch.where((own[0][:, None] & own[1]).flatten()[keys], 0.0, math.log(self.halo_weight))
            bias = bias.expand(len(queries), -1)
            part = F.scaled_dot_product_attention(
                q[:, :, queries], k[:, :, keys], v[:, :, keys], bias, scale=attn.scale
            )
            shares = []
            for axis, window in enumerate(self.weights):
                level = window.unflatten(0, (-1, factor)).mean(1)
                local = torch.arange(layout.size[axis]) - origin[axis]
                local = local % layout.size[axis] if layout.wrap[axis] else local
                shares.append(level[local[own[axis]]])
            here = (shares[0][:, None] * shares[1]).flatten()  # in the order of positions, as queries are
            total[:, :, queries] += part * here[:, None]
            weight.view(-1)[queries] += here
        out = (total / weight.flatten()[:, None]).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


@pytest.mark.parametrize("wrap", [(False, False), (False, True)])
@pytest.mark.parametrize(("overlap", "halo"), [(4, 4), (0, 4), (4, 1)])
def test_overlapping_tiles_blend_behind_attention(wrap: tuple[bool, bool], overlap: int, halo: int) -> None:
    """By loops over tiles; without overlap the last tile of a row shares its positions with the one before."""
    size = (16, 28)
    model, weights = make_unet("sd"), (torch.rand(8) + 0.1, torch.rand(8) + 0.1)
    options = {"overlap": overlap, "halo": halo, "wrap": wrap, "blend": "attention", "window": weights}
    got = predict(model, "sd", size, **options)
    loops = copy.deepcopy(model)
    loops.set_attn_processor(LoopProcessor(ta.TileLayout(size, 8, overlap, wrap), halo, weights))
    x, t, kwargs = unet_inputs("sd", *size)
    with torch.no_grad():
        want = circular(loops, wrap)(x, t, **kwargs).sample if any(wrap) else loops(x, t, **kwargs).sample
    assert error(got, want) < ROUNDING


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_halo_that_weighs_less(backend: str) -> None:
    size, model, weights = (16, 28), make_unet("sd"), (torch.rand(8) + 0.1, torch.rand(8) + 0.1)
    options = {"overlap": 4, "window": weights, "halo_schedule": lambda i, n: 0.25, "num_steps": 4, "backend": backend}
    loops = copy.deepcopy(model)
    loops.set_attn_processor(LoopProcessor(ta.TileLayout(size, 8, 4), 4, weights, 0.25))
    x, t, kwargs = unet_inputs("sd", *size)
    with torch.no_grad():
        assert error(predict(model, "sd", size, **options), loops(x, t, **kwargs).sample) < ROUNDING


@pytest.mark.parametrize("wrap", [(False, False), (True, False)])
def test_custom_windows_of_predictions(wrap: tuple[bool, bool]) -> None:
    """Tiles alone, one after the other, and their mean by the weights of each position."""
    layout, weights = ta.TileLayout((16, 28), 8, 4, wrap), (torch.linspace(0.1, 1, 8), torch.linspace(1, 0.2, 8))
    model, alone = make_unet("sd"), {"halo": 0, "conv_halo": False, "norm": "tile"}
    got = predict(model, "sd", layout.size, overlap=4, wrap=wrap, window=weights, **alone)
    x, t, kwargs = unet_inputs("sd", *layout.size)
    total, weight, share = torch.zeros_like(x), torch.zeros(layout.size), weights[0][:, None] * weights[1]
    for origin in layout.origins:
        rows, columns = ((torch.arange(8) + o) % n for o, n in zip(origin, layout.size, strict=True))
        with torch.no_grad():
            part = model(x[:, :, rows[:, None], columns], t, **kwargs).sample
        total[:, :, rows[:, None], columns] += part * share
        weight[rows[:, None], columns] += share
    assert error(got, total / weight) < ROUNDING


@given(st.tuples(*[st.integers(1, 12)] * 6), st.booleans(), st.booleans(), st.sampled_from(["uniform", "hann"]))
def test_overlapping_tokens_are_cut_and_blended_as_tiles_are(
    numbers: tuple[int, ...], down: bool, across: bool, window: str
) -> None:
    height, width, tall, wide, batch, channels = numbers
    tile = (min(tall, height), min(wide, width))
    layout = ta.TileLayout((height, width), tile, (tile[0] // 2, tile[1] // 3), (down, across))
    canvas = torch.randn(batch % 3 + 1, channels, *layout.size)
    tiles = split_tokens(canvas.flatten(2).transpose(1, 2), layout)
    assert torch.equal(tiles, ta.extract_tiles(canvas, layout).flatten(0, 1).flatten(2).transpose(1, 2))
    other = torch.randn_like(tiles)
    images = other.transpose(1, 2).reshape(layout.num_tiles, -1, channels, *layout.tile)
    want = ta.blend_tiles(images, layout, window).flatten(2).transpose(1, 2)
    assert torch.allclose(join_tokens(other, layout, window), want, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("window", ["uniform", "hann", "linear", "gaussian"])
def test_overlapping_tiles_that_see_everything_are_the_untiled_unet(kind: str, window: str) -> None:
    model = make_unet(kind)
    x, t, kwargs = unet_inputs(kind, 16, 28)
    with torch.no_grad():
        want = model(x, t, **kwargs).sample
    options = {"halo": "all", "overlap": 4, "blend": "attention", "window": window, "size_conditioning": "canvas"}
    assert error(predict(model, kind, (16, 28), **options), want) < ROUNDING


def test_watchers_get_tiles_that_agree_where_they_overlap() -> None:
    model, seen = make_unet("sd"), list[tuple[Tensor, ta.TileLayout]]()
    out = predict(model, "sd", (16, 24), on_tiles=lambda *a: seen.append(a[:2]), overlap=4, blend="attention")
    tiles, layout = seen[0]
    assert torch.equal(tiles, ta.extract_tiles(out, layout))


def test_fused_projections_autocast_and_gradients_of_overlapping_tiles() -> None:
    model = make_unet("sd")
    plain = predict(model, "sd", (16, 24), overlap=4, blend="attention")
    x, t, kwargs = unet_inputs("sd", 16, 24)
    x.requires_grad_()
    with td.enable_tiling(model, 8, 4, 4, unit="latent", blend="attention"):
        model(x, t, **kwargs).sample.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().min() > 0
    model.fuse_qkv_projections()
    assert error(predict(model, "sd", (16, 24), overlap=4, blend="attention"), plain) < ROUNDING
    with torch.autocast("cpu", torch.bfloat16):
        assert error(predict(model, "sd", (16, 24), overlap=4, blend="attention"), plain) < 0.1


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"blend": "end"}, ValueError, "blend: got 'end'; known are auto, prediction, attention"),
        ({"blend": None}, TypeError, "blend: got None"),
        ({"halo": 0}, ValueError, "everything coupled, but halo is 0; use"),
        ({"conv_halo": False}, ValueError, "but conv_halo is False; use"),
        ({"norm": "neighbours"}, ValueError, "but norm is .neighbours., not .canvas.; use"),
        ({"jitter": 1}, ValueError, "with jitter tiles differ there; .* leave jitter out"),
        ({"refresh": [0]}, ValueError, "with refresh tiles differ there"),
    ],
    ids=str,
)
def test_what_blending_behind_attention_needs(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    model = make_unet("sdxl")
    with pytest.raises(kind, match=words):
        td.enable_tiling(model, **{"tile": 8, "unit": "latent", "halo": 4, "blend": "attention", **options})
    assert not hasattr(model, "_diffusers_hook")


def test_transformers_and_what_must_be_cut_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="only the attention of UNets can be tiled alone"):
        td.enable_tiling(pixart.build()(), tile=8, unit="latent", blend="attention")
    with pytest.raises(NotImplementedError, match=r"joined, but 64 channels on \(16, 24\) positions have 2\^31"):
        cut(monkeypatch, lambda: predict(make_unet("sd"), "sd", (16, 24), blend="attention"))
