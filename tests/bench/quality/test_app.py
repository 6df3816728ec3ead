"""The quality evaluation as a program: files, resuming, options, and what is wrong with them."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from tiledattn.bench import app as suite
from tiledattn.bench import environment
from tiledattn.bench.quality import evaluating, identity, running
from tiledattn.bench.quality.app import command_of, main


def test_a_run_writes_valid_json_tables_and_a_picture(tiny_run, run_data):
    from tiledattn.bench.quality.results import validate

    _, out = tiny_run
    validate(run_data)
    (model,) = run_data["models"]
    assert model["seeds"] == 3
    assert model["canvas"] == [16, 64]
    assert run_data["command"].startswith("tiledattn bench quality --model")
    keys = [row["key"] for row in model["rows"]]
    assert keys == [
        "untiled",
        "alone",
        "blended-overlap-8-hann",
        "attention-all",
        "halo-4",
        "rings",
        "norm",
        "ours-4",
        "ours-4-overlap-8-hann",
        "ours-all",
        "ours-all-overlap-8-hann",
    ]
    assert all(row["name"] in (out / "quality.md").read_text() for row in model["rows"])
    assert (out / "quality.png").stat().st_size > 10_000
    with Image.open(out / "strips.jpg") as strips:
        assert strips.width > 2 * 64
        assert strips.height > len(keys) * 2 * 16


def test_all_couplings_over_the_whole_canvas_are_the_untiled_run(run_data):
    rows = {row["key"]: row for row in run_data["models"][0]["rows"]}
    exact, alone = (rows[key]["measures"]["untiled_distance"]["value"] for key in ("ours-all", "alone"))
    assert exact < 1e-3 < 0.01 < alone
    assert rows["untiled"]["measures"]["untiled_distance"] is None


def test_overlap_costs_positions_and_has_a_disagreement_per_step(run_data):
    rows = {row["key"]: row for row in run_data["models"][0]["rows"]}
    assert rows["alone"]["computed"] == 1.0
    assert rows["alone"]["disagreement"] is None
    assert rows["blended-overlap-8-hann"]["computed"] == 2.0
    assert len(rows["blended-overlap-8-hann"]["disagreement"]) == 2
    assert min(rows["blended-overlap-8-hann"]["disagreement"]) > 0
    assert rows["alone"]["time"]["ratio"] == pytest.approx(1.0)


def test_what_is_missing_is_a_note(run_data):
    notes = " ".join(run_data["models"][0]["notes"])
    assert "--photographs" in notes
    assert all(row["measures"]["patch_ratio"] is None for row in run_data["models"][0]["rows"])


def test_a_second_run_paints_nothing_and_finds_the_same(tiny_run, run_data, monkeypatch, tmp_path, capsys):
    arguments, out = tiny_run
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    monkeypatch.setattr(running, "paint", None)
    monkeypatch.setattr(running, "step_seconds", None)
    assert main([*arguments[:-1], str(folder), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["models"] == run_data["models"]
    assert "11 of 11 kept" in printed.err


@pytest.mark.parametrize("change", [["--no-resume"], ["--steps", "3"], ["--seeds", "2"]])
def test_other_pictures_are_not_taken_for_kept_ones(tiny_run, change, monkeypatch, tmp_path):
    arguments, out = tiny_run
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "paint", stop)
    assert main([*arguments[:-1], str(folder), *change]) == 130


def test_what_other_sources_painted_is_kept_only_if_asked_for(tiny_run, monkeypatch, tmp_path):
    arguments, out = tiny_run
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "paint", stop)
    monkeypatch.setattr(running, "step_seconds", stop)
    monkeypatch.setattr(identity, "sources", lambda _: "others")
    assert main([*arguments[:-1], str(folder)]) == 130
    assert main([*arguments[:-1], str(folder), "--any-sources"]) == 0
    (model,) = json.loads((folder / "quality.json").read_text())["models"]
    assert model["commits"] == [environment.commit()]


def test_ctrl_c_keeps_what_is_done(tiny_run, monkeypatch, tmp_path, capsys):
    arguments, _ = tiny_run
    whole = [*arguments[:-1], str(tmp_path), "--methods", "alone,blended*", "--rounds", "0"]
    real, painted = running.paint, []

    def paint(strip, setting, *rest):
        if painted:
            raise KeyboardInterrupt
        painted.append(setting.key)
        return real(strip, setting, *rest)

    monkeypatch.setattr(running, "paint", paint)
    assert main(whole) == 130
    assert "stopped" in capsys.readouterr().err
    assert [path.name.split("-")[0] for path in tmp_path.rglob("*.npz")] == ["alone"]
    monkeypatch.setattr(running, "paint", real)
    assert main(whole) == 0
    assert "1 of 2 kept" in capsys.readouterr().err


def test_photographs_may_be_given(tiny_run, tmp_path):
    import numpy as np

    arguments, out = tiny_run
    folder, photos = tmp_path / "copy", tmp_path / "photographs"
    shutil.copytree(out, folder)
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "noise.png")
    own = [*arguments[:-1], str(folder), "--photographs", str(photos), "--methods", "blended*"]
    assert main(own) == 0
    rows = json.loads((folder / "quality.json").read_text())["models"][0]["rows"]
    assert all(row["measures"]["patch_distance"]["value"] > 0 for row in rows)
    (photos / "noise.png").unlink()
    assert main(own) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "a lot"], "got 'a lot'"),
        (["--overlap", "7%"], "1.12 pixels"),
        (["--window", "round"], "--window: got 'round'; known are uniform"),
        (["--halo-schedule", "cubic"], "--halo-schedule: got 'cubic'"),
        (["--methods", "nothing*"], "no method matches; known are untiled, alone"),
        (["--seeds", "0"], "at least 1"),
        (["--tiles", "3"], "at least 4"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_values_are_told_and_2(tiny_model, options, message, tmp_path, capsys):
    assert main(["--model", str(tiny_model), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_painted(tiny_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(evaluating, "evaluate", None)
    assert main(["--model", str(tiny_model), "--out", str(tmp_path / "file")]) == 2
    assert "--out: can't write into" in capsys.readouterr().err


def test_an_unknown_model_is_told(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    assert main(["--model", str(tmp_path / "empty"), "--out", str(tmp_path)]) == 1
    assert "neither a shipped model" in capsys.readouterr().err


def test_a_dry_run_lists_methods_and_paints_none(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(running, "paint", None)
    assert main(["--model", str(tiny_model), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "23 methods" in out
    assert "whole-canvas attention alone" in out


def test_the_command_names_no_folder():
    assert command_of(["--out", "/home/me", "--seeds", "4", "--retime"]) == "tiledattn bench quality --seeds 4"
    assert command_of(["--prompt", "a wall", "--out=x", "--json"]) == "tiledattn bench quality --prompt 'a wall'"


def test_it_is_a_word_of_the_suite(capsys):
    assert suite.main(["quality", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out
