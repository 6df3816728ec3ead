"""A run is kept where the documentation finds it."""

from __future__ import annotations

import json
import shutil

import pytest

from bench import quality


def test_a_run_is_kept_with_its_picture(tiny_run, run_data, tmp_path):
    pytest.importorskip("matplotlib")
    run_data["models"][0]["seeds"] = 16
    (tmp_path / "quality.json").write_text(json.dumps(run_data))
    shutil.copyfile(tiny_run[1] / "strips.jpg", tmp_path / "strips.jpg")
    target = quality.keep(tmp_path / "quality.json", tmp_path / "results", tmp_path / "images/quality.png")
    assert json.loads(target.read_text()) == run_data
    assert target.parent.parent == tmp_path / "results"
    assert (tmp_path / "images/quality.png").is_file()
    assert (tmp_path / "images/quality-strips.jpg").is_file()


def test_a_run_of_few_seeds_is_refused(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="has 3 seeds; expected at least 16"):
        quality.keep(tiny_run[1] / "quality.json", tmp_path / "results", tmp_path / "quality.png")
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="command is missing"):
        quality.keep(tmp_path / "bad.json", tmp_path, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
