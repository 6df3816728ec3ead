"""What a step holds at once: right where it can be counted by hand, the same on fake tensors as on real ones."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from tiledattn.bench import activations, report
from tiledattn.bench.activations import PeakBytes, held
from tiledattn.bench.denoisers import FLUX, FLUX_DIT, SDXL, SDXL_UNET, random_model

ROOT = Path(__file__).parents[2]
SMALL_UNET = {**SDXL, "block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 1)}
SMALL_UNET |= {"attention_head_dim": (2, 4, 4), "norm_num_groups": 8}
SMALL_FLUX = {**FLUX, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
SMALL = [
    replace(SDXL_UNET, make=random_model("UNet2DConditionModel", SMALL_UNET), tile=(16, 16)),
    replace(FLUX_DIT, make=random_model("FluxTransformer2DModel", SMALL_FLUX), tile=(16, 16)),
]


def test_by_hand():
    known = torch.zeros(1000)
    with PeakBytes([known]) as count:
        x = torch.ones(100)  # 400 bytes
        y = x.view(10, 10).t() + known[:10]  # views hold nothing, the sum 400
        y.mul_(2)
        assert (count.now, count.peak) == (800, 800)
        del x
        assert (count.now, count.peak) == (400, 800)
        (y.double() + 1).sum()  # 400, 800 and 800, then 400, 800 and 8
        assert count.peak == 2000
    assert count.now == 400


@pytest.mark.parametrize("denoiser", SMALL, ids=["UNet", "Flux"])
@pytest.mark.parametrize("tiled", [True, False])
def test_fake_tensors_count_as_real_ones(denoiser, tiled, monkeypatch):
    fake = held(denoiser, 2, tiled, torch.float32)
    real = denoiser.build(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(activations, "made_up", lambda *_: (real, torch.no_grad()))
    found = held(denoiser, 2, tiled, torch.float32)
    assert found.weights == fake.weights == sum(x.nbytes for x in [*real.parameters(), *real.buffers()])
    assert found.activations == pytest.approx(fake.activations, rel=0.01)  # attention over text has scratch of its own


@pytest.mark.parametrize("denoiser", SMALL, ids=["UNet", "Flux"])
def test_memory_grows_with_the_area_at_most(denoiser):
    small, large = (held(denoiser, grid, tiled=True).activations for grid in (3, 6))
    assert 3.5 < large / small <= 4  # the text stays as long


def test_the_documentation_has_these_figures():
    page = (ROOT / "docs/choosing.md").read_text()
    made = activations.table("SDXL", SDXL_UNET, (1, 2))
    assert all(line in page for line in report.lines_of(made)[:4])


def test_the_program(capsys, monkeypatch):
    monkeypatch.setattr(activations, "MODELS", {"SDXL": SMALL[0]})
    assert activations.main(["--grids", "1", "2"]) == 0
    assert re.search(r"\| 2,048² \| 4 \| [\d.]+ MB \| [\d.]+ MB", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="2"):
        activations.main(["--grids", "0"])
    assert "--grids: got 0" in capsys.readouterr().err
