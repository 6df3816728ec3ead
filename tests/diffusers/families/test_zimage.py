"""Z-Image: attention layer by layer, padding, captions of unlike lengths, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers.zimage import build, call
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td

from ..test_families import error, run
from .layers import Streams, layer_errors

LAYOUTS = {  # tiles and canvases of multiples of 32 tokens, which the model needn't fill up
    "grid": ta.TileLayout((8, 16), (4, 8), 0),
    "row": ta.TileLayout((4, 24), (4, 8), 0),
    "overlapping": ta.TileLayout((8, 16), (8, 8), (0, 4)),
}


class ZImageStreams(Streams):
    """The image, then the caption; the image alone in `noise_refiner`."""

    tokens = 0

    def split(self, name: str, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        hidden = kwargs["hidden_states"]
        return hidden[:, self.tokens :], hidden[:, : self.tokens]

    def join(self, name: str, kwargs: dict[str, Any], text: Tensor, image: Tensor) -> dict[str, Any]:
        return {**kwargs, "hidden_states": torch.cat([image, text], 1)}

    def image_of(self, name: str, output: Any, text: int) -> Tensor:
        image: Tensor = output[:, : output.shape[1] - text]
        return image

    def seen_from(self, name: str, kwargs: dict[str, Any], origin: tuple[int, ...]) -> dict[str, Any]:
        image, text = kwargs["freqs_cis"].split([self.tokens, kwargs["freqs_cis"].shape[1] - self.tokens], 1)
        places = torch.tensor([[1 + i, *origin] for i in range(text.shape[1])], dtype=torch.int64).reshape(-1, 3)
        moved = self.model.rope_embedder(places).expand_as(text)
        return {**kwargs, "freqs_cis": torch.cat([image, moved], 1)}


def arguments(layout: ta.TileLayout) -> dict[str, Any]:
    """Captions of 32 tokens, which the model needn't fill up."""
    made = call((2 * layout.size[0], 2 * layout.size[1]), 2, torch.float32)
    return {**made, "cap_feats": [caption[:1].repeat(32, 1) for caption in made["cap_feats"]]}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout) -> None:
    streams = ZImageStreams(build()(), arguments(layout))
    streams.tokens = layout.size[0] * layout.size[1]
    errors = layer_errors(streams, layout, halo="all")
    assert set(errors) == {"noise_refiner.0.attention", "layers.0.attention", "layers.1.attention"}
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(streams, layout, halo=0).values()) > 1e-2


def test_rows_with_captions_of_unlike_lengths_are_masked() -> None:
    """A batch gives each row what it gets alone: the shorter one is filled up and masked."""
    model, both = build()(), call((8, 32), 2, torch.float32)
    assert [len(caption) for caption in both["cap_feats"]] == [7, 37]
    with td.enable_tiling(model, tile=(8, 16), halo="all", unit="latent"):
        got = run(model, both).unflatten(0, (2, -1))
        for row in range(2):
            alone = {**both, "x": both["x"][row : row + 1], "t": both["t"][row : row + 1]}
            alone["cap_feats"] = both["cap_feats"][row : row + 1]
            assert error(got[row], run(model, alone)) < 1e-5


def test_a_larger_canvas_than_the_table_wrapped() -> None:
    """Positions are a tile's own, so that the model's table of 32 tokens an axis does for 128."""
    model, arguments = build()(), call((8, 256), 1, torch.float32)
    with td.enable_tiling(model, tile=(8, 32), unit="latent", wrap=(False, True)):
        assert run(model, arguments).isfinite().all()


def test_outputs_are_lists_again() -> None:
    model, arguments = build()(), call((8, 32), 2, torch.float32)
    with td.enable_tiling(model, tile=(8, 16), unit="latent"), torch.no_grad():
        for output in (model(**arguments).sample, model(**arguments, return_dict=False)[0]):
            assert [tuple(item.shape) for item in output] == [(4, 1, 8, 32)] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"siglip_feats": [[torch.zeros(1)]]}, "siglip_feats"),
        ({"image_noise_mask": [[1]]}, "image_noise_mask"),
        ({"controlnet_block_samples": {0: torch.zeros(1)}}, "controlnet_block_samples"),
        ({"x": [[torch.zeros(4, 1, 8, 32)]] * 2}, "x: .*Omni"),
        ({"patch_size": 4}, "patch_size: got 4"),
        ({"f_patch_size": 2}, "f_patch_size: got 2"),
    ],
)
def test_what_is_refused(change: dict[str, Any], reason: str) -> None:
    model, arguments = build()(), call((8, 32), 2, torch.float32)
    with td.enable_tiling(model, tile=(8, 16), unit="latent"), pytest.raises(NotImplementedError, match=reason):
        run(model, {**arguments, **change})


def test_pictures_and_captions_must_fit() -> None:
    model, arguments = build()(), call((8, 32), 2, torch.float32)
    unlike = [arguments["x"][0], arguments["x"][1][..., :16]]
    with td.enable_tiling(model, tile=(8, 16), unit="latent"):
        with pytest.raises(ValueError, match="x: got shapes"):
            run(model, {**arguments, "x": unlike})
        with pytest.raises(ValueError, match="cap_feats: got 1 captions; x has 2"):
            run(model, {**arguments, "cap_feats": arguments["cap_feats"][:1]})


def test_positions_of_the_canvas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions: .*counts an image's positions from 0"):
        td.enable_tiling(build()(), tile=(8, 16), unit="latent", positions="canvas")
