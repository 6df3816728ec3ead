"""Metrics on pictures whose seams were planted, so that the expected value follows from the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tiledattn.geometry import TileLayout
from tiledattn.metrics import (
    Interval,
    control_lines,
    interval,
    overlap_disagreement,
    ratio_interval,
    seam_contrast,
    seam_gradients,
    seam_lines,
    tone_differences,
    tone_step,
    wrap_gradients,
    wrap_score,
)
from tiledattn.metrics.intervals import student_t

ROW = TileLayout((16, 128), (16, 32))
LOOP = TileLayout((16, 128), (16, 32), wrap=(False, True))
GRID = TileLayout((64, 96), (32, 32))


def ramp(layout: TileLayout, slope: float = 0.01, step: float = 0.0) -> np.ndarray:
    """x grows by `slope` a pixel and by `step` more at every tile border."""
    places = np.arange(layout.size[1])
    row = slope * places + step * (places // layout.tile[1])
    return np.broadcast_to(row, (3, *layout.size)).copy()


def texture(seed: int, count: int, layout: TileLayout) -> np.ndarray:
    """Smooth periodic noise: no place of it is different from another."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 3, *layout.size))
    for axis in (-1, -2):
        noise = sum(np.roll(noise, k, axis) for k in range(-2, 3)) / 5
    return 0.5 + noise


@pytest.mark.parametrize(
    ("layout", "axis", "where", "lines"),
    [
        (ROW, 1, "owner", (32, 64, 96)),
        (ROW, 0, "owner", ()),
        (LOOP, -1, "owner", (0, 32, 64, 96)),
        (TileLayout((16, 112), (16, 64), (0, 16)), 1, "owner", (56,)),
        (TileLayout((16, 112), (16, 64), (0, 16)), 1, "border", (48, 64)),
        (TileLayout((16, 96), (16, 64), (0, 32), wrap=(False, True)), 1, "owner", (16, 48, 80)),
        (TileLayout((16, 64), (16, 64), wrap=(False, True)), 1, "owner", (0,)),
        (TileLayout(100, 32), 0, "owner", (32, 64, 82)),
    ],
)
def test_seam_lines(layout, axis, where, lines):
    assert seam_lines(layout, axis, where) == lines


def test_control_lines_share_the_phase_and_keep_their_distance():
    assert control_lines(ROW, 1, 32, period=8) == (8, 16, 24, 40, 48, 56, 72, 80, 88, 104, 112, 120)
    assert control_lines(LOOP, 1, 32, period=16) == (16, 48, 80, 112)
    with pytest.raises(ValueError, match=r"period: got 32; no line on axis 1"):
        control_lines(ROW, 1, 32, period=32)


def test_cells_of_one_position_are_the_layouts_fault():
    for period in (1, 2):
        with pytest.raises(ValueError, match=r"layout: .* has cells of one position on axis 1"):
            control_lines(TileLayout((4, 8), (4, 1)), 1, 1, period)
    assert control_lines(TileLayout((4, 8), (4, 2)), 1, 2) == (1, 3, 5, 7)


@pytest.mark.parametrize("step", [0.0, 0.01, 0.2])
def test_seam_contrast_of_a_planted_step_follows_the_formula(step):
    assert seam_contrast(ramp(ROW, 0.01, step), ROW) == pytest.approx((0.01 + step) / 0.01, abs=1e-5)


def test_seam_contrast_of_a_planted_gradient_follows_the_formula():
    """The last pixel before each border is pushed by 0.1, with the sign of the slope."""
    picture = ramp(ROW)
    picture[..., 31:96:32] -= 0.1
    assert seam_contrast(picture, ROW) == pytest.approx(11.0, abs=1e-4)


def test_seam_contrast_has_one_value_a_picture():
    batch = np.stack([ramp(ROW, step=s) for s in (0.0, 0.01)])
    assert seam_contrast(batch, ROW) == pytest.approx([1.0, 2.0], abs=1e-5)
    assert seam_contrast(torch.from_numpy(batch).bfloat16().float(), ROW).shape == (2,)
    assert seam_contrast(batch[None], ROW).shape == (1, 2)


def test_seam_contrast_of_a_seamless_texture_is_one_and_a_planted_step_is_not():
    pictures = texture(0, 12, LOOP)
    assert 1.0 in ratio_interval(*seam_gradients(pictures, LOOP))
    pictures[..., 32:64] += 0.3
    pictures[..., 96:128] += 0.3
    found = ratio_interval(*seam_gradients(pictures, LOOP))
    assert found.low > 1.2


def test_a_blurred_seam_is_below_one():
    pictures = texture(1, 8, LOOP)
    smooth = (np.roll(pictures, 1, -1) + pictures + np.roll(pictures, -1, -1)) / 3
    for line in seam_lines(LOOP, 1):
        columns = np.arange(line - 4, line + 4) % 128
        pictures[..., columns] = smooth[..., columns]
    assert ratio_interval(*seam_gradients(pictures, LOOP)).high < 0.9


def test_marks_of_the_models_own_grid_cancel():
    """A jump every 8 pixels (a decoder's) is on all lines of that phase, so it is no seam."""
    picture = ramp(ROW) + 0.1 * (np.arange(128) // 8)
    assert seam_contrast(picture, ROW, period=8) == pytest.approx(1.0)
    assert seam_contrast(picture, ROW, period=1) > 2


def test_both_orientations_count_by_their_lines():
    rows = np.broadcast_to(0.01 * np.arange(64)[:, None], (3, 64, 96))
    stepped = rows + 0.04 * (np.arange(64)[:, None] // 32)
    assert seam_contrast(stepped, GRID, axis=0) == pytest.approx(5.0, abs=1e-5)
    assert seam_contrast(stepped, GRID, axis=1) == pytest.approx(1.0)
    seam, control = seam_gradients(stepped, GRID)
    assert seam == pytest.approx((0.05 + 0 + 0) / 3)
    assert control == pytest.approx(0.01 / 3)


def test_uniform_windows_jump_at_the_borders_of_the_tiles():
    layout = TileLayout((16, 112), (16, 64), (0, 16))
    picture = np.zeros((1, 16, 112)) + 0.01 * np.arange(112)
    picture[..., 48:64] += 0.05
    assert seam_contrast(picture, layout) == pytest.approx(1.0)
    assert seam_contrast(picture, layout, where="border") == pytest.approx((0.06 + 0.04) / 2 / 0.01, abs=1e-4)


@pytest.mark.parametrize("layout", [LOOP, None])
def test_wrap_score(layout):
    periodic = texture(2, 8, LOOP)
    assert 1.0 in ratio_interval(*wrap_gradients(periodic, layout=layout))
    cut = texture(2, 8, TileLayout((16, 256), (16, 32)))[..., :128]
    assert ratio_interval(*wrap_gradients(cut, layout=layout)).low > 1.5


def test_wrap_score_of_a_ramp_follows_the_formula():
    assert wrap_score(ramp(ROW), LOOP) == wrap_score(ramp(ROW), layout=LOOP) == pytest.approx(127.0, abs=1e-3)
    assert wrap_score(ramp(ROW), axis=-2) == pytest.approx(1.0)


@pytest.mark.parametrize("layout", [ROW, LOOP, TileLayout((16, 144), (16, 48), (0, 16), wrap=(False, True))])
def test_tone_step_of_a_seamless_texture_is_one(layout):
    pictures = texture(3, 24, layout)
    assert 1.0 in ratio_interval(*tone_differences(pictures, layout))


@pytest.mark.parametrize("step", [0.0, 0.02, 0.3])
def test_tone_step_of_planted_tones_follows_the_formula(step):
    """Half cells are 16 wide: their means differ by 16 slopes inside, and by the planted step more across."""
    pictures = ramp(ROW, 0.01, step)
    across, inside = tone_differences(pictures, ROW)
    assert (across, inside) == (pytest.approx(0.16 + step), pytest.approx(0.16))
    assert tone_step(pictures, ROW) == pytest.approx((0.16 + step) / 0.16, abs=1e-5)


def test_tone_step_sees_tones_that_gradients_don_t():
    """Tile means differ, but a smooth transition hides the edge."""
    pictures = texture(4, 8, LOOP)
    tones = np.random.default_rng(0).normal(scale=0.5, size=(8, 3, 1, 4))
    shift = np.repeat(tones, 32, axis=-1)
    shift = sum(np.roll(shift, k, -1) for k in range(-4, 4)) / 8
    assert ratio_interval(*tone_differences(pictures + shift, LOOP)).low > 1.5


def test_tone_step_works_within_the_cells_of_the_other_axis():
    """Opposite steps in the upper and the lower row of tiles must not cancel."""
    for wrap in (False, True):
        layout = TileLayout((64, 96), (32, 32), wrap=(wrap, False))
        picture = np.zeros((1, 64, 96))
        picture[:, :32, 32:64] += 1
        picture[:, 32:, 32:64] -= 1
        across, _ = tone_differences(picture, layout, axis=1)
        assert across == pytest.approx(1.0)


def test_a_blank_picture_is_seamless():
    blank = np.full((3, 16, 128), 0.5)
    assert seam_contrast(blank, LOOP) == tone_step(blank, LOOP) == wrap_score(blank, layout=LOOP) == 1.0


def test_one_and_three_axes():
    line = TileLayout(96, 32)
    assert seam_contrast(0.01 * np.arange(96.0)[None], line) == pytest.approx(1.0)
    video = TileLayout((16, 32, 32), (8, 32, 32))
    frames = np.broadcast_to(np.arange(16.0)[:, None, None], (2, 3, 16, 32, 32)).copy()
    frames[..., 8:, :, :] += 3
    assert seam_contrast(frames, video) == pytest.approx([4.0, 4.0])
    assert tone_step(frames, video) == pytest.approx([7 / 4, 7 / 4])


@pytest.mark.parametrize("wrap", [False, True])
def test_overlap_disagreement_of_known_differences(wrap):
    layout = TileLayout((8, 24), (8, 12), (0, 4), wrap=(False, wrap))
    tiles = torch.zeros(layout.num_tiles, 2, 4, 8, 12)
    assert overlap_disagreement(tiles, layout) == 0.0
    tiles += torch.arange(layout.num_tiles).reshape(-1, 1, 1, 1, 1) % 2
    pairs = layout.num_tiles if wrap else layout.num_tiles - 1
    expected = math.sqrt((pairs - (layout.num_tiles % 2 if wrap else 0)) / pairs)
    assert overlap_disagreement(tiles, layout) == pytest.approx(expected)


def test_overlap_disagreement_of_independent_and_of_equal_predictions():
    layout = TileLayout((48, 48), (32, 32), (16, 16))
    rng = np.random.default_rng(0)
    tiles = rng.normal(scale=0.7, size=(4, 2, 4, 32, 32))
    assert overlap_disagreement(tiles, layout) == pytest.approx(0.7 * math.sqrt(2), rel=0.02)
    canvas = rng.normal(size=(2, 4, 48, 48))
    same = np.stack([canvas[..., y : y + 32, x : x + 32] for y, x in layout.origins])
    assert overlap_disagreement(same, layout) == 0.0
    same[1, ..., 16] += 1.0
    assert overlap_disagreement(same, layout) > 0


def test_overlap_disagreement_without_overlap_is_nan():
    assert math.isnan(overlap_disagreement(np.zeros((4, 1, 4, 16, 32)), ROW))


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (31, 2.0395)])
def test_student_t_against_tables(freedom, value):
    assert student_t(0.95, freedom) == pytest.approx(value, abs=1e-4)


def test_interval():
    found = interval([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.high - found.value == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert 2.5 in found
    assert 6.0 not in found
    assert math.isnan(interval([1.0]).low)
    assert str(interval([1.0])) == "1.00"
    assert str(Interval(1.0, 0.5, 1.5, 3)) == "1.00 (0.50 to 1.50)"


def test_ratio_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        top, bottom = rng.gamma(4, 0.5, size=16), rng.gamma(4, 0.25, size=16)
        hits += 2.0 in ratio_interval(top, bottom, groups=np.arange(16) // 4)
    assert 0.91 < hits / 400 < 0.99


def test_ratio_interval_pools_within_groups_and_averages_over_them():
    found = ratio_interval([1, 3, 8, 8], [1, 1, 1, 1], groups=["a", "a", "b", "b"])
    assert found.value == pytest.approx(4.0)
    assert math.isnan(ratio_interval([1, 2], [1, 1], groups=[0, 1]).low)


def test_a_group_of_one_picture_leaves_the_bounds_open():
    found = ratio_interval([1, 2, 3], [1, 1, 1], groups=[0, 0, 1])
    assert found.value == pytest.approx(math.sqrt(1.5 * 3))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_an_interval_too_wide_for_a_float_is_infinite():
    found = ratio_interval([0, 1], [1, 0], confidence=0.99)
    assert (found.value, found.low, found.high) == (pytest.approx(1.0), pytest.approx(0.0), math.inf)
    assert 1e300 in found


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: seam_contrast([[1.0]], ROW), TypeError, "pictures: got list"),
        (lambda: seam_contrast(np.zeros((3, 16, 64)), ROW), ValueError, r"pictures: got shape \(3, 16, 64\)"),
        (lambda: seam_contrast(np.zeros((16, 128)), ROW), ValueError, r"expected \[\.\.\., C, 16, 128\]"),
        (lambda: seam_contrast(np.zeros((3, 16, 128)), (16, 128)), TypeError, "layout: got tuple"),
        (lambda: seam_contrast(np.full((3, 16, 128), np.nan), ROW), ValueError, "not finite"),
        (lambda: seam_contrast(np.zeros((3, 16, 128), complex), ROW), TypeError, "real numbers"),
        (lambda: seam_contrast(torch.zeros((3, 16, 128)) * 1j, ROW), TypeError, "real numbers"),
        (lambda: seam_contrast(ramp(ROW), ROW, axis=2), ValueError, "axis: got 2"),
        (lambda: seam_contrast(ramp(ROW), ROW, period=0), ValueError, "period: got 0"),
        (lambda: seam_contrast(ramp(ROW), ROW, where="middle"), ValueError, "where: got 'middle'"),
        (lambda: seam_contrast(np.zeros((3, 8, 8)), TileLayout((8, 8), 8)), ValueError, "has no seam"),
        (lambda: tone_step(np.zeros((3, 8, 8)), TileLayout((8, 8), 8)), ValueError, "has no seam"),
        (lambda: tone_step(np.zeros((3, 4)), TileLayout(4, 1)), ValueError, "cells of one position"),
        (lambda: seam_contrast(np.zeros((16, 128, 3)), ROW), ValueError, r"channels come first: .*permute\(2, 0, 1\)"),
        (lambda: wrap_score(np.zeros((16, 128, 3)), ROW), ValueError, "channels come first"),
        (lambda: wrap_score(np.zeros((16, 128, 3))), ValueError, "channels come first"),
        (lambda: wrap_score(ramp(ROW), -1), TypeError, "layout: got int; expected a TileLayout; give an axis as axis="),
        (lambda: wrap_score(np.zeros(4)), ValueError, r"expected \[\.\.\., C, H, W\]"),
        (lambda: overlap_disagreement(np.zeros((3, 1, 4, 16, 32)), ROW), ValueError, r"expected \[4, B, C, "),
        (lambda: overlap_disagreement(np.zeros((4, 1, 4, 16, 32)), None), TypeError, "layout: got NoneType"),
        (lambda: interval([]), ValueError, "values: got none"),
        (lambda: interval([1.0], confidence=1.0), ValueError, "confidence: got 1.0"),
        (lambda: interval(["a"]), TypeError, "values: got dtype"),
        (lambda: interval([[1.0], [1.0, 2.0]]), ValueError, "values: got rows"),
        (lambda: interval([1, 2], confidence="a"), TypeError, "confidence: got 'a'"),
        (lambda: interval([1, 2], confidence=math.nan), ValueError, "confidence: got nan"),
        (lambda: ratio_interval([1, 2], [1, 1], confidence=None), TypeError, "confidence: got None"),
        (lambda: ratio_interval([1, 2], [1, 1], groups=[math.nan, math.nan]), ValueError, "groups: got a label"),
        (lambda: ratio_interval([1, 2], [1, 1], np.array(["a", 1], object)), TypeError, "groups: got labels"),
        (lambda: seam_contrast(np.zeros((2, 0, 16, 128)), ROW), ValueError, r"pictures: got shape \(2, 0, 16"),
        (lambda: tone_step(np.zeros((0, 3, 16, 128)), ROW), ValueError, r"pictures: got shape \(0, 3, 16"),
        (lambda: overlap_disagreement(np.zeros((4, 0, 4, 16, 32)), ROW), ValueError, r"tiles: got shape \(4, 0"),
        (lambda: wrap_score(np.zeros((3, 4, 0))), ValueError, r"pictures: got shape \(3, 4, 0\)"),
        (lambda: wrap_score(np.zeros((3, 4, 1))), ValueError, "axis: got -1"),
        (lambda: ratio_interval([1.0], [1.0, 2.0]), ValueError, "got 1, 2 and 1 values"),
        (lambda: ratio_interval([-1.0], [1.0]), ValueError, "negative"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_picture_of_pillow_is_told_how_to_become_an_array():
    picture = pytest.importorskip("PIL.Image").new("RGB", (128, 16))
    for measured in (lambda: seam_contrast(picture, ROW), lambda: wrap_score(picture)):
        with pytest.raises(TypeError, match=r"pictures: got Image; .*channels come first"):
            measured()
    moved = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    assert seam_contrast(moved, ROW) == 1.0
