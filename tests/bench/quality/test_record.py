"""A run is kept where the documentation finds it."""

from __future__ import annotations

import json

import pytest

from bench import quality


def test_a_run_is_kept_with_its_picture(tiny_run, run_data, tmp_path):
    pytest.importorskip("matplotlib")
    target = quality.keep(tiny_run[1] / "quality.json", tmp_path / "results", tmp_path / "images/quality.png")
    assert json.loads(target.read_text()) == run_data
    assert target.parent.parent == tmp_path / "results"
    assert (tmp_path / "images/quality.png").is_file()
    assert (tmp_path / "images/quality-strips.jpg").is_file()


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="command is missing"):
        quality.keep(tmp_path / "bad.json", tmp_path, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
