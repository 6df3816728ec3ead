"""The analytic check: the law of tiled sampling is exact, and what is wrong with it is noticed."""

import json
import pathlib
import sys

import numpy as np
import pytest
import torch

import tiledattn as ta
from tiledattn.bench import gaussian_field, gaussian_law, gaussian_report
from tiledattn.bench.gaussian_field import WHITE, setting_of
from tiledattn.bench.gaussian_law import Field, Setting

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "bench/results/gaussian-field.json"
COARSE = Field("coarse", 1.0)


@pytest.fixture(scope="module")
def committed():
    return gaussian_field.validate(json.loads(COMMITTED.read_text()))


def small(axes=1, tile=8, overlap=2, **more):
    size = {1: 24, 2: 12}[axes]
    return Setting(ta.TileLayout((size,) * axes, (tile,) * axes, (overlap,) * axes, (True,) * axes), **more)


def covariance(setting, field=COARSE):
    return field.covariance(setting.layout.size, setting.layout.tile[0])


def unnormalised(tiles, layout, window):
    """Tiles added up with a window whose sum is not 1: what a forgotten normaliser does."""
    out = tiles.new_zeros(*tiles.shape[1:-1], layout.size[0])
    weights = torch.linspace(0.9, 1.1, layout.tile[0], dtype=tiles.dtype)
    for tile, (origin,) in zip(tiles, layout.origins, strict=True):
        out[..., (origin + torch.arange(layout.tile[0])) % layout.size[0]] += tile * weights
    return out


@pytest.mark.parametrize("sampler", ["heun", "ddim"])
@pytest.mark.parametrize("setting", [{}, {"halo": 3}, {"axes": 2, "tile": 4}, {"axes": 2, "tile": 4, "halo": 1}])
def test_the_law_is_that_of_the_linear_map(setting, sampler):
    """All columns of the map itself, A A^T, without the symmetry and without two-sided steps."""
    setting = small(**setting, sampler=sampler, steps=9)
    count = int(np.prod(setting.layout.size))
    columns = torch.eye(count, dtype=torch.float64).reshape(count, 1, *setting.layout.size) * setting.sigmas[0]
    for step, _ in gaussian_law.stages(gaussian_law.TiledDenoiser(covariance(setting), setting)):
        columns = step(columns)
    matrix = columns.reshape(count, count).T
    expected = (matrix @ matrix.T)[setting.cell].numpy()
    np.testing.assert_allclose(gaussian_law.law(covariance(setting), setting), expected, atol=1e-9)


@pytest.mark.parametrize("sampler", gaussian_law.SAMPLERS)
def test_canvases_drawn_at_random_have_the_computed_covariance(sampler):
    assert gaussian_field.worst_score(small(halo=1, sampler=sampler, steps=20)) < 5


def test_another_law_than_the_sampled_one_is_noticed(monkeypatch):
    other = small(halo=0, steps=20)
    wrong = gaussian_law.law(covariance(other), other)
    monkeypatch.setattr(gaussian_law, "law", lambda *_: wrong)
    assert gaussian_field.worst_score(small(halo=2, steps=20)) > 6


def test_a_prediction_by_hand():
    """Tiles of two positions, one shared: the middle of each is averaged, and the outer ones count half."""
    setting = Setting(ta.TileLayout(3, 2, 1, True), window="uniform")
    r, sigma = 0.6, 0.7
    denoiser = gaussian_law.TiledDenoiser(np.array([1.0, r, r]), setting)
    found = denoiser(torch.eye(3, dtype=torch.float64).reshape(3, 1, 3), sigma).reshape(3, 3)
    kept = [(1 + sign * r) / (1 + sign * r + sigma**2) for sign in (1, -1)]
    own, other = (kept[0] + kept[1]) / 2, (kept[0] - kept[1]) / 2
    by_hand = own * np.eye(3) + other / 2 * (1 - np.eye(3))
    np.testing.assert_allclose(found, by_hand, atol=1e-12)
    # Of unit noise a tile alone keeps own^2 + other^2; averaging two tiles takes half of other^2 away.
    assert (found**2).sum(0)[0] == pytest.approx(own**2 + other**2 / 2)


def test_tiles_alone_know_nothing_of_each_other_and_all_of_themselves():
    setting = small(overlap=0, sampler="ddim", steps=7)
    rows = gaussian_law.law(covariance(setting), setting)
    assert np.abs(rows[:, 8:]).max() < 1e-12
    values, vectors = np.linalg.eigh(gaussian_law.true_rows(covariance(setting), setting)[:, :8])
    gain = setting.sigmas[0]
    for now, after in zip(setting.sigmas, setting.sigmas[1:], strict=False):
        gain = gain * (after / now + (1 - after / now) * values / (values + now**2))
    np.testing.assert_allclose(rows[:, :8], (vectors * gain**2) @ vectors.T, atol=1e-9)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_halo_that_sees_the_whole_canvas_is_the_truth(axes):
    setting = small(axes, tile=4, overlap=0, halo={1: 10, 2: 4}[axes])
    rows = gaussian_law.law(covariance(setting), setting)
    np.testing.assert_allclose(rows, gaussian_law.untiled(covariance(setting), setting), atol=1e-9)
    np.testing.assert_allclose(rows, gaussian_law.true_rows(covariance(setting), setting), atol=3e-3)


def test_white_noise_loses_nothing_whatever_the_overlap():
    for overlap in gaussian_field.OVERLAPS:
        setting = setting_of(1, overlap, steps=12)
        result = gaussian_field.measure(WHITE, setting)
        assert result["beside"] == result["loss"] == 0.0
        assert result["least_variance"] == gaussian_field.measure(WHITE, setting, True)["least_variance"]


@pytest.mark.parametrize(("axes", "halo", "computed", "seen"), [(1, 0.25, 1.0, 1.5), (2, 1.0, 1.0, 9.0), (2, 0, 4, 4)])
def test_positions_seen_are_the_denoisers_inputs(axes, halo, computed, seen):
    setting = setting_of(axes, 0 if halo else 0.5, halo)
    assert (setting.computed, setting.seen) == (computed, seen)
    denoiser = gaussian_law.TiledDenoiser(covariance(setting), setting)
    inputs = setting.layout.num_tiles * denoiser.own.shape[1]
    assert inputs / np.prod(setting.layout.size) == seen


def test_a_wrong_window_breaks_the_check(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gaussian_law.ta, "blend_tiles", unnormalised)
    assert gaussian_field.main(["--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "white noise changes" in error
    assert "overlap 50.0%, window hann" in error
    assert "nothing was written" in error
    assert not list(tmp_path.iterdir())


def test_a_halo_from_the_wrong_place_breaks_the_truth(monkeypatch):
    right = ta.pad_tiles
    monkeypatch.setattr(gaussian_law.ta, "pad_tiles", lambda *a: right(*a).flip(-1))
    setting = small(tile=4, overlap=0, halo=10)
    found = gaussian_law.law(covariance(setting), setting)
    assert np.abs(found - gaussian_law.untiled(covariance(setting), setting)).max() > 0.1


def test_distances_are_those_of_whole_matrices():
    setting = small(axes=2, tile=4, steps=9)
    truth = gaussian_law.true_rows(covariance(setting), setting)
    rows = gaussian_law.law(covariance(setting), setting)
    count = truth.shape[1]

    def whole(rows):
        flat = torch.from_numpy(rows).reshape(-1)
        matrix = np.empty((count, count))
        places = gaussian_law.positions(setting.layout.size)
        for i, place in enumerate(places):
            base = place // 2 * 2
            cell = int(np.ravel_multi_index(tuple(place - base), setting.step))
            columns = np.ravel_multi_index(tuple(((places - base) % 12).T), setting.layout.size)
            matrix[i] = flat.reshape(len(rows), count)[cell, columns].numpy()
        return matrix

    sampled, true = whole(rows), whole(truth)
    kl = (np.trace(np.linalg.solve(true, sampled)) - count) / 2
    kl += (np.linalg.slogdet(true)[1] - np.linalg.slogdet(sampled)[1]) / 2
    values, vectors = np.linalg.eigh(true)
    root = (vectors * np.sqrt(values)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ sampled @ root), 0)).sum()
    squared = np.trace(sampled) + np.trace(true) - 2 * shared
    expected = kl / count, np.sqrt(squared / count)
    np.testing.assert_allclose(gaussian_law.distances(rows, truth, setting), expected, rtol=1e-6)
    assert gaussian_law.distances(truth, truth, setting) == pytest.approx((0, 0), abs=1e-6)


def test_positions_beside_a_seam_lie_in_two_cells():
    setting = small()
    rows = np.zeros((6, 24))
    rows[setting.cell[3], 4] = 1.0  # overlap 2: tile 0 owns 1 to 6, hence positions 0 and 1 stand beside the seam
    assert gaussian_law.seam(setting) == 7
    assert gaussian_law.pairs(rows, setting, 4, [1, 2]).tolist() == [1.0, 0.0]
    assert gaussian_law.pairs(rows, setting, 10, [1]).tolist() == [1.0]
    assert gaussian_law.pairs(rows, setting, 5, [1]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("layout", "more", "message"),
    [
        (ta.TileLayout(24, 8, 2), {}, "must wrap"),
        (ta.TileLayout(23, 8, 2, True), {}, "step divide"),
        (ta.TileLayout(24, 8, 2, True), {"halo": 9}, "tile \\+ 2 \\* halo"),
        (ta.TileLayout(24, 8, 2, True), {"sampler": "euler"}, "'euler'; known are heun"),
    ],
)
def test_settings_that_have_no_exact_law_are_refused(layout, more, message):
    with pytest.raises(ValueError, match=message):
        Setting(layout, **more)


def test_kept_results_are_what_the_code_computes(committed):
    plan = list(gaussian_field.plan())
    assert len(plan) == len(committed["results"])
    for index in (0, 1, 35, 78, 83):
        found, kept = gaussian_field.measure(*plan[index]), committed["results"][index]
        assert found.keys() == kept.keys()
        for name, value in found.items():
            assert value == (kept[name] if isinstance(value, str) else pytest.approx(kept[name], abs=2e-5)), name


def test_the_kept_results_say_what_the_page_says(committed):
    one = {"field": "coarse", "axes": 1, "sampler": "heun"}
    halos = [r["loss"] for r in gaussian_report.chosen(committed, **one, method="halo")]
    assert halos == sorted(halos, reverse=True)
    for field in gaussian_field.FIELDS:
        found = gaussian_report.chosen(committed, **{**one, "field": field.name})
        hann = {r["overlap"]: r["loss"] for r in found if r["method"] == "blended" and r["window"] == "hann"}
        halo = {r["halo"]: r["loss"] for r in found if r["method"] == "halo"}
        assert all(abs(halo[overlap / 2] - hann[overlap]) < 0.01 for overlap in (0.125, 0.25))
        assert halo[0.25] <= hann[0.5]
        assert min(hann.values()) == hann[0.5]
    two = gaussian_report.chosen(committed, axes=2)
    (halo,) = (r for r in two if r["halo"] == 0.5)
    (overlap,) = (r for r in two if r["overlap"] == 0.5)
    assert halo["seen"] == overlap["seen"] == overlap["computed"] == 4.0
    assert halo["loss"] < overlap["loss"] / 2
    untiled = [r["loss"] for r in gaussian_report.chosen(committed, method="untiled", sampler="heun")]
    assert all(abs(loss) < 2e-3 for loss in untiled)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(format=2),
        lambda d: d.update(results=[]),
        lambda d: d["results"][3].pop("loss"),
        lambda d: d["results"][3].update(loss=float("nan")),
        lambda d: d["results"][3].update(method="other"),
        lambda d: d["results"][3].update(seam=None),
    ],
)
def test_spoilt_results_are_refused(committed, spoil):
    data = json.loads(json.dumps(committed))
    spoil(data)
    with pytest.raises(ValueError, match="results"):
        gaussian_field.validate(data)


def run(monkeypatch, committed, folder):
    """The command with the kept results in place of the calculation."""
    results = iter(committed["results"])
    monkeypatch.setattr(gaussian_field, "problems", list)
    monkeypatch.setattr(gaussian_field, "measure", lambda *_: next(results))
    return gaussian_field.main(["--out", str(folder)])


def test_the_command_leaves_results_and_a_picture(monkeypatch, committed, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run(monkeypatch, committed, tmp_path) == 0
    assert json.loads((tmp_path / "gaussian-field.json").read_text()) == committed
    assert (tmp_path / "gaussian-field.json").read_text() == COMMITTED.read_text()
    assert (tmp_path / "gaussian-field.png").read_bytes().startswith(b"\x89PNG")
    assert "| tiles alone | 1.00 | 1.00 | 100.0%" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_picture_and_a_line_says_so(monkeypatch, committed, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(monkeypatch, committed, tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gaussian-field.json"]
    assert "no picture: drawing needs matplotlib" in capsys.readouterr().err
