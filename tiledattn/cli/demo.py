"""`tiledattn demo`: wide panoramas tiled alone, blended and coupled, side by side and measured."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..files import whole_file
from .command import MAX_SEED, DebugOption, ThreadsOption, check_out, check_words, command
from .methods import DIT_METHODS, PROMPTS, UNET_METHODS, Method, Painted
from .painting import Teller, make_job, paint_all
from .pipelines import cpu_threads, load_pipeline, progress_bar, save_picture, threads_for
from .report import measure, print_table, summary
from .shipped import SHIPPED, note_vocabulary, shipped


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("tiledattn-demo"),
    model: Annotated[
        str | None,
        typer.Option(help="Directory or hub id of a pipeline, or a shipped one's name; default both shipped ones."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to paint, once or more; default four materials.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=4, help="Width of the panoramas in native tiles.")] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures per prompt and method, for the intervals.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first picture, which is saved.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default 20, shipped DiT 12.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default 1.5, shipped DiT 1.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures painted at once; default all seeds of a small model, one of another."),
    ] = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Paint wrapped panorama strips in several ways from one seed, and measure their seams.

    Tiles alone; tiles blended with hann windows over 25% and 50% of the tile; coupled tiles without overlap, a
    transformer's with a halo of half a tile. By default with both shipped models, a UNet and a diffusion transformer.

    Writes every picture, a comparison sheet and the figures; prints a table.

    [dim]Example: tiledattn demo --out build/demo[/dim]
    """
    check_words(prompt or (), None, guidance)
    prompts = named(prompt) if prompt else PROMPTS
    check_outputs(out, prompts, UNET_METHODS + DIT_METHODS)
    begin = time.perf_counter()
    note_vocabulary(shipped(model), prompts.values())
    jobs = [
        make_job(load_pipeline(name, device, dtype), shipped(name), tiles, batch, seeds, steps, guidance)
        for name in ([one.name for one in SHIPPED] if model is None else [model])
    ]
    painted: list[Painted] = []
    with progress_bar() as bar:
        teller = Teller(bar, prompts, jobs)
        for job in jobs:
            with cpu_threads(threads_for(job.pipe, threads)):
                painted += paint_all(job, prompts, seed, teller)
    for one in painted:
        save_picture(to_pil(one.pictures[0]), place_of(out, one.prompt, one.method))
    write_report(painted, out)
    typer.echo(summary(painted, time.perf_counter() - begin))
    typer.echo(f"{out / 'sheet.png'}: all of it on one sheet; the pictures and figures.json lie beside it")


def write_report(painted: Sequence[Painted], out: Path) -> None:
    """Measures the pictures, writes the figures and the sheet into `out`, and prints the table."""
    from .sheet import draw_sheet

    methods = dict.fromkeys(one.method for one in painted)
    rows = [measure([one for one in painted if one.method is method]) for method in methods]
    with whole_file(out / "figures.json") as temporary:
        temporary.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    draw_sheet(painted, rows, out / "sheet.png")
    print_table(rows)


def to_pil(picture: Any) -> Any:
    """A picture [3, H, W] in [0, 1] as a PIL image."""
    from PIL import Image

    return Image.fromarray((np.moveaxis(picture, 0, -1).clip(0, 1) * 255).round().astype(np.uint8))


def place_of(out: Path, name: str, method: Method) -> Path:
    """Where the picture of a prompt by a method is saved."""
    return out / f"{name}-{method.key}.png"


def check_outputs(out: Path, names: Iterable[str], methods: Iterable[Method]) -> None:
    """Raises UsageError unless everything that the demo writes can be written."""
    pictures = [place_of(out, name, method) for name in names for method in methods]
    for path in (*pictures, out / "figures.json", out / "sheet.png"):
        check_out(path)


def named(prompts: Sequence[str]) -> dict[str, str]:
    """Prompts by names that are fit for files and different from one another, in any script."""
    names: dict[str, str] = {}
    for text in prompts:
        words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
        short = name = "-".join(words)[:40].rstrip("-") or "prompt"
        number = 1
        while name in names:
            number += 1
            name = f"{short}-{number}"
        names[name] = text
    return names
