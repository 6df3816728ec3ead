"""A run's JSON is checked; verdicts, smallest overlaps, bold cells and the picture follow from it."""

from __future__ import annotations

import copy

import pytest

from tiledattn.bench.quality import picture, tables
from tiledattn.bench.quality.measures import MEASURES, STRUCTURE, plain, verdict
from tiledattn.bench.quality.results import separated, smallest_overlaps, validate
from tiledattn.bench.quality.settings import Setting
from tiledattn.metrics import Interval


def row(
    setting: Setting,
    contrast=(1.0, 0.9, 1.1),
    good: str | None = "seamless",
    structure: str | None = "seamless",
    **more,
):
    value, low, high = contrast
    measures = dict.fromkeys(MEASURES) | {"seam_contrast": {"value": value, "low": low, "high": high, "count": 16}}
    time = {"seconds": 0.1, "ratio": 1 + setting.overlap / 16, "low": 1.0, "high": 9.0, "rounds": 5}
    return {
        **setting.as_dict(),
        "tiles": 6,
        "computed": 1 + setting.overlap / 32,
        "time": time,
        "measures": measures,
        "disagreement": None,
        "judged": dict.fromkeys(STRUCTURE) | {"seam_contrast": measures["seam_contrast"]},
        "seamless": good,
        "seamless_patches": structure,
        "learned": {},
        **more,
    }


def test_a_valid_run_is_returned(run_data):
    assert validate(run_data) == run_data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("command"), "command is missing"),
        (lambda d: d.update(format=1), "format: got 1"),
        (lambda d: d["environment"].pop("date"), "no date"),
        (lambda d: d["models"][0]["rows"].clear(), "rows: got none"),
        (lambda d: d["models"][0]["rows"][1].update(kind="theirs"), "alone: kind"),
        (lambda d: d["models"][0]["rows"][1]["measures"].pop("spectrum"), "measures: got"),
        (lambda d: d["models"][0]["rows"][1]["measures"]["spectrum"].update(low=9e9, high=9.1e9), "outside of"),
        (lambda d: d["models"][0]["rows"][1]["measures"]["spectrum"].update(value=float("nan")), "spectrum: value"),
        (lambda d: d["models"][0]["rows"][1].update(seamless="maybe"), "seamless: got"),
        (lambda d: d["models"][0]["rows"][1].update(seamless="seamless"), "a verdict by 3 seeds; 16 are needed"),
        (lambda d: d["models"][0]["rows"][1]["judged"].pop("tone_step"), "judged: got"),
        (lambda d: d["models"][0].pop("commits"), "commits is missing"),
        (lambda d: d["models"][0]["rows"][1].update(rings=1), "rings: got 1"),
        (lambda d: d["models"][0]["rows"][1]["time"].pop("ratio"), "ratio is missing"),
        (lambda d: d["models"][0]["rows"][2].update(disagreement=[float("inf")]), "disagreement: got inf"),
        (lambda d: d.update(models=[3]), "got int"),
    ],
)
def test_what_is_wrong_is_named(run_data, change, message):
    broken = copy.deepcopy(run_data)
    change(broken)
    with pytest.raises(ValueError, match=message):
        validate(broken)


def test_seamless_needs_every_interval_inside_the_bounds():
    equal, wide, off = Interval(1.05, 0.9, 1.2, 16), Interval(1.1, 0.7, 1.7, 16), Interval(1.3, 1.1, 1.4, 16)
    slight = Interval(1.1, 1.05, 1.2, 16)
    assert verdict([equal, equal], 16) == "seamless"
    assert verdict([equal, slight], 16) == "seamless", "different from 1, but by less than matters"
    assert verdict([equal, wide], 16) == "not separated", "a wide interval shows nothing"
    assert verdict([equal, wide, off], 16) == "seam"
    assert verdict([Interval(0.6, 0.5, 0.7, 16)], 16) == "seam", "a blur shows too"
    assert verdict([equal, None], 16) is None
    assert verdict([Interval(1.0, float("nan"), float("nan"), 1)], 16) is None
    assert verdict([equal, equal], 15) is None


def test_the_smallest_overlap_of_every_way():
    rows = [
        row(Setting("untiled"), good=None),
        row(Setting("alone"), good="seam", structure="not separated"),
        row(Setting("blended", 8), good="seam", structure="not separated"),
        row(Setting("blended", 16), good="seamless", structure="not separated"),
        row(Setting("blended", 32), good="seam", structure="not separated"),
        row(Setting("blended", 16, window="uniform"), good="seam"),
        row(Setting("attention", halo="all"), good="seam"),
        row(Setting("ours", 0, 8, True, "canvas"), good="seam"),
        row(Setting("ours", 8, 8, True, "canvas"), good="seamless"),
        row(Setting("ours", 8, 8, True, "canvas", blend="attention"), good="seam"),
        row(Setting("ours", 16, 8, True, "canvas", blend="attention"), good="seamless"),
        row(Setting("ours", 0, 16, True, "canvas"), good="seamless"),
    ]
    found = {one["name"]: one for one in smallest_overlaps(rows)}
    assert set(found) == {
        "whole-canvas attention alone",
        "coupled, halo 8 px",
        "coupled, halo 8 px, blended behind attention",
        "coupled, halo 16 px",
        "blended (hann)",
        "blended (uniform)",
    }
    assert found["blended (hann)"]["tried"] == [0, 8, 16, 32]
    assert found["blended (hann)"]["seamless"] == {"overlap": 16, "computed": 1.5, "time": 2.0, "failing": [32]}
    assert found["blended (uniform)"]["seamless"] is None
    assert found["coupled, halo 8 px"]["tried"] == [0, 8]
    assert found["coupled, halo 8 px"]["seamless"]["overlap"] == 8
    assert found["coupled, halo 8 px, blended behind attention"]["tried"] == [0, 8, 16]
    assert found["coupled, halo 8 px, blended behind attention"]["seamless"]["overlap"] == 16
    assert found["coupled, halo 16 px"]["seamless"]["overlap"] == 0
    structure = {one["name"]: one for one in smallest_overlaps(rows, "seamless_patches")}
    assert structure["blended (hann)"]["seamless"] is None
    assert structure["blended (hann)"]["no_seam"]["overlap"] == 0
    assert structure["blended (uniform)"]["seamless"]["overlap"] == 16


def test_the_tables_give_the_verdicts():
    rows = [
        row(Setting("untiled"), good=None),
        row(Setting("alone"), good="seam", structure="seam"),
        row(Setting("blended", 16)),
    ]
    text = tables.tables({"models": [_model(rows)]})
    assert "inside 0.8-1.25" in text
    assert "Of 2 methods by edges and tones 1 seamless, 0 not separated, 1 seam" in text
    assert "| blended (hann) | 0, 16 | 16 px (1.50 positions) |" in text
    few = _model(rows) | {"seeds": 4}
    assert "4 seeds are too few for verdicts; 16 are needed" in tables.tables({"models": [few]})


def test_only_what_is_separated_from_all_others_is_best():
    alone = row(Setting("alone"), (2.0, 1.8, 2.2))
    blended = row(Setting("blended", 16), (1.2, 1.12, 1.3))
    ours = row(Setting("ours", 0, 8), (1.0, 0.9, 1.1))
    untiled = row(Setting("untiled"), (1.0, 0.9, 1.1))
    assert separated([untiled, alone, blended, ours], "seam_contrast", 1.0) == "ours-8"
    near = row(Setting("blended", 16), (1.15, 1.05, 1.3))
    assert separated([alone, near, ours], "seam_contrast", 1.0) is None
    assert separated([alone], "seam_contrast", 1.0) is None
    assert separated([alone, row(Setting("blended", 8), (1.0, None, None))], "seam_contrast", 1.0) is None
    data = {"models": [_model([alone, blended, ours])]}
    assert "**1.00 (0.90-1.10)**" in tables.tables(data)
    assert "**" not in tables.tables({"models": [_model([alone, near, ours])]})


def test_the_picture_has_every_method(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        row(Setting("untiled")),
        row(Setting("alone"), (2.0, 1.8, 2.2), good="seam"),
        row(Setting("blended", 16)),
        row(Setting("single", rings=True)),
        row(Setting("single", norm="canvas")),
        row(Setting("ours", 8, 8, True, "canvas", schedule="quadratic")),
    ]
    path = tmp_path / "picture.svg"
    picture.draw({"models": [_model(rows)]}, path)
    assert path.stat().st_size > 5000
    names = [picture.short_name(one) for one in rows[1:]]
    assert names == ["alone", "16 px", "rings", "norms", "halo 8 + overlap 8 quadratic"]
    for one in rows:
        one["time"] = None
    picture.draw({"models": [_model(rows)]}, tmp_path / "untimed.png")


def test_bounds_that_are_not_finite_are_none():
    assert plain(Interval(1.0, float("nan"), float("inf"), 1)) == {"value": 1.0, "low": None, "high": None, "count": 1}
    assert plain(None) is None


def _model(rows):
    return {
        "model": "toy",
        "canvas": [64, 384],
        "tile": [64, 64],
        "steps": 2,
        "arguments": {},
        "seeds": 16,
        "prompts": ["a"],
        "commits": ["abc"],
        "judged_against": "untiled",
        "levels": {"photographs": 0.3},
        "notes": ["a note."],
        "rows": rows,
    }
