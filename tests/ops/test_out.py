"""Results into memory that is given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BACKENDS, layouts

import tiledattn as ta

LAYOUT = ta.TileLayout((20, 26), (8, 10), (2, 4))
CANVAS = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(0))
TILES = ta.extract_tiles(CANVAS, LAYOUT, backend="torch")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def extract(out, canvas=CANVAS, **options):
    return ta.extract_tiles(canvas, LAYOUT, out=out, **options)


def blend(out, tiles=TILES, **options):
    return ta.blend_tiles(tiles, LAYOUT, out=out, **options)


BOTH = pytest.mark.parametrize(("op", "x", "like"), [(extract, CANVAS, TILES), (blend, TILES, CANVAS)])


@each_backend
@settings(max_examples=25, deadline=None)
@given(
    layout=layouts(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    batch=st.integers(0, 2),
    offset=st.integers(0, 3),
)
def test_the_same_bits_as_in_new_memory_and_nothing_around(backend, layout, dtype, batch, offset):
    canvas = torch.randn(batch, 2, *layout.size, dtype=torch.float64).to(dtype)
    tiles = ta.extract_tiles(canvas, layout, backend=backend)
    blended = ta.blend_tiles(tiles, layout, "hann", backend=backend)
    for right, call in (
        (tiles, lambda out: ta.extract_tiles(canvas, layout, out=out, backend=backend)),
        (blended, lambda out: ta.blend_tiles(tiles, layout, "hann", out=out, backend=backend)),
    ):
        memory = torch.full((right.numel() + 8,), torch.nan, dtype=dtype)
        out = memory[offset : offset + right.numel()].view(right.shape)
        assert call(out) is out
        assert torch.equal(out, right)
        assert memory[:offset].isnan().all()
        assert memory[offset + right.numel() :].isnan().all()


@BOTH
def test_what_can_not_take_the_result_is_refused(op, x, like):
    shape = ", ".join(map(str, like.shape))
    for out, error, message in [
        ([1.0], TypeError, "out: got list; expected a torch.Tensor"),
        (torch.empty(3), ValueError, rf"out: shape is \[3\]; the result needs \[{shape}\]"),
        (torch.empty_like(like, dtype=torch.float64), TypeError, "out: dtype is torch.float64, but"),
        (torch.empty_like(like, device="meta"), ValueError, "out: on meta, but"),
        (torch.empty(*like.shape[:-2], 1, 1).expand_as(like), ValueError, "out: not contiguous"),
    ]:
        with pytest.raises(error, match=message):
            op(out)


@BOTH
def test_gradients_do_not_flow_through_it(op, x, like):
    given = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"out: no gradients flow through it, but .* requires grad"):
        op(torch.empty_like(like), given)
    with pytest.raises(RuntimeError, match="but out requires grad"):
        op(torch.empty_like(like).requires_grad_())
    with torch.no_grad():
        assert torch.equal(op(torch.empty_like(like), given), op(torch.empty_like(like)))


@BOTH
@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.nn.Parameter])
def test_autograd_hears_that_it_changed(op, x, like, kind):
    """Also by way of the dispatcher, where subclasses of tensors go."""
    out = torch.zeros_like(like)
    factor = torch.ones_like(like).requires_grad_()
    product = (factor * out).sum()
    with torch.no_grad():
        op(out, kind(x))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_it_may_not_overlap_what_is_read():
    memory = torch.randn(4 * CANVAS.numel())
    layout = ta.TileLayout((20, 26), (20, 26))
    canvas, other = (memory[i : i + CANVAS.numel()].view_as(CANVAS) for i in (0, CANVAS.numel()))
    assert torch.equal(ta.extract_tiles(canvas, layout, out=other[None])[0], canvas)
    shifted = memory[5 : 5 + CANVAS.numel()].view_as(CANVAS)
    for out in (canvas, shifted):
        with pytest.raises(ValueError, match="out: shares memory with canvas"):
            ta.extract_tiles(canvas, layout, out=out[None])
        with pytest.raises(ValueError, match="out: shares memory with tiles"):
            ta.blend_tiles(canvas[None], layout, out=out)
    array = memory.numpy()  # two storages, one memory
    again = torch.from_numpy(array)[3 : 3 + CANVAS.numel()].view_as(CANVAS)
    with pytest.raises(ValueError, match="out: shares memory with canvas"):
        ta.extract_tiles(canvas, layout, out=again[None])


@BOTH
def test_compiled_and_on_meta(op, x, like):
    eager = op(torch.empty_like(like))
    compiled = torch.compile(lambda out, x: op(out, x) * 2, fullgraph=True, backend="aot_eager")
    out = torch.zeros_like(like)
    assert torch.equal(compiled(out, x), eager * 2)
    assert torch.equal(out, eager)
    out = like.to("meta")
    assert op(out, x.to("meta")) is out


@each_backend
@BOTH
def test_inference_tensors_are_filled_in_inference_mode_alone(op, x, like, backend):
    with torch.inference_mode():
        out = torch.empty_like(like)
        assert torch.equal(op(out, backend=backend), op(torch.empty_like(like), backend=backend))
    with pytest.raises(RuntimeError, match="out: an inference tensor can be written to in inference mode only"):
        op(out, backend=backend)


@BOTH
def test_the_named_backend_is_taken_and_the_operator_is_sound(op, x, like):
    with pytest.raises(ta.BackendUnavailableError):
        op(torch.empty_like(like), backend="cuda")
    name = "extract_tiles_out" if op is extract else "blend_tiles_out"
    windows = () if op is extract else ([],)
    kind = () if op is extract else ("hann",)
    arguments = (x, *windows, LAYOUT.as_ints(), *kind, "torch", torch.empty_like(like))
    torch.library.opcheck(getattr(torch.ops.tiledattn, name).default, arguments)
