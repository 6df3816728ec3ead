"""`tiledattn generate`: one picture or video of any size."""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .calls import (
    check_required,
    frame_rate,
    further_arguments,
    guidance_arguments,
    paints_video,
    parameters,
    parse_argument,
    run,
)
from .command import (
    MAX_SEED,
    DebugOption,
    ThreadsOption,
    UsageError,
    bad_usage,
    check_words,
    command,
    parse_size,
    parse_wrap,
    read,
)
from .outputs import FPS, check_kind, check_output, holds_video, save
from .pipelines import cpu_threads, load_pipeline, native_size, progress_bar, threads_for
from .shipped import SHIPPED, Shipped, note_vocabulary, shipped
from .sizes import check_axes, check_canvas, check_frames, parse_extents, parse_reach, parse_region

if TYPE_CHECKING:
    from ..diffusers import Tiling


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides the tiling; None where the model or the pipeline decides."""

    prompt: str
    negative: str | None
    size: tuple[int, int] | None
    frames: int | None
    fps: int | None
    steps: int | None
    seed: int
    guidance: float | None
    further: list[tuple[str, str]]
    out: Path


@command
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to paint.")],
    model: Annotated[
        str | None,
        typer.Option(help="Directory or hub id of a diffusers pipeline, or textures_unet (default) or textures_dit."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to paint.")] = None,
    size: Annotated[str | None, typer.Option(help="Picture, WxH in pixels; default four native tiles wide.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of a video; default one for a picture, else as many as the pipeline has it."),
    ] = None,
    fps: Annotated[
        int | None, typer.Option(min=1, max=240, help=f"Frames a second; default the pipeline's, or {FPS}.")
    ] = None,
    tile: Annotated[str | None, typer.Option(help="Tile in pixels: N, WxH, or WxHxF (frames); default native.")] = None,
    overlap: Annotated[str, typer.Option(help="Pixels (and frames) that adjacent tiles share, as --tile.")] = "0",
    halo: Annotated[
        str | None,
        typer.Option(
            help='Pixels (and frames) seen beyond a tile, or "all"; default 1/8 of the tile, 1/4 for transformers.'
        ),
    ] = None,
    norm: Annotated[str, typer.Option(help="Statistics of group norms: tile, neighbours or canvas.")] = "canvas",
    conv_halo: Annotated[bool, typer.Option(help="Convolutions read their neighbours' positions.")] = True,
    window: Annotated[str, typer.Option(help="Blend weights: uniform, hann, linear or gaussian.")] = "hann",
    blend: Annotated[
        str, typer.Option(help="Where tiles that overlap are blended: prediction, attention (of UNets), or auto.")
    ] = "auto",
    wrap: Annotated[str, typer.Option(help="Periodic axes: none, x, y or xy.")] = "none",
    halo_schedule: Annotated[str, typer.Option(help="The halo's weight: constant or quadratic.")] = "constant",
    region: Annotated[
        list[str] | None,
        typer.Option(help='A prompt for a box, "left,top,right,bottom: prompt", in pixels; any number.'),
    ] = None,
    jitter: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of a shift of the grid of tiles at every step.")
    ] = None,
    positions: Annotated[str, typer.Option(help="Where tokens are told they are: tile or canvas.")] = "tile",
    timestep_shift: Annotated[str, typer.Option(help="What decides the timestep shift: tile or canvas.")] = "tile",
    backend: Annotated[str, typer.Option(help="Backend of the operations; see tiledattn doctor.")] = "auto",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps; default the pipeline's, of the shipped models 20 and 12."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the noise.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default the model's.")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(help="A further argument of the pipeline, name=value; any number.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, float16, bfloat16 or auto: half precision on CUDA, bfloat16 for transformers.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    offload: Annotated[bool, typer.Option(help="Only one part of the pipeline at a time on the GPU.")] = False,
    vae_tiling: Annotated[bool, typer.Option(help="Decode the picture in tiles too: less memory.")] = False,
    threads: ThreadsOption = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Picture to write; for video .gif, .webp, .mp4 or frame-%03d.png."),
    ] = Path("tiledattn.png"),
    debug: DebugOption = False,
) -> None:
    """Paint one picture or video, tile by tile.

    The shipped models know brick, grass, gravel and stars; for anything else give --model: any diffusers pipeline of a
    model that tiledattn knows (Stable Diffusion, Flux, Qwen-Image, Wan, LTX, ...).

    [dim]A 360-degree panorama with a shipped model:[/dim]

    [dim]  tiledattn generate -p "a photo of gravel" --size 512x64 --wrap x -o gravel.png[/dim]

    [dim]4K with Stable Diffusion XL:[/dim]

    [dim]  tiledattn generate --model stabilityai/stable-diffusion-xl-base-1.0 -p "a river delta"
    --size 4096x2048 --tile 1024 --halo 128 -o delta.png[/dim]

    [dim]A panorama with Flux, a lake in its left half:[/dim]

    [dim]  tiledattn generate --model black-forest-labs/FLUX.1-dev -p "mountains" --region "0,0,2048,1024: a lake"
    --size 4096x1024 --halo 256 -o lake.png[/dim]

    [dim]A video with Wan, four times as long as it was trained for:[/dim]

    [dim]  tiledattn generate --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers -p "waves on a beach" --size 832x480 --frames 333
    --tile 832x480x81 --offload -o waves.mp4[/dim]
    """
    extents = {
        "tile": None if tile is None else read("--tile", parse_extents, tile),
        "overlap": read("--overlap", parse_extents, overlap),
        "halo": None if halo is None else read("--halo", parse_reach, halo),
    }
    options: dict[str, Any] = {
        **extents,
        "wrap": read("--wrap", parse_wrap, wrap),
        "norm": norm,
        "conv_halo": conv_halo,
        "window": window,
        "blend": blend,
        "halo_schedule": halo_schedule,
        "positions": positions,
        "timestep_shift": timestep_shift,
        "jitter": jitter,
        "backend": backend,
    }
    boxes = [read("--region", parse_region, text) for text in region or ()]
    further = [read("--arg", parse_argument, text) for text in arg or ()]
    canvas = None if size is None else read("--size", parse_size, size)
    check_output(out, frames, fps, pictures=model in (None, SHIPPED[0].name))
    words = [prompt, *(text for _, text in boxes)]
    check_words(words, negative_prompt, guidance)
    wanted = Wanted(prompt, negative_prompt, canvas, frames, fps, steps, seed, guidance, further, out)
    pipe, known = load_pipeline(model, device, dtype, offload), shipped(model)
    video = paints_video(pipe)
    check_kind(pipe, video, out, frames, fps)
    check_axes(pipe, {f"--{name}": value for name, value in extents.items()}, video)
    settings = _settings(pipe, known, wanted)
    begin = time.perf_counter()
    with bad_usage("--model"):
        native = native_size(pipe, known)
    options |= {"tile": options["tile"] or native, "regions": _regions(boxes)}
    if vae_tiling:
        _tile_vae(pipe)
    note_vocabulary(known, words)
    with cpu_threads(threads_for(pipe, threads)):
        pictures, tiles = _paint(pipe, options, native, settings)
    save(pictures, out, fps or frame_rate(pipe) or FPS)
    count = f"{len(pictures)} frames, " if len(pictures) > 1 else ""
    typer.echo(
        f"{out}: {pictures[0].width}x{pictures[0].height} pixels, {count}{tiles}, {time.perf_counter() - begin:.1f} s"
    )


def _settings(pipe: Any, known: Shipped | None, wanted: Wanted) -> dict[str, Any]:
    """Arguments of the pipeline; what isn't given is the shipped model's, or the pipeline's own.

    Raises:
        UsageError: something that the pipeline doesn't take, or something missing that it needs.
    """
    takes = parameters(pipe)
    further = further_arguments(pipe, wanted.further)
    given = guidance_arguments(pipe, wanted.guidance, wanted.negative, further)
    settings = dict(known.arguments) | {"guidance_scale": known.guidance} if known else {}
    settings["num_inference_steps"] = wanted.steps or (known.steps if known else _own_steps(takes))
    settings |= {"prompt": wanted.prompt, "generator": _noise(wanted.seed), **further, **given}
    if wanted.size is not None:
        if not {"height", "width"} <= takes.keys():
            raise UsageError(f"--size: {type(pipe).__name__} paints the size of its image; leave it out")
        settings["height"], settings["width"] = wanted.size
    frames = wanted.frames or (None if holds_video(wanted.out) else 1)
    if frames is not None and "num_frames" in takes:
        settings["num_frames"] = frames
    if wanted.fps is not None and "frame_rate" in takes:
        settings["frame_rate"] = wanted.fps
    check_required(pipe, settings)
    return settings


def _own_steps(takes: dict[str, inspect.Parameter]) -> int:
    """A pipeline's own number of steps; a shipped model's where it has none."""
    steps = takes["num_inference_steps"].default if "num_inference_steps" in takes else None
    return steps if isinstance(steps, int) else SHIPPED[0].steps


def _noise(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _tile_vae(pipe: Any) -> None:
    """Lets the pipeline's VAE decode in tiles of its own.

    Raises:
        UsageError: it can't.
    """
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        raise UsageError(f"--vae-tiling: the VAE of this {type(pipe).__name__} can't decode in tiles; leave it out")
    vae.enable_tiling()


def _regions(boxes: list[tuple[tuple[float, float, float, float], str]]) -> list[Any] | None:
    if not boxes:
        return None
    from ..diffusers import Region

    with bad_usage("--region"):
        return [Region(box, text) for box, text in boxes]


def _paint(
    pipe: Any, options: dict[str, Any], native: tuple[int, int], settings: dict[str, Any]
) -> tuple[list[Any], str]:
    """The picture, or the video's frames, and of what tiles it is."""
    from ..diffusers import enable_tiling

    takes = parameters(pipe)
    if "height" in takes and "height" not in settings:
        settings = {**settings, "height": native[0], "width": 4 * native[1]}
    with bad_usage():
        handle = enable_tiling(pipe, **options)
    with handle, progress_bar() as bar:
        if "height" in settings:
            with bad_usage("--size"):
                check_canvas(pipe, settings["height"], settings["width"], handle.options)
            with bad_usage(regions="region"):
                for each in handle.options.regions:
                    each.check_inside(settings["height"], settings["width"])
        if "num_frames" in settings:
            with bad_usage("--frames"):
                check_frames(settings["num_frames"], handle.options)
        task = bar.add_task("painting", total=settings["num_inference_steps"])
        (painted,) = run(pipe, lambda: bar.advance(task), settings)
        return (list(painted) if paints_video(pipe) else [painted]), _spelled(handle)


def _spelled(handle: Tiling) -> str:
    """How many tiles the last call had and, where they share positions, where these were blended."""
    layout = handle.layout
    assert layout is not None
    tiles = f"{layout.num_tiles} tile{'s' * (layout.num_tiles > 1)}"
    if layout.num_tiles * layout.tile_positions == math.prod(layout.size):
        return tiles
    return f"{tiles} blended {'behind attention' if handle.joined else 'as predictions'}"
