"""Lumina-Image 2.0: attention layer by layer, captions of unlike lengths in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers.lumina2 import build, call, unlike_captions
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td

from ..test_families import error, run
from .layers import Streams, layer_errors

CAPTION = 4
LAYOUTS = {
    "grid": ta.TileLayout((6, 8), (3, 4), 0),
    "row": ta.TileLayout((4, 12), (4, 3), 0),
    "overlapping": ta.TileLayout((6, 8), (4, 5), (2, 2)),
}


class Lumina2Streams(Streams):
    """The caption, then the image; the image alone in `noise_refiner`."""

    def caption(self, name: str) -> int:
        return 0 if name.startswith("noise_refiner") else CAPTION

    def split(self, name: str, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        hidden, length = kwargs["hidden_states"], self.caption(name)
        return hidden[:, :length], hidden[:, length:]

    def join(self, name: str, kwargs: dict[str, Any], text: Tensor, image: Tensor) -> dict[str, Any]:
        hidden = torch.cat([text, image], 1)
        return {**kwargs, "hidden_states": hidden, "encoder_hidden_states": hidden}

    def image_of(self, name: str, output: Any, text: int) -> Tensor:
        image: Tensor = output[:, text:]
        return image

    def seen_from(self, name: str, kwargs: dict[str, Any], origin: tuple[int, ...]) -> dict[str, Any]:
        tables, length = kwargs["image_rotary_emb"], self.caption(name)
        places = torch.tensor([[i, *origin] for i in range(length)], dtype=torch.int64).reshape(1, -1, 3)
        moved = self.model.rope_embedder._get_freqs_cis(places).expand(len(tables), -1, -1)
        return {**kwargs, "image_rotary_emb": torch.cat([moved, tables[:, length:]], 1)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout) -> None:
    streams = Lumina2Streams(build()(), call((2 * layout.size[0], 2 * layout.size[1]), 2, torch.float32))
    errors = layer_errors(streams, layout, halo="all")
    assert set(errors) == {"noise_refiner.0.attn", "layers.0.attn", "layers.1.attn"}
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(streams, layout, halo=0).values()) > 1e-2


@pytest.mark.parametrize("wrap", [False, True])
def test_rows_with_captions_of_unlike_lengths(wrap: bool) -> None:
    """A batch gives each row what it gets alone, though the canvas begins elsewhere in each row's sequence."""
    model, both = build()(), unlike_captions((16, 16), 2, torch.float32)
    assert both["encoder_attention_mask"].sum(1).tolist() == [2, 5]
    for halo in ("all", 4):
        with td.enable_tiling(model, tile=8, halo=halo, wrap=wrap, unit="latent"):
            got = run(model, both).unflatten(0, (2, -1))
            for row in range(2):
                alone = run(model, {name: value[row : row + 1] for name, value in both.items()})
                assert error(got[row], alone) < 1e-5


def test_a_larger_canvas_than_the_table_wrapped() -> None:
    """Positions are a tile's own, so that the model's table of 32 tokens an axis does for 128."""
    model, arguments = build()(), call((8, 256), 1, torch.float32)
    with td.enable_tiling(model, tile=(8, 32), unit="latent", wrap=(False, True)):
        assert run(model, arguments).isfinite().all()


def test_positions_of_the_canvas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions: .*counts an image's positions from 0"):
        td.enable_tiling(build()(), tile=8, unit="latent", positions="canvas")
