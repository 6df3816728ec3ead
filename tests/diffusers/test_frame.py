"""What layers are told of a forward pass."""

from __future__ import annotations

import pytest

import tiledattn as ta
from tiledattn.diffusers.frame import Frame


@pytest.mark.parametrize(
    ("halo", "tokens"), [((1, 1, 1), (1, 1, 1)), ((3, 3, 4), (3, 2, 2)), ((0, 5, 0), (0, 3, 0)), ("all", "all")]
)
def test_a_halo_in_tokens_reaches_as_far_as_in_positions(halo, tokens):
    layout = ta.TileLayout((4, 16, 16), (2, 8, 8))
    assert Frame(layout, halo, tokens=layout.scaled((1, 2, 2))).token_halo() == tokens


@pytest.mark.parametrize(("halo", "level"), [((8, 8), (4, 4)), ((3, 1), (2, 1)), ("all", "all")])
def test_a_halo_at_a_level_reaches_as_far(halo, level):
    assert Frame(ta.TileLayout((16, 16), (8, 8)), halo).level_halo(2) == level


def test_a_weight_of_zero_crosses_nothing():
    layout = ta.TileLayout((16, 16), (8, 8))
    assert Frame(layout, "all", 0.5, tokens=layout).crosses
    assert not Frame(layout, "all", 0.0, tokens=layout).crosses
    assert not Frame(ta.TileLayout(8, 8), "all", tokens=ta.TileLayout(8, 8)).crosses
