"""Whole denoiser steps: what is timed, and that a wrong one is not."""

import dataclasses
import sys

import pytest
import torch

from tiledattn.bench import denoisers, runner, step_cases
from tiledattn.bench.step_cases import OURS, STEP, StepCase

pytest.importorskip("diffusers")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(denoiser, grid=(2, 1), dtype="float32"):
    case = StepCase(STEP, "small", {"cpu": (dtype,)}, denoiser=denoiser, grid=grid)
    return {row["way"]: row for row in runner.run(case, dtype, CPU, 0.0)["rows"]}


@pytest.mark.parametrize("denoiser", [denoisers.UNET, denoisers.DIT], ids=lambda d: d.name)
def test_every_way_of_a_shipped_denoiser_has_a_time(denoiser):
    rows = rows_of(denoiser)
    others = 8 if denoiser.joins else 4
    assert len(rows) == 1 + others
    assert all(row["seconds"] > 0 for row in rows.values())
    assert all(0 < row["error"] <= row["allowed"] < 1e-5 for row in rows.values())
    assert [row["kind"] for row in rows.values()] == ["ours", *["bound"] * others]
    assert not step_cases._held  # the model went with the case


def test_naming_the_ways_builds_nothing():
    assert len(step_cases.CASES[-1].ways(CPU, torch.float32)) == 5
    assert not step_cases._held


def test_a_prediction_that_is_not_that_of_its_options_has_no_time(monkeypatch):
    """What is timed is broken; the law, which runs by itself, still holds."""
    right = StepCase._ready

    def twice(self, options, inputs):
        call = right(self, options, inputs)
        return lambda: 2 * call()

    monkeypatch.setattr(StepCase, "_ready", twice)
    assert all("errs by 1.00" in row["failed"] for row in rows_of(denoisers.UNET).values())


def test_a_denoiser_that_breaks_its_law_has_no_time():
    broken = dataclasses.replace(denoisers.UNET, law={"halo": "all", "conv_halo": False})
    rows = rows_of(broken)
    assert "errs by" in rows[OURS]["failed"]
    assert "seconds" in rows[step_cases.UNTILED]


def test_couplings_that_are_silently_off_have_no_time(monkeypatch):
    """They are off in the wider precision, too, and the law asks for couplings by other options."""
    right = step_cases.tiled_copy

    def planted(denoiser, model, options):
        off = {} if options.get("blend") == "attention" else step_cases.ALONE
        return right(denoiser, model, {**off, **options})

    monkeypatch.setattr(step_cases, "tiled_copy", planted)
    rows = rows_of(denoisers.UNET)
    lost = {OURS, *(way for way in rows if way.endswith("blended as predictions"))}
    assert len(lost) == 3
    assert {way for way, row in rows.items() if "seconds" not in row} == lost
    assert all("errs by" in rows[way]["failed"] for way in lost)


@pytest.mark.parametrize("denoiser", [denoisers.UNET, denoisers.DIT], ids=lambda d: d.name)
def test_half_precisions_hide_no_lost_couplings(monkeypatch, denoiser):
    """Flux.1's weak couplings are less than bfloat16 errs: `test_the_large_ones_are_called_rightly` has them."""
    canvas = torch.randn(1, 4, *denoiser.canvas((2, 1)), generator=torch.Generator().manual_seed(0)).bfloat16()
    model = step_cases.held_model(denoiser, CPU, torch.bfloat16)

    def verdict():
        found = denoiser.step(step_cases.tiled_copy(denoiser, model, {}), canvas)
        return step_cases.same_verdict(denoiser, {}, canvas, found)

    with torch.no_grad():
        assert verdict().passed
        right = step_cases.tiled_copy
        monkeypatch.setattr(step_cases, "tiled_copy", lambda d, m, o: right(d, m, {**step_cases.ALONE, **o}))
        assert not verdict().passed


def test_which_options_couple_tiles():
    case = StepCase(STEP, "small", {}, denoiser=denoisers.UNET, grid=(2, 1))
    for name, _, options in case._tilings():
        assert name.startswith("coupled") == (options is not None and step_cases.couples(options))


def test_a_prediction_that_is_not_finite_has_no_time():
    def step(model, canvas):
        return denoisers.UNET.step(model, canvas).masked_fill(canvas == canvas.max(), float("nan"))

    assert all(
        "errs by inf" in row["failed"] for row in rows_of(dataclasses.replace(denoisers.UNET, step=step)).values()
    )


def test_without_diffusers_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiledattn.diffusers", None)
    (row,) = rows_of(denoisers.UNET).values()
    assert "pip install 'tiledattn[diffusers]'" in row["skipped"]


def test_copies_share_weights_and_are_tiled_alone():
    model = denoisers.UNET.build(CPU, torch.float32)
    copied = step_cases.tiled_copy(denoisers.UNET, model, {})
    assert copied is not model
    assert all(a is b for a, b in zip(model.parameters(), copied.parameters(), strict=True))
    canvas = torch.randn(1, 4, 16, 32)
    assert not torch.equal(denoisers.UNET.step(model, canvas), denoisers.UNET.step(copied, canvas))


TINY_SDXL = {
    **denoisers.SDXL,
    "block_out_channels": (8, 8, 16),
    "attention_head_dim": (1, 1, 2),
    "norm_num_groups": 4,
    "transformer_layers_per_block": (1, 1, 1),
}
TINY_FLUX = {"guidance_embeds": True, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize(
    ("denoiser", "kind", "config", "tile", "dtype"),
    [
        (denoisers.SDXL_UNET, "UNet2DConditionModel", TINY_SDXL, (16, 16), "float32"),
        (denoisers.FLUX_DIT, "FluxTransformer2DModel", TINY_FLUX, (4, 4), "float32"),
        (denoisers.FLUX_DIT, "FluxTransformer2DModel", TINY_FLUX, (4, 4), "bfloat16"),
    ],
    ids=["SDXL", "Flux", "Flux in bfloat16"],
)
def test_the_large_ones_are_called_rightly(denoiser, kind, config, tile, dtype):
    """Small models of the same kind take the same calls."""
    small = dataclasses.replace(denoiser, make=denoisers.random_model(kind, config), tile=tile)
    rows = rows_of(small, dtype=dtype)
    assert all("seconds" in row for row in rows.values()), rows


def test_large_ones_are_left_to_gpus():
    large = [case for case in step_cases.CASES if case.denoiser in (denoisers.SDXL_UNET, denoisers.FLUX_DIT)]
    assert len(large) == 4
    assert all("cpu" not in case.dtypes for case in large)
