"""`tiledattn generate`: one picture of any size."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import (
    MAX_SEED,
    SHIPPED_GUIDANCE,
    DebugOption,
    ThreadsOption,
    bad_usage,
    check_words,
    command,
    parse_extent,
    parse_halo,
    parse_size,
    parse_wrap,
    read,
)
from .pipelines import (
    check_picture_path,
    cpu_threads,
    load_pipeline,
    native_size,
    note_vocabulary,
    paint,
    progress_bar,
    save_picture,
    threads_for,
)

if TYPE_CHECKING:
    from ..diffusers.options import Options

# Stable Diffusion pipelines take only multiples of it, whatever their VAE.
PIPELINE_STEP = 8


@command
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to paint.")],
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id of a diffusers pipeline; default the shipped small one.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to paint.")] = None,
    size: Annotated[str | None, typer.Option(help="Picture, WxH in pixels; default four native tiles wide.")] = None,
    tile: Annotated[str | None, typer.Option(help="Tile in pixels, a number or WxH; default native.")] = None,
    overlap: Annotated[str, typer.Option(help="Pixels that adjacent tiles share, a number or WxH.")] = "0",
    halo: Annotated[str | None, typer.Option(help='Pixels seen beyond a tile, a number, WxH or "all".')] = None,
    norm: Annotated[str, typer.Option(help="Statistics of group norms: tile, neighbours or canvas.")] = "canvas",
    conv_halo: Annotated[bool, typer.Option(help="Convolutions read their neighbours' positions.")] = True,
    window: Annotated[str, typer.Option(help="Blend weights: uniform, hann, linear or gaussian.")] = "hann",
    wrap: Annotated[str, typer.Option(help="Periodic axes: none, x, y or xy.")] = "none",
    halo_schedule: Annotated[str, typer.Option(help="The halo's weight: constant or quadratic.")] = "constant",
    backend: Annotated[str, typer.Option(help="Backend of the operations; see tiledattn doctor.")] = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the noise.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default 1.5 or the pipeline's.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: ThreadsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("tiledattn.png"),
    debug: DebugOption = False,
) -> None:
    """Paint one picture, tile by tile.

    The shipped model knows brick, grass, gravel and stars; for anything else give --model.

    [dim]A 360-degree panorama with the shipped model:[/dim]

    [dim]  tiledattn generate -p "a photo of gravel" --size 512x64 --wrap x -o gravel.png[/dim]

    [dim]4K with Stable Diffusion XL:[/dim]

    [dim]  tiledattn generate --model stabilityai/stable-diffusion-xl-base-1.0 -p "a river delta"
    --size 4096x2048 --tile 1024 --halo 128 -o delta.png[/dim]
    """
    options: dict[str, Any] = {
        "tile": None if tile is None else read("--tile", parse_extent, tile),
        "overlap": read("--overlap", parse_extent, overlap),
        "halo": None if halo is None else read("--halo", parse_halo, halo),
        "wrap": read("--wrap", parse_wrap, wrap),
        "norm": norm,
        "conv_halo": conv_halo,
        "window": window,
        "halo_schedule": halo_schedule,
        "backend": backend,
    }
    canvas = None if size is None else read("--size", parse_size, size)
    check_picture_path(out)
    check_words([prompt], negative_prompt, guidance)
    pipe = load_pipeline(model, device, dtype)
    begin = time.perf_counter()
    with cpu_threads(threads_for(pipe, threads)):
        picture, tiles = _paint_one(pipe, options, canvas, steps, seed, prompt, negative_prompt, guidance, model)
    save_picture(picture, out)
    seconds = time.perf_counter() - begin
    typer.echo(f"{out}: {picture.width}x{picture.height} pixels, {tiles} tile{'s' * (tiles > 1)}, {seconds:.1f} s")


def _paint_one(
    pipe: Any,
    options: dict[str, Any],
    canvas: tuple[int, int] | None,
    steps: int,
    seed: int,
    prompt: str,
    negative_prompt: str | None,
    guidance: float | None,
    model: str | None,
) -> tuple[Any, int]:
    """The picture, and of how many tiles it is."""
    import torch

    from ..diffusers import enable_tiling

    if canvas is None:
        with bad_usage("--model"):
            height, width = native_size(pipe)
        canvas = height, 4 * width
    with bad_usage():
        handle = enable_tiling(pipe, **options)
    arguments: dict[str, Any] = {"negative_prompt": negative_prompt}
    if guidance is not None or model is None:
        arguments["guidance_scale"] = SHIPPED_GUIDANCE if guidance is None else guidance
    with handle, progress_bar() as bar:
        pixels = handle.options.pixels
        height, width = canvas
        with bad_usage("--size"):
            _check_canvas(height, width, handle.options)
            layout = handle.options.layout_for(height // pixels, width // pixels)
        note_vocabulary(model, [prompt])
        task = bar.add_task("painting", total=steps)
        output = paint(
            pipe,
            lambda: bar.advance(task),
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            **arguments,
        )
    return output.images[0], layout.num_tiles


def _check_canvas(height: int, width: int, options: Options) -> None:
    """Raises ValueError naming the nearest sizes that work, where the model's levels or its pipeline can't divide one.

    A picture of one tile that doesn't wrap needs only the pipeline's own multiple, a tiled one the levels' as well.
    """
    step = _multiple(height, width, options)
    if not (height % step or width % step):
        return
    below = (height // step * step, width // step * step)
    above = (-(-height // step) * step, -(-width // step) * step)
    near = [f"{w}x{h}" for h, w in (below, above) if h and w]
    nearest = f"nearest that work are {near[0]} and {near[1]}" if len(near) == 2 else f"nearest that works is {near[0]}"
    raise ValueError(f"got {width}x{height}; both must be multiples of {step} pixels here; the {nearest}")


def _multiple(height: int, width: int, options: Options) -> int:
    """What both lengths of a picture must be multiples of, in pixels."""
    tile = [length * options.pixels for length in options.tile]
    tiled = height > tile[0] or width > tile[1] or any(options.wrap)
    return math.lcm(PIPELINE_STEP, options.pixels * (options.granularity if tiled else 1))
