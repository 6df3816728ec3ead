"""Stable Diffusion 3: attention layer by layer, positions of the canvas, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers.sd3 import CONFIG, build, call
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td

from ..test_families import error, run
from .layers import Streams, layer_errors, watch

LAYOUTS = {
    "grid": ta.TileLayout((6, 8), (3, 4), 0),
    "row": ta.TileLayout((4, 12), (4, 3), 0),
    "overlapping": ta.TileLayout((6, 8), (4, 5), (2, 2)),
}


class SD3Streams(Streams):
    """Two streams in `attn`, the image alone in `attn2` (SD 3.5)."""

    def split(self, name: str, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        image = kwargs["hidden_states"]
        return kwargs.get("encoder_hidden_states", image[:, :0]), image

    def join(self, name: str, kwargs: dict[str, Any], text: Tensor, image: Tensor) -> dict[str, Any]:
        streams = {"hidden_states": image, "encoder_hidden_states": text}
        return {**kwargs, **{key: value for key, value in streams.items() if key in kwargs}}

    def image_of(self, name: str, output: Any, text: int) -> Tensor:
        image: Tensor = output[0] if isinstance(output, tuple) else output
        return image


def sd35() -> Any:
    return build(dual_attention_layers=(0, 1), qk_norm="rms_norm")()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", [build(), sd35], ids=["sd3", "sd3.5"])
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout, make: Any) -> None:
    streams = SD3Streams(make(), call((layout.size[0] * 2, layout.size[1] * 2), 2, torch.float32))
    errors = layer_errors(streams, layout, halo="all")
    assert len(errors) == (5 if make is sd35 else 3)
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(streams, layout, halo=0).values()) > 1e-2


def test_the_first_layer_is_the_untiled_one_where_positions_are_the_canvas() -> None:
    """Nothing is put in: the patches with their positions are those of the untiled model."""
    streams, layout = SD3Streams(sd35(), call((16, 16), 2, torch.float32)), ta.TileLayout((8, 8), (4, 4), 0)
    first = "transformer_blocks.0.attn"
    errors = {}
    with torch.no_grad():
        want = streams.image_of(first, watch(streams, {})[first][1], 5)
        for positions in ("canvas", "tile"):
            with td.enable_tiling(streams.model, tile=8, halo="all", positions=positions, unit="latent"):
                tiles = streams.image_of(first, watch(streams, {})[first][1], 5).unflatten(0, (4, -1))
            got = ta.blend_tiles(tiles.transpose(2, 3).unflatten(3, (4, 4)), layout)
            errors[positions] = error(got.flatten(2).transpose(1, 2), want)
    assert errors["canvas"] < 1e-5
    assert errors["tile"] > 1e-2


def test_positions_are_the_centre_of_the_table() -> None:
    """As without tiling: tiles share the canvas's centre crop."""
    model, seen = build()(), []
    arguments = call((16, 24), 1, torch.float32)
    handle = model.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    run(model, arguments)
    with td.enable_tiling(model, tile=8, positions="canvas", unit="latent"):
        run(model, arguments)
    handle.remove()
    tiles = seen[1].unflatten(0, (6, 1)).transpose(2, 3).unflatten(3, (4, 4))
    patches = ta.blend_tiles(tiles, ta.TileLayout((8, 12), (4, 4), 0)).flatten(2).transpose(1, 2)
    assert torch.allclose(patches, seen[0], atol=1e-6)


def test_a_table_that_is_too_small_says_what_fits() -> None:
    model = build()()
    with td.enable_tiling(model, tile=8, positions="canvas", unit="latent"):
        assert run(model, call((24, 24), 1, torch.float32)).isfinite().all()
        with pytest.raises(ValueError, match=r"\(32, 16\) latents.*\(24, 24\) latents, \(192, 192\) pixels.*tile"):
            run(model, call((32, 16), 1, torch.float32))


def test_a_canvas_far_larger_than_the_table() -> None:
    model = build()()
    assert CONFIG["pos_embed_max_size"] * 2 < 64
    with td.enable_tiling(model, tile=8, unit="latent", wrap=(False, True)):
        assert run(model, call((8, 64), 1, torch.float32)).isfinite().all()


def test_layers_can_be_skipped() -> None:
    """Skip-layer guidance of SD 3.5."""
    model, arguments = sd35(), call((16, 16), 1, torch.float32)
    want = run(model, {**arguments, "skip_layers": [1]})
    with td.enable_tiling(model, tile=16, unit="latent"):
        assert error(run(model, {**arguments, "skip_layers": [1]}), want) < 1e-6
    with td.enable_tiling(model, tile=8, unit="latent"):
        assert error(run(model, {**arguments, "skip_layers": [1]}), run(model, arguments)) > 1e-3


def test_fused_projections() -> None:
    model, arguments = build()(), call((16, 16), 1, torch.float32)
    with td.enable_tiling(model, tile=8, halo="all", unit="latent"):
        want = run(model, arguments)
        model.fuse_qkv_projections()
        assert error(run(model, arguments), want) < 1e-5


def test_ip_adapter_is_refused() -> None:
    model, arguments = build()(), call((16, 16), 1, torch.float32)
    with td.enable_tiling(model, tile=8, unit="latent"):
        extra = {"ip_adapter_image_embeds": torch.zeros(1, 4, 8)}
        with pytest.raises(NotImplementedError, match="ip_adapter_image_embeds"):
            run(model, {**arguments, "joint_attention_kwargs": extra})
        assert run(model, {**arguments, "joint_attention_kwargs": {"scale": 1.0}}).isfinite().all()
