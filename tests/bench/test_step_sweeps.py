"""Denoiser steps against canvas area: what is wrong has no figures."""

import math

import pytest
import torch

from tiledattn.bench import scaling, step_sweeps, sweeps

CPU = torch.device("cpu")


@pytest.mark.parametrize("everywhere", [True, False], ids=["in every precision", "in float32 but once"])
def test_a_step_that_is_not_finite_has_no_figures(monkeypatch, everywhere):
    calls = []

    def model(latents, timestep, text, return_dict):
        calls.append(latents.dtype)
        right = not everywhere and (len(calls) % 3 == 1 or latents.dtype == torch.float64)
        return (latents if right else latents * math.nan,)

    monkeypatch.setattr(step_sweeps, "_model", lambda *_: model)
    entry, reason = scaling.measured(step_sweeps.step_area("UNet", CPU, (2, 3)), 2, CPU)
    assert entry is None
    assert reason.startswith("wrong, hence no figures: 4 tiles err by inf")


def test_long_lists_are_fitted_where_nothing_but_the_area_counts():
    assert step_sweeps.step_area("UNet", CPU, (2, 3, 4, 5)).fit_from == 4
    full = step_sweeps.step_area("UNet", CPU, sweeps.STEP_GRIDS)
    assert full.fit_from == 36
    assert sum(load.x >= full.fit_from for load in full.loads) >= 5
    assert "Fitted from 6x6 tiles on" in full.note
