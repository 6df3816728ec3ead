"""Cutting, padding and blending on a GPU, every backend against the reference."""

import pytest
import torch
from gpu.where import DEVICE, DTYPES, MARKS, offered, to_device
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import layouts, relative_error

import tiledattn as ta

pytestmark = MARKS
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

LAYOUTS = {
    "1 axis": (ta.TileLayout(64, 24, 7), 3),
    "2 axes, odd": (ta.TileLayout((11, 29), (7, 13), (2, 3), (False, True)), (1, 2)),
    "2 axes, whole vectors": (ta.TileLayout((16, 48), (16, 16), 0, True), 8),
    "3 axes": (ta.TileLayout((4, 8, 10), (2, 4, 5), (1, 0, 2), (True, False, True)), (0, 1, 1)),
    "one tile": (ta.TileLayout((6, 8), (6, 8), 0, True), 2),
}


def random(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(x):
    """The same values, channels last, with gaps."""
    wide = torch.stack([x, x], -1).movedim(2 if x.ndim > 4 else 1, -1).contiguous().movedim(-1, 2 if x.ndim > 4 else 1)
    return wide[..., 0]


def check(backend, layout, pad, dtype, form=lambda x: x):
    lead = (2, 3)
    canvas = form(random((*lead, *layout.size), dtype))
    tiles = form(random((layout.num_tiles, *lead, *layout.tile), dtype, 1))
    found = offered(ta.extract_tiles, to_device(canvas), layout, backend=backend)
    assert torch.equal(found.cpu(), ta.extract_tiles(canvas, layout, backend="reference"))
    found = offered(ta.pad_tiles, to_device(tiles), layout, pad, backend=backend)
    assert torch.equal(found.cpu(), ta.pad_tiles(tiles, layout, pad, backend="reference"))
    exact = ta.blend_tiles(tiles.double(), layout, backend="reference")
    found = offered(ta.blend_tiles, to_device(tiles), layout, backend=backend)
    assert found.is_contiguous()
    assert relative_error(found.cpu(), exact) <= 2 * torch.finfo(dtype).eps
    assert torch.equal(found, ta.blend_tiles(to_device(tiles), layout, backend=backend))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("form", [lambda x: x, strided], ids=["contiguous", "strided"])
def test_layouts(backend, case, dtype, form):
    check(backend, *LAYOUTS[case], DTYPES[dtype], form)


@few
@given(layouts(), st.sampled_from(list(DTYPES)))
def test_random_layouts(backend, layout, dtype):
    check(backend, layout, tuple(n // 3 for n in layout.tile), DTYPES[dtype])


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_memory_that_is_not_aligned(backend, offset):
    layout = ta.TileLayout((16, 64), (16, 32), (0, 16))
    values = random((1, 2, *layout.size), torch.float16)
    memory = torch.full((values.numel() + offset,), float("nan"), dtype=torch.float16, device=DEVICE)
    canvas = memory[offset:].view(values.shape).copy_(values)
    found = offered(ta.extract_tiles, canvas, layout, backend=backend)
    assert torch.equal(found.cpu(), ta.extract_tiles(values, layout, backend="reference"))
    torch.testing.assert_close(ta.blend_tiles(found, layout, backend=backend), canvas)
