"""Tiles with texts of unlike lengths, in models that place the picture behind the text: pictures stay side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import lumina2, zimage
from torch import Tensor

import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from ..test_families import error, run

SIZE, TILE = (16, 24), (16, 8)  # tiles of 32 tokens, which Z-Image needn't fill up


def shown(call: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
    """A call for tiles whose captions have other lengths, tile by tile."""
    if "cap_feats" in call:
        caption = call["cap_feats"][0]
        return {**call, "cap_feats": [caption.repeat(10, 1)[:n] for n in lengths]}
    return {**call, "encoder_attention_mask": torch.tensor([[k < n for k in range(6)] for n in lengths]).long()}


@pytest.mark.parametrize(
    ("module", "layers", "lengths"),
    [(lumina2, "num_layers", ([4, 4, 4], [4, 2, 5])), (zimage, "n_layers", ([7, 7, 7], [7, 40, 65]))],
    ids=["lumina2", "zimage"],
)
@pytest.mark.parametrize("halo", [4, "all"])
def test_a_neighbours_text_moves_nothing(
    monkeypatch: pytest.MonkeyPatch, module: Any, layers: str, lengths: tuple[list[int], ...], halo: Any
) -> None:
    """In one layer a neighbour's picture has not seen its text yet, of which then nothing but the place can show."""
    model = module.build(**{layers: 1})()
    family, tiles = type(family_of(model)), []
    original = family.tile_call
    for each in lengths:

        def tile_call(*args: Any, each: list[int] = each) -> dict[str, Any]:
            return shown(original(*args), each)

        monkeypatch.setattr(family, "tile_call", tile_call)
        with td.enable_tiling(model, tile=TILE, halo=halo, unit="latent") as tiling:

            def keep(predictions: Tensor, *rest: Any) -> None:
                tiles.append(predictions)

            tiling.on_tiles = keep
            run(model, module.call(SIZE, 1, torch.float32))
    same, other = tiles
    assert error(other[0], same[0]) < 1e-5
    assert error(other[1], same[1]) > 1e-3
