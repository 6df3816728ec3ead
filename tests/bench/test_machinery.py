"""The hook's own time: what is timed, and when it is too much."""

import dataclasses

import pytest
import torch

from tiledattn.bench import denoisers, machinery
from tiledattn.geometry.plan import _plan

pytest.importorskip("diffusers")

CPU = torch.device("cpu")


def test_the_stub_goes_through_the_hook():
    """Cut and blended, the canvas is itself again; the stub saw all tiles."""
    stub, seen = machinery.stub_denoiser(), []
    stub.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    canvas = torch.randn(2, 4, 256, 256)
    assert torch.allclose(denoisers.SDXL_UNET.step(stub, canvas), canvas, atol=1e-6)
    import tiledattn.diffusers as td

    td.disable_tiling(stub)
    assert torch.equal(denoisers.SDXL_UNET.step(stub, canvas), canvas)


def test_plans_are_forgotten_and_made():
    machinery.make_plans(CPU)
    assert _plan.cache_info().currsize > 0
    machinery.forget_plans()
    assert _plan.cache_info().currsize == 0
    machinery.make_plans(CPU)
    assert _plan.cache_info().currsize == len(machinery.LEVELS)


def test_measure_takes_all_times():
    tiny = dataclasses.replace(
        denoisers.SDXL_UNET, make=denoisers.random_model("UNet2DConditionModel", machinery._TINY)
    )
    found = machinery.measure(tiny.build(CPU, torch.float32), CPU, torch.float32, samples=2, of="a tiny UNet")
    assert 0 < found.warm < found.step
    assert found.cold > 0
    assert "a tiny UNet" in machinery.text(found)


@pytest.mark.parametrize(("warm", "words"), [(0.01, "reached: share 1.0"), (0.03, "missed: share 3.0")])
def test_a_share_that_is_too_large_is_told(monkeypatch, capsys, warm, words):
    monkeypatch.setattr(machinery, "measure", lambda *_: machinery.Machinery(0.1, warm, 1.0, "it"))
    monkeypatch.setattr(machinery, "_unet", lambda *_: None)
    assert machinery.main([]) == 0
    assert words in capsys.readouterr().out


def test_a_hook_that_changes_the_canvas_has_no_times(monkeypatch, capsys):
    right = machinery.stub_denoiser

    def broken():
        stub = right()
        stub.register_forward_hook(lambda module, args, found: (found[0] * 1.01,))
        return stub

    monkeypatch.setattr(machinery, "stub_denoiser", broken)
    monkeypatch.setattr(machinery, "_unet", lambda *_: None)
    assert machinery.main(["--device", "cpu"]) == 1
    assert "not what it was" in capsys.readouterr().err
