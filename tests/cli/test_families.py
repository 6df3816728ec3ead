"""`generate` with a tiny saved pipeline of every family: pictures, videos, and what is refused before painting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

for package in ("typer", "diffusers", "transformers", "matplotlib"):
    pytest.importorskip(package)

from diffusers import (
    CogVideoXPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    LTXPipeline,
    QwenImagePipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from tiny_diffusers import make_scheduler, make_text_encoder, make_unet, make_vae
from tiny_transformers.cogvideox import NEWER, ROTARY
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from typer.testing import CliRunner

from tiledattn.cli import outputs
from tiledattn.cli.app import app

from ..diffusers.families import test_flux2, test_image_pipelines, test_qwenimage, test_video_pipelines, test_wan
from ..diffusers.families.test_region_prompts import flux_pipe
from ..diffusers.families.video_pipes import hunyuan15, ltx2

SHORT = ["--arg", "max_sequence_length=12"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stable_diffusion(tokenizer: Any) -> Any:
    parts = {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(CLIPTextModel, tokenizer, 2),
        "tokenizer": tokenizer,
        "unet": make_unet("sd"),
        "scheduler": make_scheduler(),
    }
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def stable_diffusion_xl(tokenizer: Any) -> Any:
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(CLIPTextModel, tokenizer, 2),
        text_encoder_2=make_text_encoder(CLIPTextModelWithProjection, tokenizer, 3),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet("sdxl"),
        scheduler=make_scheduler(),
    )


@dataclass(frozen=True)
class Case:
    """A pipeline, and the options that paint two tiles of it."""

    make: Callable[[Any], Any]
    options: list[str]
    size: tuple[int, int] = (64, 32)
    frames: int | None = None
    tiles: int = 2

    def line(self) -> list[str]:
        """The options, with the size."""
        width, height = self.size
        frames = [] if self.frames is None else ["--frames", str(self.frames)]
        return [*self.options, "--size", f"{width}x{height}", *frames]


def video(
    make: Callable[[], Any], frames: int, tile: str, *more: str, size: tuple[int, int] = (64, 32), tiles: int = 4
):
    return Case(lambda tokenizer: make(), ["--tile", tile, *more], size, frames, tiles)


PICTURE = ["--tile", "32"]
GUIDED = ["--negative-prompt", "blurred", "--guidance", "3"]
CASES: dict[str, Case] = {
    "sd": Case(stable_diffusion, [*PICTURE, *GUIDED]),
    "sdxl": Case(stable_diffusion_xl, [*PICTURE, *GUIDED]),
    **{
        name: Case(make, [*PICTURE, *SHORT, *GUIDED, "--steps", "2"])
        for name, (make, _) in test_image_pipelines.MAKERS.items()
        if name not in ("sana", "lumina2")
    },
    "sana": Case(
        test_image_pipelines.sana_,
        [*PICTURE, *SHORT, *GUIDED, "--arg", "complex_human_instruction=none", "--halo", "0"],
    ),
    "lumina2": Case(test_image_pipelines.lumina_2, [*PICTURE, *GUIDED, "--arg", "max_sequence_length=48"]),
    "flux": Case(flux_pipe, [*PICTURE, *SHORT, "--guidance", "3"]),
    "flux2": Case(
        lambda tokenizer: test_flux2.make_pipe(Flux2Pipeline, test_flux2.parts.__wrapped__()), [*PICTURE, *SHORT]
    ),
    "flux2-klein": Case(
        lambda tokenizer: test_flux2.make_pipe(Flux2KleinPipeline, test_flux2.parts.__wrapped__()),
        [*PICTURE, *SHORT, "--guidance", "2"],
    ),
    "qwenimage": Case(
        lambda tokenizer: test_qwenimage.make_pipe(QwenImagePipeline, test_qwenimage.parts.__wrapped__()),
        [*PICTURE, *GUIDED],
    ),
    "wan": video(test_wan.wan, 17, "32x32x9", *SHORT, *GUIDED),
    "ltx": video(lambda: test_video_pipelines.ltx(LTXPipeline), 9, "32x32x5", *SHORT, "--fps", "12"),
    "hunyuan": Case(test_video_pipelines.hunyuan, ["--tile", "32x32x9", *SHORT, "--guidance", "4"], frames=17, tiles=4),
    "hunyuan15": video(hunyuan15, 9, "32x32x5", "--negative-prompt", "blurred"),
    "ltx2": video(
        *(ltx2, 9, "32x32x5", "--arg", "max_sequence_length=16", "--arg", "spatio_temporal_guidance_blocks=[1]")
    ),
    "cogvideox": video(
        lambda: test_video_pipelines.cogvideox(CogVideoXPipeline, **ROTARY),
        *(25, "64x32x17", "--arg", "max_sequence_length=6"),
        size=(96, 32),
    ),
    "cogvideox-1.5": video(
        lambda: test_video_pipelines.cogvideox(CogVideoXPipeline, **{**NEWER, "ofs_embed_dim": None}),
        *(9, "64x32", "--arg", "max_sequence_length=6"),
        size=(96, 32),
        tiles=2,
    ),
    "mochi": video(test_video_pipelines.mochi, 13, "32x32x7", "--arg", "max_sequence_length=6", "--steps", "2"),
}


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Folders of saved pipelines by name, each saved once."""

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            CASES[name].make(tokenizer).save_pretrained(folders[name])
        return folders[name]

    folders: dict[str, Path] = {}
    return folder


def generate(folder: Path, out: Path, *options: str):
    return CliRunner().invoke(
        app, ["generate", "--model", str(folder), "-p", "a river delta", "--steps", "1", "-o", str(out), *options]
    )


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", CASES)
def test_every_family_paints(name, saved, tmp_path):
    case = CASES[name]
    out = tmp_path / ("out.png" if case.frames is None else "out.gif")
    done = generate(saved(name), out, *case.line())
    assert done.exit_code == 0, done.stderr
    frames = "" if case.frames is None else f"{case.frames} frames, "
    assert f"{case.size[0]}x{case.size[1]} pixels, {frames}{case.tiles} tiles" in done.stdout
    with Image.open(out) as picture:
        assert picture.size == case.size
        if case.frames is not None:
            assert getattr(picture, "n_frames", 1) == case.frames
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_sound_that_is_left_out_is_told(saved, tmp_path):
    done = generate(saved("ltx2"), tmp_path / "out.png", *CASES["ltx2"].options, "--size", "32x32")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == "tiledattn: note: the sound that LTX2Pipeline makes is not saved\n"


def test_a_video_pipeline_paints_one_frame_to_a_picture(saved, tmp_path):
    done = generate(saved("wan"), tmp_path / "out.webp", "--size", "32x32", *SHORT)
    assert done.exit_code == 0, done.stderr
    with Image.open(tmp_path / "out.webp") as picture:
        assert (picture.size, picture.n_frames) == ((32, 32), 1)


def test_a_video_has_the_pipeline_s_own_number_of_frames(saved, tmp_path):
    options = ["--size", "64x32", "--arg", "max_sequence_length=6", "--fps", "30"]
    done = generate(saved("cogvideox"), tmp_path / "out.gif", *options)
    assert done.exit_code == 0, done.stderr
    with Image.open(tmp_path / "out.gif") as picture:
        durations = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            durations.append(picture.info["duration"])
    assert len(durations) == 17
    assert set(durations) == {30, 40}
    assert sum(durations) == 570


def test_frames_are_numbered(saved, tmp_path):
    done = generate(saved("wan"), tmp_path / "new" / "f-%02d.png", "--size", "32x32", "--frames", "5", *SHORT)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"f-0{n}.png" for n in range(1, 6)]


def test_films_are_written_by_diffusers(saved, tmp_path, monkeypatch):
    def export(frames, path, fps, **options):
        Path(path).write_text(f"{len(frames)} at {fps}")

    monkeypatch.setattr("diffusers.utils.export_to_video", export)
    monkeypatch.setattr(outputs, "_can_write_mp4", lambda: True)
    done = generate(saved("wan"), tmp_path / "out.mp4", "--size", "32x32", "--frames", "5", *SHORT)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out.mp4").read_text() == "5 at 16"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("there", [["imageio"], []])
def test_a_film_without_its_packages_says_what_always_works(there, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "find_spec", lambda name: name in there or None)
    monkeypatch.setattr("tiledattn.cli.generate.load_pipeline", None)
    done = generate(tmp_path, tmp_path / "out.mp4")
    assert done.exit_code == 1
    assert "pip install imageio imageio-ffmpeg; .gif, .webp and numbered pictures" in done.stderr


def test_a_picture_to_begin_with(saved, tmp_path, tokenizer, monkeypatch):
    """Image to video: the picture is an argument of the pipeline."""
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", SimpleNamespace(fix_text=str), raising=False)
    folder = tmp_path / "model"
    test_wan.image_to_video().save_pretrained(folder)
    Image.new("RGB", (48, 32), "red").save(tmp_path / "beach.png")
    options = ["--size", "48x32", "--tile", "32x32", "--frames", "5", *SHORT]
    done = generate(folder, tmp_path / "out.gif", *options)
    assert done.exit_code == 2
    assert "--model: WanImageToVideoPipeline also needs image; add --arg image=FILE" in done.stderr
    done = generate(folder, tmp_path / "out.gif", *options, "--arg", "image=nosuch.png")
    assert "--arg: image: got 'nosuch.png': No such file" in done.stderr
    done = generate(folder, tmp_path / "out.gif", *options, "--arg", f"image={tmp_path / 'beach.png'}")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("name", ["wan", "flux", "sd"])
def test_control(name, saved, tmp_path):
    """Regions, a grid that moves, positions and shift reach the tiling: pictures differ, or stay as they are."""

    def pixels(*options: str) -> bytes:
        done = generate(saved(name), tmp_path / "out.png", "--size", "64x32", *options, *CASES[name].options)
        assert done.exit_code == 0, done.stderr
        with Image.open(tmp_path / "out.png") as picture:
            return picture.tobytes()

    plain = pixels()
    whole, half = pixels("--region", "0,0,64,32: a river delta"), pixels("--region", "0,0,32,32:delta a")
    assert plain not in (half, pixels("--jitter", "3"))
    if name != "sd":  # a region is another row of the text encoder's batch, and a UNet's norms see rounding
        assert whole == plain
    if name == "wan":
        assert pixels("--positions", "canvas") != b""
    if name == "flux":
        assert pixels("--timestep-shift", "canvas", "--steps", "2") != pixels("--steps", "2")


@pytest.mark.parametrize(
    ("name", "out", "options", "message"),
    [
        (
            "flux",
            "a.png",
            ["--negative-prompt", "a"],
            "--negative-prompt: FluxPipeline ignores it unless true_cfg_scale",
        ),
        (
            "flux2",
            "a.png",
            ["--negative-prompt", "a"],
            "--negative-prompt: Flux2Pipeline takes no negative prompt; it ",
        ),
        ("hunyuan15", "a.png", ["--guidance", "3"], "--guidance: HunyuanVideo15Pipeline takes neither guidance_scale"),
        ("flux", "a.png", ["--arg", "seed=3"], "--arg: got 'seed'; FluxPipeline takes prompt_2, "),
        ("flux", "a.png", ["--arg", "height=3"], "--arg: got height; give it by --size"),
        ("flux", "a.png", ["--arg", "latents=3"], "--arg: got 'latents'; FluxPipeline takes"),
        ("flux", "a.png", ["--arg", "max_sequence_length"], "--arg: got 'max_sequence_length'; expected name=value"),
        ("flux", "a.png", ["--arg", "max_sequence_length=a"], "--arg: max_sequence_length: got 'a'; expected int"),
        ("flux", "a.png", ["--arg", "max_sequence_length=true"], "max_sequence_length: got 'true'; expected int"),
        ("flux", "a.png", ["--arg", "prompt_2=a", "--arg", "prompt_2=b"], "--arg: got prompt_2 twice"),
        ("flux", "a.png", ["--guidance", "3", "--arg", "guidance_scale=3"], "--guidance: guidance_scale is given by"),
        ("flux", "a.png", ["--frames", "5"], "--frames: got 5, and 'a.png' holds one picture; end --out in .gif,"),
        ("flux", "a.webp", ["--frames", "5"], "--frames: got 5; FluxPipeline paints pictures, not video"),
        ("flux", "a.gif", [], "a.gif', a video, and FluxPipeline paints pictures; its ending must be one of .png"),
        ("flux", "a-%d.png", [], "a-%d.png', a video, and FluxPipeline paints pictures"),
        ("flux", "a-%d.gif", [], "numbered frames must end in one of .png"),
        ("flux", "a.png", ["--fps", "5"], "--fps: 'a.png' holds one picture"),
        ("wan", "a.gif", ["--fps", "60"], "--fps: got 60; a .gif shows 50 frames a second at most"),
        ("flux", "a.png", ["--tile", "32x32x9"], "--tile: got 32x32x9; FluxPipeline paints pictures, which have no"),
        ("flux", "a.png", ["--tile", "32x32x9x1"], "--tile: got '32x32x9x1'; expected a number such as 64, WxH such"),
        (
            "flux",
            "a.png",
            ["--size", "72x32"],
            "--size: got 72x32; both must be multiples of 16 pixels here; the nearest",
        ),
        (
            "sana",
            "a.png",
            ["--size", "48x32"],
            "both must be multiples of 32 pixels here; the nearest that work are 32x",
        ),
        (
            "wan",
            "a.gif",
            ["--frames", "6"],
            "--frames: got 6; it must be 1 or a multiple of 4 more here; the nearest that",
        ),
        ("wan", "a.gif", ["--tile", "32x32x6"], "--tile: frames: got 6 frames; it must be 1 or a multiple of 4 more"),
        ("wan", "a.gif", ["--overlap", "0x0x9", "--tile", "32x32x9"], "--overlap: frames: got 9 frames; it must be"),
        ("wan", "a.gif", ["--halo", "8x8x2"], "--halo: frames: got 2 frames; it must be a multiple of 4 here"),
        (
            "flux",
            "a.png",
            ["--region", "0,0,9: a"],
            "--region: got '0,0,9: a'; expected \"left,top,right,bottom: prompt\"",
        ),
        ("flux", "a.png", ["--region", "9,0,9,9: a"], "--region: box: got (9.0, 0.0, 9.0, 9.0), which is empty"),
        (
            "flux",
            "a.png",
            ["--region", "0,0,9,99: a", "--size", "32x32"],
            "--region: box (0.0, 0.0, 9.0, 99.0) (left, ",
        ),
        ("flux", "a.png", ["--positions", "canvas"], '--positions: got "canvas"; text would stand'),
        ("flux", "a.png", ["--timestep-shift", "none"], "--timestep-shift: got 'none'; known are tile, canvas"),
        ("wan", "a.png", ["--positions", "canvas", "--jitter", "1"], "--jitter: can't be had with positions="),
    ],
)
def test_bad_values_are_one_line_and_2(name, out, options, message, saved, tmp_path):
    done = generate(saved(name), tmp_path / out, *options)
    assert done.exit_code == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())
