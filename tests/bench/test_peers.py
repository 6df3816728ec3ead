"""Peers give what they are compared for: attention by the definition, blending and cutting."""

import math

import pytest
import torch
from support import assert_within_budget, attention_inputs, canvas_from_tokens, oracle, plain_attention

import tiledattn as ta
from tiledattn.bench import (
    attention_cases,
    attention_judge,
    backward_cases,
    gradient_judge,
    peers,
    peers_tiles,
    tile_cases,
    tile_judge,
    ways,
)

CPU = torch.device("cpu")
LAYOUTS = {
    "2 axes": (ta.TileLayout((32, 16), (16, 8), 0, True), (5, 3)),
    "3 axes": (ta.TileLayout((4, 16, 16), (2, 8, 8), 0, True), (1, 2, 3)),
    "1 axis": (ta.TileLayout(512, 128, 0, True), (40,)),
}


@pytest.mark.parametrize("prefix", [0, 128])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("peer", ["gathered", "flex", "dense"])
@torch.no_grad()
def test_attention(name, peer, prefix, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # the mask is what is checked
    layout, halo = LAYOUTS[name]
    q, k, v = attention_inputs(layout, batch=2, heads=2, dim=16, prefix=prefix)
    rows, tokens = peers.gathered_rows(layout, halo, CPU, prefix), prefix + layout.tile_positions
    attend = {
        "gathered": lambda *x: peers.gather_and_attend(*x, peers.of_batch(rows, tokens, 2), prefix),
        "flex": peers.flex_attention(tokens, rows, None, prefix),
        "dense": peers.dense_attention(tokens, rows, 2048, prefix),
    }[peer]
    exact, _ = oracle(q, k, v, layout, halo, num_prefix_tokens=prefix)
    plain = plain_attention(q, k, v, layout, halo, num_prefix_tokens=prefix)
    found = attend(q, k, v)
    assert_within_budget(found, plain, exact)
    found[-1, -1, 0] += 0.01
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(found, plain, exact)


def test_what_peers_refuse():
    rows, square = torch.zeros(2, 4, dtype=torch.long), ta.TileLayout((8, 8), 4)
    with pytest.raises(ways.NotOfferedError, match="tiles of 100 tokens are not whole blocks of 128"):
        peers.flex_attention(100, rows)
    with pytest.raises(ways.NotOfferedError, match="256 tokens would take minutes; measured up to 200"):
        peers.flex_attention(128, rows, 200)
    with pytest.raises(ways.NotOfferedError, match="a mask of 200 x 200 tokens; measured up to 199"):
        peers.dense_attention(100, rows, 199)
    with pytest.raises(ways.NotOfferedError, match="border see fewer tokens"):
        peers.gathered_rows(ta.TileLayout((12, 12), 4), (1, 1), CPU)
    with pytest.raises(ways.NotOfferedError, match="64 x 64 positions; measured up to 63"):
        peers.whole_canvas(square, 63)
    with pytest.raises(ways.NotOfferedError, match="no place for a prefix"):
        peers.whole_canvas(square, 64, 1)
    with pytest.raises(ways.NotOfferedError, match="across a wrap is no slice"):
        peers.whole_canvas(ta.TileLayout((8, 6), 4, 2, True), 64)
    case = attention_cases.AttentionCase("attention", "tiny", {}, ta.TileLayout((8, 8), 4, 0, True), (1, 1), 9999, 1, 9)
    with pytest.raises(ways.NotOfferedError, match=r"scores of 8\.3e\+08 bytes; measured up to 1\.0e\+08"):
        refuse(case, 10**8)


def refuse(case, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cases, "MOST_MATH_BYTES", {"cpu": most})
        case.refuse_scores(None, case._rows(CPU))
        case.refuse_scores(attention_cases.SDPA["cpu"]["math"], case._rows(CPU))


def on_the_canvas(q, k, v, layout):
    """Full attention of the averaged canvas, cut again, in float64, by the package's own reference operations."""
    canvases = [canvas_from_tokens(x, layout) for x in (q, k, v)]
    one = ta.TileLayout(layout.size, layout.size)
    tokens = [x.flatten(2).transpose(1, 2).reshape(1, x.shape[0], -1, *q.shape[3:]) for x in canvases]
    out, _ = oracle(*tokens, one, 0)
    canvas = out[0].flatten(2).transpose(1, 2).reshape(canvases[0].shape)
    tiles = ta.extract_tiles(canvas, layout, backend="reference")
    return tiles.flatten(3).transpose(2, 3).reshape(q.shape)


@pytest.mark.parametrize("layout", [ta.TileLayout((8, 10), (4, 6), (0, 2)), ta.TileLayout((4, 6, 4), (2, 6, 2))])
def test_the_whole_canvas(layout):
    q, k, v = attention_inputs(layout, batch=2, heads=2, dim=8)
    found = peers.whole_canvas(layout, 1000)(q, k, v)
    torch.testing.assert_close(found.double(), on_the_canvas(q, k, v, layout), rtol=1e-5, atol=1e-6)
    judge = attention_judge.AttentionJudge(layout, (1,) * len(layout.size), (q, k, v))
    way = ways.Way(attention_judge.WHOLE_CANVAS, "bound", lambda inputs: lambda: None)
    assert judge.verdict(found, way).passed
    assert not judge.verdict(peers.without_halo(q, k, v), way).passed
    assert not judge.verdict(found, way._replace(name=attention_judge.NO_HALO)).passed


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("halo", [0, 3])
def test_the_judge_agrees_with_the_reference(halo, prefix):
    layout = ta.TileLayout((12, 20), (6, 10), 0, (False, True))
    inputs = attention_inputs(layout, heads=2, dim=8, prefix=prefix)
    judge = attention_judge.AttentionJudge(layout, (halo, halo), inputs, None, prefix)
    for meaning, reach in (("halo", halo), ("tile", 0)):
        exact, _ = oracle(*inputs, layout, reach, num_prefix_tokens=prefix)
        right = exact[:, :, judge.rows(meaning)].transpose(2, 3)
        assert judge.rows(meaning).tolist() == list(range(prefix + 60)), "every row of a small case"
        torch.testing.assert_close(judge.result(meaning, "float64"), right, rtol=1e-12, atol=1e-12)


def test_the_judge_refuses_what_is_wrong_in_a_prefix_or_has_another_shape():
    layout = ta.TileLayout((8, 8), 4, 0, True)
    q, k, v = attention_inputs(layout, heads=2, dim=8, prefix=3)
    judge = attention_judge.AttentionJudge(layout, (1, 1), (q, k, v), None, 3)
    way = ways.Way("planted", "ours", lambda inputs: lambda: None)
    out = ta.cross_tile_attention(q, k, v, layout, 1, num_prefix_tokens=3, backend="torch")
    assert judge.verdict(out, way).passed
    assert math.isinf(judge.verdict(out[:, :, 3:], way).error)
    out[:, :, 0] *= 1.01
    assert not judge.verdict(out, way).passed


def planted(layout, halo, dtype, batch=2):
    """A judge, what it should pass, and a way."""
    inputs = attention_inputs(layout, batch=batch, heads=2, dim=16, dtype=dtype)
    judge = attention_judge.AttentionJudge(layout, halo, inputs)
    out = ta.cross_tile_attention(*inputs, layout, halo, backend="torch")
    return judge, out, ways.Way("planted", "ours", lambda inputs: lambda: None)


@pytest.fixture
def large(monkeypatch):
    """Every case is too large to be compared with float64 as a whole."""
    monkeypatch.setattr(attention_judge, "MOST_EXACT_SCORES", {"cpu": 0})
    monkeypatch.setattr(gradient_judge, "MOST_EXACT_SCORES", {"cpu": 0})


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_judge_looks_at_every_row(dtype, size, request):
    if size == "large":
        request.getfixturevalue("large")
    judge, out, way = planted(ta.TileLayout((32, 48), 16, 0, True), (5, 3), dtype)
    assert judge.verdict(out, way).passed
    looked_at = set(judge.rows("halo").tolist())
    assert (len(looked_at) == 256) == (size == "small")
    wrong = out.clone()
    for row in set(range(256)) - looked_at or {100}:
        wrong[:, :, row] = 0
    assert not judge.verdict(wrong, way).passed
    wrong = out.clone()
    wrong[3, 1, min(set(range(256)) - looked_at, default=100), 1] *= 1.5
    assert not judge.verdict(wrong, way).passed, "one row of one head of one batch entry"


def test_large_canvases_of_mad_are_looked_at_whole(large):
    layout = ta.TileLayout((16, 24), 8)
    q, k, v = attention_inputs(layout, heads=2, dim=8)
    judge = attention_judge.AttentionJudge(layout, (1, 1), (q, k, v))
    way = ways.Way(attention_judge.WHOLE_CANVAS, "bound", lambda inputs: lambda: None)
    out = peers.whole_canvas(layout, 1000)(q, k, v)
    assert judge.verdict(out, way).passed
    row = min(set(range(64)) - set(judge.rows("canvas").tolist()))
    out[0, :, row] *= 1.01
    assert not judge.verdict(out, way).passed


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_judge_of_gradients_looks_at_every_head(dtype, size, request):
    if size == "large":
        request.getfixturevalue("large")
    case = backward_cases.BackwardCase("gradients", "tiny", {}, ta.TileLayout((16, 24), 8, 0, True), (3, 2), 3, 16, 2)
    inputs = case.inputs(CPU, dtype, 0)
    judge = case.judge(inputs)
    for way in case.ways(CPU, dtype):
        if way.name != "FlexAttention":
            right = way.prepare(inputs)()
            assert judge(right, way).passed
    for number in range(3):
        for wrong_part in ((slice(None), 0), (slice(None), 1, slice(None), 0), (2, 0, 5, 1)):
            wrong = [x.clone() for x in right]
            wrong[number][wrong_part] = 0
            assert not judge(wrong, way).passed
    assert not judge([x.to(torch.float16) for x in right], way).passed


def test_the_formula_of_gradients_is_that_of_autograd():
    layout, halo = ta.TileLayout((12, 8), 4, 0, True), (1, 2)
    inputs = tuple(attention_inputs(layout, batch=2, heads=2, dim=8, dtype=torch.float64)) * 2
    q, k, v = (x.clone().requires_grad_() for x in inputs[:3])
    out = ta.cross_tile_attention(q, k, v, layout, halo, backend="reference")
    expected = torch.autograd.grad(out, (q, k, v), inputs[3])
    judge = gradient_judge.GradientJudge(layout, halo, inputs[:4])
    for found, right in zip(judge._exactly, expected, strict=True):
        torch.testing.assert_close(found, gradient_judge.by_head(right), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_chooses_its_own_tolerance(dtype):
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    judge, out, way = planted(ta.TileLayout((8, 8), 4, 0, True), (1, 1), dtype)
    assert judge.verdict(out, way).passed
    assert not judge.verdict(out.to(other), way).passed
    assert not judge.verdict(out.double(), way).passed
    for operation in ("blending", "extraction", "padding"):
        layout = ta.TileLayout((8, 8), 4, 2 * (operation != "padding"))
        case = tile_cases.TileCase(operation, "tiny", {}, layout, 3, 1)
        inputs = case.inputs(CPU, dtype, 0)
        right = case.ways(CPU, dtype)[0].prepare(inputs)()
        assert case.judge(inputs)(right, way).passed
        assert not case.judge(inputs)(right.to(other), way).passed
    exact = torch.randn(4, 8, dtype=torch.float64)
    assert ways.budget(exact.to(dtype), exact.to(dtype), exact).passed
    assert not ways.budget(exact.to(other), exact.to(dtype), exact).passed


def test_the_worst_row_is_not_averaged_away():
    exact = torch.randn(1000, 8, dtype=torch.float64)
    plain = exact.bfloat16()
    wrong = plain.clone()
    wrong[500] *= 1.1
    assert ways.budget(wrong, plain, exact).passed
    assert not ways.budget_by_rows(wrong, plain, exact).passed
    assert ways.budget_by_rows(plain, plain, exact).passed
    assert math.isinf(ways.worst_row(wrong[1:], exact))
    wrong[0, 0] = float("nan")
    assert math.isinf(ways.worst_row(wrong, exact))


LAYOUTS_OF_TILES = (
    ta.TileLayout((28, 21), (12, 8), (4, 3)),
    ta.TileLayout((24, 20), (12, 8), (6, 3), True),
    ta.TileLayout((8, 10, 9), (4, 10, 5), (1, 0, 2), (True, False, False)),
    ta.TileLayout(30, 12, 5),
)


@pytest.mark.parametrize("layout", LAYOUTS_OF_TILES, ids=str)
def test_the_judge_of_tiles_is_the_reference(layout):
    tiles = torch.randn(layout.num_tiles, 2, 3, *layout.tile, dtype=torch.float64)
    canvas = ta.blend_tiles(tiles, layout, "uniform", backend="reference")
    torch.testing.assert_close(tile_judge.blended(tiles, layout), canvas, rtol=1e-12, atol=1e-12)
    right = ta.extract_tiles(canvas, layout, backend="reference")
    assert torch.equal(tile_judge.extracted(canvas, layout), right)
    assert torch.equal(tile_judge.padded(tiles, layout, 2), ta.pad_tiles(tiles, layout, 2, backend="reference"))


def test_tiles():
    layout, flat = ta.TileLayout((28, 20), (12, 8), 4), ta.TileLayout((24, 24), (12, 8), 0)
    tiles = torch.randn(layout.num_tiles, 2, 3, *layout.tile, dtype=torch.float64)
    exact = ta.blend_tiles(tiles, layout, "uniform", backend="reference")
    loop = peers_tiles.multidiffusion(tiles, layout)
    for _ in range(2):  # what was added before is zeroed
        torch.testing.assert_close(loop(), exact)
    torch.testing.assert_close(peers_tiles.fold(tiles, layout), exact)
    right = ta.extract_tiles(exact, layout, backend="reference")
    for cut in (peers_tiles.slices, peers_tiles.unfold):
        assert torch.equal(cut(exact, layout), right)
        into = torch.full_like(right, torch.nan)
        assert cut(exact, layout, out=into) is into
        assert torch.equal(into, right)
    tiles = torch.randn(flat.num_tiles, 2, 3, *flat.tile)
    assert torch.equal(peers_tiles.pad_by_canvas(tiles, flat, 2), ta.pad_tiles(tiles, flat, 2, backend="reference"))


def test_fold_and_unfold_have_one_step():
    layout = ta.TileLayout((29, 20), (12, 8), 4)
    with pytest.raises(ways.NotOfferedError, match=r"F\.fold has one step; here the last tiles lie nearer"):
        peers_tiles.fold(torch.zeros(layout.num_tiles, 1, 1, 12, 8), layout)
    with pytest.raises(ways.NotOfferedError, match="unfold has one step; here the last tiles lie nearer"):
        peers_tiles.unfold(torch.zeros(1, 1, 29, 20), layout)


def test_a_copy_moves_as_many_bytes():
    assert peers_tiles.same_bytes(8000.0, torch.zeros(1, dtype=torch.float16)).numel() == 2000


def test_what_gathers_before_is_other_work_but_judged_by_the_same_result():
    case = attention_cases.AttentionCase("attention", "tiny", {}, ta.TileLayout((12, 12), 4, 0, True), (1, 1), 2, 8, 1)
    inputs = case.inputs(CPU, torch.float32, 0)
    (before,) = [way for way in case.ways(CPU, torch.float32) if way.name == "SDPA, gathered before"]
    assert before.kind == "bound"
    judge = case.judge(inputs)
    assert judge(before.prepare(inputs)(), before).passed
    assert not judge(peers.without_halo(*inputs), before).passed
