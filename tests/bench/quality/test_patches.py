"""Patch statistics: they see what they should in pictures made by hand, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tiledattn.bench.quality import patches
from tiledattn.geometry import TileLayout
from tiledattn.metrics import Interval

LAYOUT = TileLayout((64, 256), (64, 64), 0, (False, True))


def texture(seeds=6, seed=0):
    """A smooth random field that is periodic in x, [S, 3, 64, 256], and two pictures of its kind."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((seeds, 3, 64, 256))
    fy, fx = np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(256)
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * np.exp(-60 * (fx**2 + fy**2)), s=(64, 256))
    return 0.5 + 0.15 * smooth / smooth.std()


def stepped(pictures, height=0.3):
    """The same with a step of brightness at every seam, up and down in turn."""
    tones = np.repeat([height / 2, -height / 2] * 2, 64)
    return pictures + tones


@pytest.fixture(scope="module")
def photographs():
    return list(texture(seed=1))


def test_patches_of_one_kind_are_alike_and_a_step_shows(photographs):
    plain = patches.patch_distance(texture(), LAYOUT, 8, photographs)
    cut = patches.patch_distance(stepped(texture()), LAYOUT, 8, photographs)
    assert 1.0 in plain["ratio"]
    assert cut["ratio"].low > 2
    assert cut["inside"].value == pytest.approx(plain["inside"].value, rel=1e-6)
    assert cut["seam"].value > 2 * plain["seam"].value


def test_a_blur_on_the_seams_shows_too(photographs):
    blurred = texture()
    for line in range(0, 256, 64):
        columns = np.arange(line - 6, line + 6) % 256
        blurred[..., columns] = blurred[..., columns].mean(axis=-1, keepdims=True)
    assert patches.patch_distance(blurred, LAYOUT, 8, photographs)["ratio"].low > 1.1


def test_the_spectrum_sees_a_step_across_the_seams_alone():
    assert 1.0 in patches.spectrum(texture(16), LAYOUT, 8)
    assert patches.spectrum(stepped(texture()), LAYOUT, 8).low > 1.5


def test_power_across_over_along_of_stripes():
    x = np.linspace(0, 40 * np.pi, 256)
    stripes = np.broadcast_to(0.5 + 0.4 * np.sin(x), (1, 3, 64, 256))
    assert patches.across_along(stripes) > 100
    assert patches.across_along(np.swapaxes(stripes, 2, 3)) < 0.01
    assert patches.photograph_spectrum([stripes[0]]) == pytest.approx(patches.across_along(stripes))


def test_repetition_finds_copies_and_none_in_noise():
    noise = np.random.default_rng(0).random((2, 3, 32, 128))
    copied = noise.copy()
    copied[..., 64:] = copied[..., :64]
    assert patches.repetition(copied, 32).value == pytest.approx(1.0, abs=1e-6)
    assert patches.repetition(noise, 32).value < 0.6
    assert patches.repetition(copied, 65).value < 0.6, "the only copies lie nearer"
    assert patches.repetition(np.full((2, 3, 32, 128), 0.5), 32).value == pytest.approx(0.0)


def test_windows_are_centred_and_go_round():
    pictures = np.arange(2 * 3 * 8 * 12, dtype=float).reshape(2, 3, 8, 12)
    found = patches.windows_at(pictures, [0, 5], 4, 4)
    assert found.shape == (2, 4, 3, 4, 4)
    assert np.array_equal(found[0, 0], pictures[0][:, :4][..., [10, 11, 0, 1]])
    assert np.array_equal(found[1, 3], pictures[1][:, 4:, 3:7])


def test_control_lines_are_as_many_as_seams_and_inside():
    seams, inside = patches.lines_of(TileLayout((64, 384), (64, 64), 48, (False, True)), 8)
    assert len(seams) == len(inside) == 24
    assert not set(seams) & set(inside)


def test_the_jackknife_is_student_on_logarithms():
    values = np.array([1.0, 2.0, 4.0, 3.0])
    found = patches.jackknife(lambda some: float(values[some].mean()), 4)
    assert found.value == pytest.approx(2.5)
    assert found.low < 2.5 < found.high
    assert found.high / 2.5 == pytest.approx(2.5 / found.low)
    single = patches.jackknife(lambda some: float(values[some].mean()), 1)
    assert np.isnan(single.low)
    same = patches.jackknife(lambda _: 2.0, 5)
    assert isinstance(same, Interval)
    assert same.low == pytest.approx(same.high)
