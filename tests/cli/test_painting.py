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

import diffusers
from PIL import Image

from tiledattn.cli import demo as demo_module
from tiledattn.cli import generate as generate_module
from tiledattn.cli import outputs, painting, pipelines
from tiledattn.cli.command import MAX_SEED
from tiledattn.cli.methods import DIT_METHODS, Method, Painted
from tiledattn.cli.methods import UNET_METHODS as METHODS
from tiledattn.cli.report import measure
from tiledattn.cli.shipped import shipped
from tiledattn.geometry import TileLayout

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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "blended behind attention"),
        (("--blend", "prediction"), "blended as predictions"),
        (("--blend", "auto", "--no-conv-halo"), "blended as predictions"),
    ],
)
def test_overlap_is_blended_where_it_is_asked_to_be(generate, capsys, options, words):
    assert generate("--size", "64x32", "--overlap", "8", "--halo", "4", *options) == 0
    assert f" tiles {words}, " in capsys.readouterr().out


def test_a_blend_that_can_not_be_had_is_refused(generate, capsys):
    assert generate("--blend", "attention", "--no-conv-halo") == 2
    assert "blend" in capsys.readouterr().err
    assert generate("--blend", "hann") == 2
    assert "--blend: got 'hann'; known are auto, prediction, attention" in capsys.readouterr().err


def test_a_film_of_a_model_that_paints_pictures_needs_no_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outputs, "_can_write_mp4", lambda: False)
    assert main(["generate", "--prompt", "a brick wall", "--out", str(tmp_path / "wall.mp4")]) == 2
    assert "a video, and StableDiffusionPipeline paints pictures" in capsys.readouterr().err


def test_the_default_size_is_native_whatever_the_tile(generate, tmp_path, capsys):
    assert generate("--tile", "8") == 0
    assert "64x16 pixels, 16 tiles" in capsys.readouterr().out


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
        (["--size", "90x32"], "--size: got 90x32; both must be multiples of 8 pixels here; the nearest that work are "),
        (["--size", "64x33"], "the nearest that work are 64x32 and 64x40"),
        (["--size", "2x2"], "--size: got 2x2; both must be multiples of 8 pixels here; the nearest that works is 8x8"),
        (["--prompt", "a \udcff"], r"--prompt: got 'a \udcff', which is not valid UTF-8"),
        (["--negative-prompt", "\udcff"], r"--negative-prompt: got '\udcff'"),
        (["--guidance", "nan"], "--guidance: got nan"),
        (["--device", "meta"], "--device: got 'meta', which holds no values"),
        (["--device", "mps:7"], "--device: got 'mps:7', which torch can't use here: "),
        (["--tile", "18"], "error: --tile: height: got 18 pixels; it must be a multiple of 4 here; the nearest are 16"),
        (["--overlap", "16x0"], "error: --overlap: width: got 16 pixels; it must be below the tile's 16"),
        (["--norm", "none"], "error: --norm: got 'none'; known are tile, neighbours, canvas"),
        (["--window", "flat"], "error: --window: got 'flat'"),
        (["--backend", "nosuch"], "error: --backend: got 'nosuch'"),
        (["--halo-schedule", "cubic"], "error: --halo-schedule: got 'cubic'"),
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


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("picture.xyz", "--out: got"),
        ("file/picture.png", "--out: can't write"),
        ("folder.png", "--out: can't write"),
    ],
)
def test_a_bad_file_is_named_before_anything_is_loaded(generate, out, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(generate_module, "load_pipeline", None)
    assert generate(out=out) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "file"], "--out: can't write"),
        (["--prompt", "a \udcff"], "--prompt: got"),
        (["--guidance", "inf"], "--guidance: got inf"),
        (["--seed", "99999999999999999999999"], "9223372036854775807"),
    ],
)
def test_the_demo_checks_its_options_before_anything_is_loaded(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(demo_module, "load_pipeline", None)
    assert main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_backend_in_the_environment_is_one_line(generate, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TILEDATTN_BACKEND", "nosuch")
    assert generate() in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "TILEDATTN_BACKEND: got 'nosuch'" in lines[0]
    assert not list(tmp_path.iterdir())


def test_seeds_have_the_range_of_torch(capsys):
    assert main(["generate", "-p", "a", "--seed", "99999999999999999999999"]) == 2
    assert "9223372036854775807" in capsys.readouterr().err
    torch.Generator().manual_seed(MAX_SEED)


def test_a_file_name_that_stdout_cannot_show_is_no_error(generate, tmp_path):
    import io
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        assert generate(out="草.png") == 0
    assert (tmp_path / "草.png").is_file()


def test_a_missing_model_is_one_line_and_1(tmp_path, capsys):
    assert main(["generate", "--model", str(tmp_path / "nothing" / "here" / "x"), "-p", "a"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "is neither the folder of a diffusers pipeline" in lines[0]
    assert lines[0].endswith("has; shipped are textures_unet, textures_dit")


def test_a_video_model_paints_one_frame(tmp_path, capsys):
    arguments = ["generate", "--model", "textures_dit", "-p", "grass", "--steps", "1"]
    assert main([*arguments, "--wrap", "x", "--out", str(tmp_path / "picture.png")]) == 0
    assert "256x64 pixels, 4 tiles" in capsys.readouterr().out
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (256, 64)
    assert main([*arguments, "--size", "72x64", "--out", str(tmp_path / "other.png")]) == 2
    assert (
        "both must be multiples of 16 pixels here; the nearest that work are 64x64 and 80x64" in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_demo_compares_both_shipped_models(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--tiles", "4", "--seeds", "1", "--steps", "1", "-p", "grass"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "painting 'grass', 1 of 2\npainting 'grass', 2 of 2\n"
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["model"], row["method"]) for row in rows] == [(m.model, m.name) for m in METHODS + DIT_METHODS]
    assert {path.name for path in tmp_path.glob("grass-*.png")} == {f"grass-{m.key}.png" for m in METHODS + DIT_METHODS}
    assert "7 pictures of 256x64 in 1 step each" in printed.out


def test_threads_of_generate(generate, monkeypatch):
    def recorded(pipe, advance, arguments):
        counts.append(torch.get_num_threads())
        return run(pipe, advance, arguments)

    counts: list[int] = []
    run = generate_module.run
    monkeypatch.setattr(generate_module, "run", recorded)
    with pipelines.cpu_threads(2):
        assert generate() == generate("--threads", "3") == 0
        monkeypatch.setattr(pipelines, "SMALL", 0)
        assert generate() == 0
        assert torch.get_num_threads() == 2
    assert counts == [1, 3, 2]


def test_ctrl_c_while_painting_is_130_and_leaves_no_file(generate, tmp_path, monkeypatch):
    def interrupt(pipe, advance, arguments):
        return original(pipe, lambda: signal.raise_signal(signal.SIGINT), arguments)

    original = generate_module.run
    monkeypatch.setattr(generate_module, "run", interrupt)
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

    out, printed, progress = tmp_path_factory.mktemp("demo"), io.StringIO(), io.StringIO()
    arguments = ["demo", "--model", str(tiny_model), "--out", str(out), "--tiles", "4", "--seeds", "2"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
        code = main([*arguments, "--steps", "2", "-p", "a b", "-p", "c"])
    assert code == 0
    assert progress.getvalue() == "painting 'a b', 1 of 2\npainting 'c', 2 of 2\n"
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
    assert {row["model"] for row in rows} == {"UNet"}
    assert all(row["method"] in printed for row in rows)
    assert [row["computed"] for row in rows] == [1.0, 1.5, 2.0, 1.0]
    for row, method in zip(rows, METHODS, strict=True):
        assert row["seconds"] > 0
        for name in ("seam_contrast", "tone_step", "wrap_score"):
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
            assert row[name]["count"] == 4
        assert (row["disagreement"] is None) == (method.overlap == 0)
        if method.overlap:
            assert row["method"] == f"blended, {100 // method.overlap}% overlap ({method.window})"
    assert set(rows[0]["per_prompt"]) == {"a-b", "c"}


@pytest.mark.parametrize("options", [[], ["--batch", "1"]])
def test_demo_is_deterministic_and_batches_do_not_matter(options, demo_run, tiny_model, tmp_path):
    out, _ = demo_run
    arguments = ["demo", "--model", str(tiny_model), "--out", str(tmp_path), "--tiles", "4", "--seeds", "2"]
    assert main([*arguments, "--steps", "2", "-p", "a b", *options]) == 0
    for key in KEYS:
        again, before = (np.asarray(Image.open(f / f"a-b-{key}.png"), dtype=int) for f in (tmp_path, out))
        assert np.abs(again - before).max() <= 1
    rows, first = (json.loads((f / "figures.json").read_text()) for f in (tmp_path, out))
    assert rows[1]["per_prompt"]["a-b"]["value"] == pytest.approx(first[1]["per_prompt"]["a-b"]["value"], rel=1e-3)


@pytest.fixture
def pipe(tiny_model):
    return pipelines.load_pipeline(str(tiny_model), "cpu")


def test_an_offloaded_pipeline_stays_in_memory(tiny_model, monkeypatch):
    monkeypatch.setattr(pipelines, "_device", lambda name: torch.device("cuda", 1))
    places = []
    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "enable_model_cpu_offload", lambda self, device=None: places.append(device)
    )
    pipe = pipelines.load_pipeline(str(tiny_model), "cuda:1", "float32", offload=True)
    assert places == [torch.device("cuda", 1)]
    assert pipe.unet.device == torch.device("cpu")


def test_steps_are_the_pipelines_own(pipe, tmp_path):
    def steps(known, asked=None):
        wanted = generate_module.Wanted("a", None, None, None, None, asked, 0, None, [], tmp_path / "a.png")
        return generate_module._settings(pipe, known, wanted)["num_inference_steps"]

    assert (steps(None), steps(None, 3), steps(shipped(None))) == (50, 3, 20)


def test_batches_are_pooled_as_one(pipe):
    jobs = [painting.make_job(pipe, None, 4, batch, 3, steps=2) for batch in (3, 2)]
    whole, parts = (painting.paint_one(job, METHODS[1], "a", "a", [0, 1, 2], lambda: None) for job in jobs)
    assert parts.pictures == pytest.approx(whole.pictures, abs=1e-4)
    assert parts.disagreement == pytest.approx(whole.disagreement, rel=1e-4)
    assert len(whole.disagreement) == 2


def test_large_models_are_painted_one_by_one_on_all_threads(tiny_model, tmp_path, monkeypatch):
    def recorded(pipe, advance, **arguments):
        calls.append((arguments["num_images_per_prompt"], torch.get_num_threads()))
        return pipelines.paint(pipe, advance, **arguments)

    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(painting, "paint", recorded)
    monkeypatch.setattr(painting, "methods_for", lambda pipe: METHODS[:1])
    monkeypatch.setattr(demo_module, "write_report", lambda painted, out: None)
    arguments = ["demo", "--model", str(tiny_model), "--out", str(tmp_path), "--tiles", "4", "--seeds", "2"]
    arguments += ["--steps", "1", "-p", "a"]
    with pipelines.cpu_threads(2):
        assert main(arguments) == 0
        monkeypatch.setattr(pipelines, "SMALL", 0)
        assert main(arguments) == 0
    assert calls == [(2, 1), (1, 2), (1, 2)]


@pytest.mark.parametrize(("sample", "native"), [(8, (16, 16)), ((8, 16), (16, 32)), (None, (128, 128))])
def test_native_size(sample, native, pipe):
    pipe.unet.register_to_config(sample_size=sample)
    assert pipelines.native_size(pipe) == native


def test_a_model_id_is_passed_as_it_was_given(monkeypatch):
    import diffusers

    given = []

    def pretrained(source, **options):
        given.append(source)
        raise OSError

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", pretrained)
    for model in ("a/b", "./a//b"):
        with pytest.raises(FileNotFoundError):
            pipelines.load_pipeline(model, "cpu")
    assert given == ["a/b", "./a//b"]


def test_prompts_get_names_of_their_own():
    long = "grass on the ground, as far as the eye can see"
    prompts = ["砖墙", "草地", "a b!", "A,  b", "a b 2", "!", "?", f"{long} today", f"{long} tomorrow"]
    names = demo_module.named(prompts)
    assert list(names.values()) == prompts
    assert list(names)[:7] == ["砖墙", "草地", "a-b", "a-b-2", "a-b-2-2", "prompt", "prompt-2"]
    assert len({name.casefold() for name in names}) == len(prompts)


def test_demo_leaves_no_half_file_when_stopped(tiny_model, tmp_path, monkeypatch):
    def interrupted(self, path, *args, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    monkeypatch.setattr(painting, "methods_for", lambda pipe: METHODS[:1])
    arguments = ["demo", "--model", str(tiny_model), "--out", str(tmp_path), "--tiles", "4", "--seeds", "1"]
    assert main([*arguments, "--steps", "1", "-p", "a"]) == 130
    assert not list(tmp_path.iterdir())


def test_coupled_tiles_share_no_position_and_blended_ones_do():
    assert [method.options(64)["overlap"] for method in METHODS] == [(0, 0), (0, 16), (0, 32), (0, 0)]
    assert [method.conv_halo for method in METHODS] == [False, False, False, True]
    assert [method.options(64)["halo"] for method in DIT_METHODS] == [(0, 0), (0, 0), (0, 32)]
    assert [method.options(64)["overlap"] for method in DIT_METHODS] == [(0, 0), (0, 16), (0, 0)]


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
