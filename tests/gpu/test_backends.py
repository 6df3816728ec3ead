"""No backend that is meant for the device is left out unnoticed: other tests skip where one can't run."""

import pytest
import torch
from gpu.where import BACKENDS, DEVICE, MARKS

import tiledattn as ta


def must_run(name):
    """Fails, with the reason, where a backend takes neither attention nor tiles on the device."""
    reason = ta.backends()[name]
    assert reason is None, f"{name} can't run here: {reason}"
    layout = ta.TileLayout((16, 24), 8)
    q = torch.ones(layout.num_tiles, 1, layout.tile_positions, 2, 64, dtype=torch.float16, device=DEVICE)
    assert bool((ta.cross_tile_attention(q, q, q, layout, 3, backend=name) == 1).all())
    canvas = torch.ones(1, 2, *layout.size, dtype=torch.float16, device=DEVICE)
    assert bool((ta.extract_tiles(canvas, layout, backend=name) == 1).all())


@pytest.mark.parametrize("name", BACKENDS)
@MARKS[0]
@MARKS[1]
def test_every_backend_that_is_meant_for_the_device_runs(name):
    must_run(name)


def test_a_backend_that_does_not_run_fails_with_the_reason(monkeypatch):
    known = ta.backends()
    monkeypatch.setattr(ta, "backends", lambda: {**known, "torch": "no nvcc was found"})
    with pytest.raises(AssertionError, match="torch can't run here: no nvcc was found"):
        must_run("torch")
    monkeypatch.setattr(ta, "backends", lambda: {**known, "cuda": None})
    monkeypatch.setitem(globals(), "DEVICE", torch.device("cpu"))
    with pytest.raises(ta.BackendUnavailableError, match="cuda"):
        must_run("cuda")
