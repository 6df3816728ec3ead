"""Verdicts compare with the untiled run of the same seed, where the seams of the window lie."""

from __future__ import annotations

import numpy as np
import pytest

from tiledattn.bench.quality.measures import against, latent_contrast, measure
from tiledattn.bench.quality.painting import Painted
from tiledattn.bench.quality.settings import Setting
from tiledattn.geometry import TileLayout
from tiledattn.metrics import seam_lines

LAYOUT = TileLayout((64, 384), (64, 64), (0, 32), (False, True))


def noise(seeds=16, seed=0):
    return np.random.default_rng(seed).random((seeds, 3, 64, 384)) * 0.1 + 0.4


def painted(pictures, setting, latents=None):
    return Painted(setting, LAYOUT, 8, 8, pictures.astype(np.float32), latents, ())


def stepped(pictures, lines, height):
    """With steps of brightness, up and down in turn, at lines."""
    out, sign = pictures.copy(), height
    for start, end in zip(lines, [*lines[1:], lines[0] + pictures.shape[-1]], strict=True):
        out[..., np.arange(start, end) % pictures.shape[-1]] += sign / 2
        sign = -sign
    return out


UNIFORM, HANN = Setting("blended", 32, window="uniform"), Setting("blended", 32)


@pytest.mark.parametrize(("setting", "where"), [(UNIFORM, "border"), (HANN, "owner")])
def test_steps_on_the_windows_lines_are_seams(setting, where):
    plain = noise()
    cut = stepped(plain, list(seam_lines(LAYOUT, 1, where)), 0.2)
    photographs = [list(noise(2, seed=1))]
    found = measure([painted(cut, setting)], [painted(plain, Setting("untiled"))], photographs)
    assert found["seamless"] == found["seamless_patches"] == "seam"
    assert found["measures"]["seam_contrast"]["low"] > 2
    assert found["measures"]["spectrum"]["low"] > 1.5
    assert found["judged"]["patch_ratio"]["low"] > 1.25
    other = measure([painted(plain, setting)], [painted(plain, Setting("untiled"))], photographs)
    assert other["seamless_patches"] == "seamless"
    assert other["judged"]["patch_ratio"]["value"] == pytest.approx(1.0)


def test_latents_are_measured_on_the_windows_lines():
    latents = np.random.default_rng(0).random((16, 4, 8, 48)) * 0.1
    lines = [line // 8 for line in seam_lines(LAYOUT, 1, "border")]
    cut = stepped(latents, lines, 0.5)
    assert latent_contrast([painted(noise(), UNIFORM, cut)]).low > 2


def test_what_the_model_itself_has_on_the_lines_is_no_seam():
    own = stepped(noise(), list(seam_lines(LAYOUT, 1)), 0.2)
    found = measure([painted(own, HANN)], [painted(own, Setting("untiled"))], [[]])
    assert found["measures"]["seam_contrast"]["low"] > 2
    assert found["judged"]["seam_contrast"]["value"] == pytest.approx(1.0)
    assert found["seamless"] == "seamless"
    assert found["seamless_patches"] is None
    alone = measure([painted(own, HANN)], None, [[]])
    assert alone["seamless"] == "seam", "against 1.0 where there is no untiled run"


def test_few_seeds_give_no_verdict():
    few = noise(15)
    found = measure([painted(few, HANN)], [painted(few, Setting("untiled"))], [[]])
    assert found["judged"]["seam_contrast"] is not None
    assert found["seamless"] is None


def test_prompts_are_groups():
    """Two prompts that differ are no spread of the seeds."""
    one, two = noise(), noise(seed=1)
    lines = list(seam_lines(LAYOUT, 1))
    pair = [painted(stepped(one, lines, 0.1), HANN), painted(stepped(two, lines, 0.8), HANN)]
    plain = [painted(one, Setting("untiled")), painted(two, Setting("untiled"))]
    found = against(pair, plain, [[], []])["seam_contrast"]
    each = [against([a], [b], [[]])["seam_contrast"].value for a, b in zip(pair, plain, strict=True)]
    assert found.value == pytest.approx(float(np.sqrt(each[0] * each[1])))
    assert found.high / found.low < 1.2 < each[1] / each[0]
    apart = measure(pair, plain, [[], []])["measures"]["untiled_distance"]
    assert apart["high"] - apart["low"] < 0.2 < apart["value"]
