"""Loading a pipeline, running it with a progress bar, and pictures to files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import whole_file
from .calls import paints_video, run
from .command import UsageError, bad_usage
from .shipped import SHIPPED, Shipped, shipped

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SMALL = 30_000_000  # parameters; Stable Diffusion 1.5 has 860 million


def load_pipeline(model: str | None, device: str = "auto", dtype: str = "auto", offload: bool = False) -> Any:
    """A diffusers pipeline on its device, without progress bars or messages.

    Args:
        model: a directory, a hub id or the name of a shipped model; None for the first of those. They need no network.
        device: "auto" (CUDA where there is one, else the CPU) or a torch device.
        dtype: "auto" (on CUDA float16 for a UNet and bfloat16 for a transformer, else float32), "float32", "float16" or
            "bfloat16".
        offload: leave it in the CPU's memory, from where one part at a time goes to the device (diffusers'
            `enable_model_cpu_offload`).

    Raises:
        ImportError: diffusers or transformers is missing; names the extra.
        FileNotFoundError: the model is neither a directory nor found on the hub.
        UsageError: an unknown device or dtype, or `offload` where the device is the CPU.
    """
    with bad_usage("--dtype"):
        if dtype not in DTYPES:
            raise ValueError(f"got {dtype!r}; known are {', '.join(DTYPES)}")
    place = _device(device)
    if offload and place.type == "cpu":
        raise UsageError("--offload: brings one part at a time to a GPU, and this runs on the CPU; leave it out")
    import torch

    diffusers = _quiet_diffusers()
    known = shipped(model)
    if known is not None and not Path(known.folder, "model_index.json").is_file():
        raise FileNotFoundError(f"the shipped model is missing from {known.folder}; reinstall, or give --model")
    source = known.folder if known is not None else model
    local = Path(str(source)).is_dir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = getattr(torch, dtype) if dtype != "auto" else _dtype_for(diffusers, source, place, local)
            pipe = diffusers.DiffusionPipeline.from_pretrained(source, dtype=kind, local_files_only=local)
    except (OSError, ValueError) as error:
        if local and not Path(str(source), "model_index.json").is_file():
            raise FileNotFoundError(
                f"--model: the folder {model!r} has no model_index.json; give one that save_pretrained wrote"
            ) from error
        if local:
            raise
        raise FileNotFoundError(
            f"--model: {model!r} is neither the folder of a diffusers pipeline nor a model that the hub, or the "
            f"cache of it, has; shipped are {', '.join(one.name for one in SHIPPED)}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if not offload:
        return pipe.to(place)
    pipe.enable_model_cpu_offload(device=place)
    return pipe


def native_size(pipe: Any, known: Shipped | None = None) -> tuple[int, int]:
    """The model's native (height, width) in pixels; a shipped one's is known.

    Raises:
        TypeError, ValueError: a pipeline that can't be tiled.
    """
    if known is not None:
        return known.native
    from ..diffusers import enable_tiling

    with enable_tiling(pipe) as handle:
        (height, width), pixels = handle.options.tile[-2:], handle.options.pixels
    return height * pixels, width * pixels


def paint(pipe: Any, advance: Callable[[], None], **arguments: Any) -> Any:
    """Runs a pipeline, calling `advance` after every denoising step; returns its pictures.

    A pipeline for video paints one frame.
    """
    if not paints_video(pipe):
        return run(pipe, advance, arguments)
    arguments = {**arguments, "num_frames": 1}
    if "num_images_per_prompt" in arguments:
        arguments["num_videos_per_prompt"] = arguments.pop("num_images_per_prompt")
    return [video[0] for video in run(pipe, advance, arguments)]


def progress_bar() -> Any:
    """A rich progress bar on stderr, if that is a terminal: what is painted, the share done, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def threads_for(pipe: Any, threads: int | None) -> int | None:
    """The CPU threads asked for; by default one for a small model, whose threads would mostly wait for one another."""
    return 1 if threads is None and is_small(pipe) else threads


def is_small(pipe: Any) -> bool:
    """Whether a pipeline's denoiser is about as small as the shipped ones."""
    model = denoiser(pipe)
    return model is not None and sum(p.numel() for p in model.parameters()) <= SMALL


def denoiser(pipe: Any) -> Any | None:
    """A pipeline's UNet or transformer."""
    return getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Lets torch use `count` CPU threads inside; None leaves the number as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_picture(picture: Any, path: str | os.PathLike[str]) -> None:
    """Saves a PIL picture whole or not at all; the ending chooses the format."""
    with whole_file(path) as temporary:
        picture.save(temporary)


def _dtype_for(diffusers: Any, source: Any, place: torch.device, local: bool) -> torch.dtype:
    """What suits a pipeline: activations of transformers leave float16's range."""
    import torch

    if place.type != "cuda":
        return torch.float32
    parts = diffusers.DiffusionPipeline.load_config(source, local_files_only=local)
    return torch.float16 if "unet" in parts else torch.bfloat16


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with bad_usage("--device"):
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"got {name!r}; expected auto, cpu, cuda, cuda:1 or another device of torch") from error
        if device.type == "meta":
            raise ValueError("got 'meta', which holds no values; expected auto, cpu, cuda, cuda:1, ...")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"got {name!r}, which torch can't use here: {_reason(error)}; tiledattn doctor lists the devices"
            ) from error
    return device


def _reason(error: Exception) -> str:
    """The first sentence of an error of torch about a device; it goes on for a page."""
    first = (str(error).splitlines() or [""])[0].split(". ")[0]
    return "this build of torch lacks it" if "aten::" in first or not first else first


def _quiet_diffusers() -> Any:
    """diffusers, with neither its nor transformers' progress bars and warnings."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ImportError(
            f"painting needs {error.name}, which is not installed: pip install 'tiledattn[diffusers]'"
        ) from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return diffusers
