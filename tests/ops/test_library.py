import pytest
import torch
from support import attention_inputs

import tiledattn as ta

LAYOUT = ta.TileLayout((3, 4), (2, 2), (1, 0), (False, True))
INTS = LAYOUT.as_ints()
OPS = torch.ops.tiledattn


def tensors(dtype=torch.float32, requires_grad=False):
    torch.manual_seed(0)
    q, k, v = attention_inputs(LAYOUT, prefix=1, heads=2, kv_heads=1, dim=2, dtype=dtype)
    canvas, tiles = torch.randn(1, 2, 3, 4, dtype=dtype), torch.randn(LAYOUT.num_tiles, 1, 2, 2, 2, dtype=dtype)
    found = {"q": q, "k": k, "v": v, "canvas": canvas, "tiles": tiles, "weight": torch.randn(2, dtype=dtype)}
    return {name: x.contiguous().requires_grad_(requires_grad) for name, x in found.items()}


MASK = torch.tensor([True, False, True, False]).view(4, 1, 1)
CALLS = {
    "attention": lambda x: OPS.cross_tile_attention(
        x["q"], x["k"], x["v"], MASK, INTS, [1, 2], 1, 0.5, 0.3, True, "auto"
    ),
    "extract": lambda x: OPS.extract_tiles(x["canvas"], INTS, "auto"),
    "blend": lambda x: OPS.blend_tiles(x["tiles"], [], INTS, "hann", "auto"),
    "pad": lambda x: OPS.pad_tiles(x["tiles"], INTS, [1, 2], "auto"),
    "norm": lambda x: OPS.group_norm_tiles(x["tiles"], x["weight"], None, INTS, 2, 1e-5, "neighbours", "auto"),
}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_are_registered_as_torch_wants_them(requires_grad):
    x = tensors(requires_grad=requires_grad)
    check = torch.library.opcheck
    for lse in (False, True):
        check(OPS.cross_tile_attention, (x["q"], x["k"], x["v"], MASK, INTS, [1, 2], 1, 0.5, 0.3, lse, "auto"))
    check(OPS.extract_tiles, (x["canvas"], INTS, "auto"))
    check(OPS.blend_tiles, (x["tiles"], [], INTS, "hann", "auto"))
    check(OPS.blend_tiles, (x["tiles"], [torch.ones(2), torch.ones(2)], INTS, "", "auto"))
    check(OPS.pad_tiles, (x["tiles"], INTS, [1, 2], "auto"))
    check(OPS.group_norm_tiles, (x["tiles"], x["weight"], None, INTS, 2, 1e-5, "neighbours", "auto"))


def test_attention_gradients():
    x = tensors(torch.float64, requires_grad=True)

    def call(q, k, v):
        return ta.cross_tile_attention(
            q, k, v, LAYOUT, 1, num_prefix_tokens=1, prefix_mask=MASK, halo_weight=0.5, return_lse=True
        )

    assert torch.autograd.gradcheck(call, (x["q"], x["k"], x["v"]), fast_mode=True)
    assert torch.autograd.gradcheck(lambda q, k, v: call(q, k, v)[0], (x["q"], x["k"], x["v"]))


@pytest.mark.parametrize("scope", ["tile", "neighbours", "canvas"])
def test_norm_gradients(scope):
    x = tensors(torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t, w, b: ta.group_norm_tiles(t, LAYOUT, 2, w, b, scope=scope), (x["tiles"], x["weight"], bias)
    )


def test_gradients_of_the_linear_operations():
    x = tensors(torch.float64, requires_grad=True)
    own = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])]
    assert torch.autograd.gradcheck(lambda c: ta.extract_tiles(c, LAYOUT), x["canvas"])
    assert torch.autograd.gradcheck(lambda t: ta.blend_tiles(t, LAYOUT, "gaussian"), x["tiles"])
    assert torch.autograd.gradcheck(lambda t: ta.blend_tiles(t, LAYOUT, own), x["tiles"])
    assert torch.autograd.gradcheck(lambda t: ta.pad_tiles(t, LAYOUT, (1, 3)), x["tiles"])


def chain(canvas, q, k, v):
    tiles = ta.pad_tiles(ta.extract_tiles(canvas, LAYOUT), LAYOUT, 1)[..., 1:-1, 1:-1]
    blended = ta.blend_tiles(ta.group_norm_tiles(tiles, LAYOUT, 2), LAYOUT, "linear")
    out = ta.cross_tile_attention(q, k, v, LAYOUT, "all", num_prefix_tokens=1)
    return blended.sum() + out.square().sum()


def test_one_graph_under_compile_with_gradients():
    torch._dynamo.reset()
    x = tensors(requires_grad=True)
    arguments = [x[name] for name in ("canvas", "q", "k", "v")]
    expected = torch.autograd.grad(chain(*arguments), arguments)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*arguments), arguments), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_tables_made_in_inference_mode_serve_training():
    layout = ta.TileLayout((5, 7), (3, 3), (1, 1), True)  # a layout of its own: nothing is cached yet
    with torch.inference_mode():
        q, k, v = attention_inputs(layout)
        ta.cross_tile_attention(q, k, v, layout, 1)
        tiles = torch.randn(layout.num_tiles, 1, 2, 3, 3)
        ta.blend_tiles(tiles, layout)
        ta.group_norm_tiles(tiles, layout, 1, scope="neighbours")
    q, k, v = (x.requires_grad_() for x in attention_inputs(layout))
    ta.cross_tile_attention(q, k, v, layout, 1).sum().backward()
    tiles = torch.randn(layout.num_tiles, 1, 2, 3, 3, requires_grad=True)
    (ta.blend_tiles(tiles, layout).sum() + ta.group_norm_tiles(tiles, layout, 1, scope="neighbours").sum()).backward()
    assert torch.isfinite(tiles.grad).all()


@pytest.mark.parametrize("name", list(CALLS))
def test_meta_tensors_give_shapes(name):
    real = CALLS[name](tensors())
    shapes = CALLS[name]({key: x.to("meta") for key, x in tensors().items()}) if name != "attention" else None
    if shapes is not None:
        assert shapes.shape == real.shape
