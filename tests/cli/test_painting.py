"""`generate` and `demo` with a tiny random model: files, figures, determinism, and stopping half-way."""

from __future__ import annotations

import json
import math
import signal

import numpy as np
import pytest
import torch

from tiledattn.cli import main

for package in ("typer", "diffusers", "transformers", "matplotlib"):
    pytest.importorskip(package)

from PIL import Image  # noqa: E402

from tiledattn.cli import demo as demo_module  # noqa: E402
from tiledattn.cli import pipelines  # noqa: E402
from tiledattn.cli.methods import METHODS, Method, Painted  # noqa: E402
from tiledattn.cli.report import measure  # noqa: E402
from tiledattn.geometry import TileLayout  # noqa: E402

KEYS = [method.key for method in METHODS]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors are slower on many threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generate(tiny_model, tmp_path):
    def run(*options: str, out: str = "picture.png") -> int:
        common = ["generate", "--model", str(tiny_model), "-p", "a", "--steps", "2", "--out", str(tmp_path / out)]
        return main([*common, *options])

    return run


def test_generate_paints_the_size_asked_for(generate, tmp_path, capsys):
    assert generate("--size", "64x32", "--wrap", "x", "--halo", "4", "--negative-prompt", "b") == 0
    assert "64x32 pixels, 8 tiles" in capsys.readouterr().out
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (64, 32)
    assert [f.name for f in tmp_path.iterdir()] == ["picture.png"]


def test_generate_is_deterministic_and_options_matter(generate, tmp_path):
    def pixels(*options: str) -> np.ndarray:
        assert generate(*options) == 0
        return np.asarray(Image.open(tmp_path / "picture.png")).copy()

    first = pixels("--seed", "3")
    assert first.shape == (16, 64, 3)
    assert np.array_equal(first, pixels("--seed", "3"))
    assert not np.array_equal(first, pixels("--seed", "4"))
    alone = pixels("--seed", "3", "--halo", "0", "--no-conv-halo", "--norm", "tile")
    assert not np.array_equal(first, alone)
    assert not np.array_equal(alone, pixels("--seed", "3", "--halo", "0", "--norm", "tile"))
    blended = pixels("--seed", "3", "--overlap", "8x0", "--window", "uniform")
    assert not np.array_equal(first, blended)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "90x32"], "--size: width of the canvas: got 90 pixels"),
        (["--size", "64x33"], "--size: height: got 33 pixels; the nearest that work are 32 and 34"),
        (["--tile", "18"], "the nearest are 16"),
        (["--norm", "none"], "norm: got 'none'; known are tile, neighbours, canvas"),
        (["--window", "flat"], "window: got 'flat'"),
        (["--backend", "nosuch"], "backend: got 'nosuch'"),
        (["--halo-schedule", "cubic"], "halo_schedule: got 'cubic'"),
        (["--dtype", "int8"], "--dtype: got 'int8'; known are auto, float32"),
        (["--device", "nosuch"], "--device: got 'nosuch'"),
    ],
)
def test_bad_values_are_one_line_and_2(generate, options, message, tmp_path, capsys):
    assert generate(*options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_bad_ending_is_named_before_anything_is_loaded(generate, monkeypatch, capsys):
    monkeypatch.setattr(pipelines, "load_pipeline", None)
    assert generate(out="picture.xyz") == 2
    assert "--out: got" in capsys.readouterr().err


def test_a_missing_model_is_one_line_and_1(tmp_path, capsys):
    assert main(["generate", "--model", str(tmp_path / "nothing" / "here" / "x"), "-p", "a"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "is neither the folder of a diffusers pipeline" in lines[0]


def test_ctrl_c_while_painting_is_130_and_leaves_no_file(generate, tmp_path, monkeypatch):
    def interrupt(pipe, advance, **arguments):
        return original(pipe, lambda: signal.raise_signal(signal.SIGINT), **arguments)

    from tiledattn.cli import generate as module

    original = pipelines.paint
    monkeypatch.setattr(module, "paint", interrupt)
    assert generate() == 130
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_saving_keeps_the_old_file(generate, tmp_path, monkeypatch):
    (tmp_path / "picture.png").write_bytes(b"old")

    def interrupted(self, path, *args, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert generate() == 130
    assert (tmp_path / "picture.png").read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["picture.png"]


@pytest.fixture(scope="module")
def demo_run(tiny_model, tmp_path_factory):
    """Two prompts, two seeds, two steps: the folder that the demo wrote, and what it printed."""
    import contextlib
    import io

    out, printed = tmp_path_factory.mktemp("demo"), io.StringIO()
    arguments = ["demo", "--model", str(tiny_model), "--out", str(out), "--tiles", "4", "--seeds", "2"]
    with contextlib.redirect_stdout(printed):
        code = main([*arguments, "--steps", "2", "-p", "a b", "-p", "c"])
    assert code == 0
    return out, printed.getvalue()


def test_demo_writes_pictures_figures_and_a_sheet(demo_run):
    out, _ = demo_run
    names = {f"{prompt}-{key}.png" for prompt in ("a-b", "c") for key in KEYS}
    assert {f.name for f in out.iterdir()} == names | {"sheet.png", "figures.json"}
    for name in names:
        with Image.open(out / name) as picture:
            assert picture.size == (64, 16)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_demo_figures_have_what_the_table_shows(demo_run):
    out, printed = demo_run
    rows = json.loads((out / "figures.json").read_text())
    assert [row["method"] for row in rows] == [method.name for method in METHODS]
    assert all(row["method"] in printed for row in rows)
    assert [row["computed"] for row in rows] == [1.0, 1.5, 2.0, 1.0]
    for row, method in zip(rows, METHODS, strict=True):
        assert row["seconds"] > 0
        for name in ("seam_contrast", "tone_step", "wrap_score"):
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
            assert row[name]["count"] == 4
        assert (row["disagreement"] is None) == (method.overlap == 0)
    assert set(rows[0]["per_prompt"]) == {"a-b", "c"}


def test_demo_is_deterministic(demo_run, tiny_model, tmp_path):
    out, _ = demo_run
    arguments = ["demo", "--model", str(tiny_model), "--out", str(tmp_path), "--tiles", "4", "--seeds", "2"]
    assert main([*arguments, "--steps", "2", "-p", "a b"]) == 0
    for key in KEYS:
        again, before = (np.asarray(Image.open(f / f"a-b-{key}.png"), dtype=int) for f in (tmp_path, out))
        assert np.abs(again - before).max() <= 1


def test_demo_leaves_no_half_file_when_stopped(tiny_model, tmp_path, monkeypatch):
    def interrupted(self, path, *args, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    monkeypatch.setattr(demo_module, "METHODS", METHODS[:1])
    arguments = ["demo", "--model", str(tiny_model), "--out", str(tmp_path), "--tiles", "4", "--seeds", "1"]
    assert main([*arguments, "--steps", "1", "-p", "a"]) == 130
    assert not list(tmp_path.iterdir())


def test_coupled_tiles_share_no_position_and_blended_ones_do():
    assert [method.options(64)["overlap"] for method in METHODS] == [(0, 0), (0, 16), (0, 32), (0, 0)]
    assert [method.conv_halo for method in METHODS] == [False, False, False, True]


@pytest.mark.parametrize(("step", "seamless"), [(0.0, True), (0.4, False)])
def test_the_report_tells_planted_seams_from_none(step, seamless):
    layout = TileLayout((16, 96), (16, 16), wrap=(False, True))
    rng = np.random.default_rng(0)
    painted = []
    for prompt in ("a", "b", "c"):
        noise = rng.normal(size=(6, 3, 16, 96))
        pictures = (noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2)) / 8 + 0.5
        pictures += step * (np.arange(96) // 16 % 2)
        painted.append(Painted(Method("k", "name"), prompt, layout, 4, pictures, 0.5, ()))
    row = measure(painted)
    assert (1.0 in row.seam_contrast) == (1.0 in row.tone_step) == (1.0 in row.wrap_score) == seamless
    assert math.isnan(row.disagreement)
    assert (row.tiles, row.computed, row.seconds) == (6, 1.0, 0.5)
    assert row.seam_contrast.count == 18


def test_cpu_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with pipelines.cpu_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before
