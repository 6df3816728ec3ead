"""Peers give what they are compared for: attention by the definition, blending and cutting."""

import pytest
import torch
from support import assert_within_budget, attention_inputs, oracle, plain_attention

import tiledattn as ta
from tiledattn.bench import attention_cases, peers, peers_tiles, ways

CPU = torch.device("cpu")
LAYOUTS = {
    "2 axes": (ta.TileLayout((32, 16), (16, 8), 0, True), (5, 3)),
    "3 axes": (ta.TileLayout((4, 16, 16), (2, 8, 8), 0, True), (1, 2, 3)),
    "1 axis": (ta.TileLayout(512, 128, 0, True), (40,)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("peer", ["gathered", "flex", "dense"])
@torch.no_grad()
def test_attention(name, peer, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # the mask is what is checked
    layout, halo = LAYOUTS[name]
    q, k, v = attention_inputs(layout, batch=2, heads=2, dim=16)
    rows, tokens = peers.gathered_rows(layout, halo, CPU), layout.tile_positions
    attend = {
        "gathered": lambda *x: peers.gather_and_attend(*x, rows),
        "flex": peers.flex_attention(tokens, rows),
        "dense": peers.dense_attention(tokens, rows, 1024),
    }[peer]
    exact, _ = oracle(q, k, v, layout, halo)
    assert_within_budget(attend(q, k, v), plain_attention(q, k, v, layout, halo), exact)


def test_what_peers_refuse():
    rows = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ways.NotOfferedError, match="tiles of 100 tokens are not whole blocks of 128"):
        peers.flex_attention(100, rows)
    with pytest.raises(ways.NotOfferedError, match="a mask of 200 x 200 tokens; measured up to 199"):
        peers.dense_attention(100, rows, 199)


@pytest.mark.parametrize("halo", [0, 3])
def test_the_judge_agrees_with_the_reference(halo):
    layout = ta.TileLayout((12, 20), (6, 10), 0, (False, True))
    inputs = attention_inputs(layout, heads=2, dim=8)
    judge = attention_cases.AttentionJudge(layout, (halo, halo), inputs)
    exact, _ = oracle(*inputs, layout, halo)
    torch.testing.assert_close(
        judge.results[True, True], exact[:, :, judge.rows].transpose(2, 3), rtol=1e-12, atol=1e-12
    )


def test_tiles():
    layout, flat = ta.TileLayout((28, 20), (12, 8), 4), ta.TileLayout((24, 24), (12, 8), 0)
    tiles = torch.randn(layout.num_tiles, 2, 3, *layout.tile, dtype=torch.float64)
    exact = ta.blend_tiles(tiles, layout, "uniform", backend="reference")
    torch.testing.assert_close(peers_tiles.multidiffusion(tiles, layout), exact)
    torch.testing.assert_close(peers_tiles.fold(tiles, layout), exact)
    assert torch.equal(peers_tiles.slices(exact, layout), ta.extract_tiles(exact, layout, backend="reference"))
    tiles = torch.randn(flat.num_tiles, 2, 3, *flat.tile)
    assert torch.equal(peers_tiles.pad_by_canvas(tiles, flat, 2), ta.pad_tiles(tiles, flat, 2, backend="reference"))


def test_a_copy_moves_as_many_bytes():
    assert peers_tiles.same_bytes(8000.0, torch.zeros(1, dtype=torch.float16)).numel() == 2000
