import pytest
import torch
from support import attention_inputs

import tiledattn as ta
from tiledattn.backends.pytorch import attention

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
WEIGHT = torch.full((), 0.5, dtype=torch.float64)
CALLS = {
    "attention": lambda x: OPS.cross_tile_attention(
        x["q"], x["k"], x["v"], MASK.to(x["q"].device), INTS, [1, 2], 1, WEIGHT, 0.3, True, None, True, "auto"
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
    arguments = (x["q"], x["k"], x["v"], MASK, INTS, [1, 2], 1, WEIGHT, 0.3)
    for lse, backend in ((False, "auto"), (True, "auto"), (True, "reference")):
        for frequencies in (None, torch.ones(2, 1)):
            check(OPS.cross_tile_attention, (*arguments, lse, frequencies, True, backend))
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
    real, shapes = (CALLS[name]({key: x.to(device) for key, x in tensors().items()}) for device in ("cpu", "meta"))
    pairs = zip(real, shapes, strict=True) if isinstance(real, tuple) else [(real, shapes)]
    for a, b in pairs:
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_a_changing_weight_does_not_recompile():
    torch._dynamo.reset()
    x = tensors()
    counted = torch._dynamo.testing.CompileCounter()

    def call(weight):
        return ta.cross_tile_attention(x["q"], x["k"], x["v"], LAYOUT, 1, num_prefix_tokens=1, halo_weight=weight)

    compiled = torch.compile(call, fullgraph=True, backend=counted)
    for weight in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        assert torch.equal(compiled(weight), call(weight))
    assert counted.frame_count <= 3  # 1.0; the first other value; any other value


def test_second_derivatives_of_the_linear_operations():
    x = tensors(torch.float64, requires_grad=True)
    check = torch.autograd.gradgradcheck
    assert check(lambda c: ta.extract_tiles(c, LAYOUT), x["canvas"])
    assert check(lambda t: ta.blend_tiles(t, LAYOUT, [torch.tensor([1.0, 3.0]), torch.ones(2)]), x["tiles"])
    assert check(lambda t: ta.pad_tiles(t, LAYOUT, (1, 3)), x["tiles"])


def test_second_derivatives_of_the_others_are_refused():
    x = tensors(requires_grad=True)
    for out, leaf in (
        (ta.cross_tile_attention(x["q"], x["k"], x["v"], LAYOUT, 1, num_prefix_tokens=1), x["q"]),
        (ta.group_norm_tiles(x["tiles"], LAYOUT, 2), x["tiles"]),
    ):
        with pytest.raises(RuntimeError, match="second derivatives are not supported"):
            torch.autograd.grad(out.sum(), leaf, create_graph=True)


def test_autocast_leaves_the_precision_alone():
    x = tensors()
    expected = {name: call(x) for name, call in CALLS.items()}
    with torch.autocast("cpu", torch.bfloat16):
        for name, call in CALLS.items():
            for a, b in zip(expected[name], call(x), strict=True):
                assert torch.equal(a, b)


def test_an_empty_batch_has_an_empty_gradient():
    q, k, v = (x[:, :0].detach().requires_grad_() for x in attention_inputs(LAYOUT))
    ta.cross_tile_attention(q, k, v, LAYOUT, 1).sum().backward()
    assert q.grad.shape == q.shape
    tiles = torch.zeros(LAYOUT.num_tiles, 0, 2, 2, 2, requires_grad=True)
    for out in (ta.group_norm_tiles(tiles, LAYOUT, 2), ta.pad_tiles(tiles, LAYOUT, 1), ta.blend_tiles(tiles, LAYOUT)):
        (grad,) = torch.autograd.grad(out.sum(), tiles)
        assert grad.shape == tiles.shape


def test_gradients_of_many_groups(monkeypatch):
    layout = ta.TileLayout((6, 6), 2, 1, (True, False))
    arguments = [x.double().requires_grad_() for x in attention_inputs(layout, batch=2, prefix=2, heads=4, kv_heads=2)]

    def grads():
        out, lse = ta.cross_tile_attention(*arguments, layout, 1, num_prefix_tokens=2, return_lse=True)
        return torch.autograd.grad(out.square().sum() + lse.sin().sum(), arguments)

    expected = grads()
    monkeypatch.setitem(attention.GATHER_BYTES, "cpu", 1)
    for a, b in zip(grads(), expected, strict=True):
        torch.testing.assert_close(a, b)
