"""Where pictures and videos go: endings, numbered frames, animations, films."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..files import whole_file
from .command import UsageError, check_out
from .pipelines import PICTURES, save_picture

FILMS = (".gif", ".mp4")  # .webp is a picture as well
ANIMATED = (".gif", ".webp", ".mp4")
NUMBER = re.compile(r"%0?\d*d")
GIF_FPS = 50  # viewers slow down what is faster
FPS = 16


def check_output(path: Path, frames: int | None, fps: int | None, pictures: bool = False) -> None:
    """Checks `--out` before anything is loaded; with `pictures` the model is known to paint no films (`check_kind`).

    Raises:
        UsageError: an ending that is none of a picture or video, more frames than the file holds, a path that can't be
            written.
        ImportError: the packages that write .mp4 are missing.
    """
    ending = path.suffix.lower()
    if _is_numbered(path):
        if ending not in PICTURES:
            raise UsageError(f"--out: got {str(path)!r}; numbered frames must end in one of {', '.join(PICTURES)}")
    elif ending not in (*PICTURES, *FILMS):
        raise UsageError(f"--out: got {str(path)!r}; its ending must be one of {', '.join((*PICTURES, *FILMS))}")
    elif ending not in ANIMATED and (frames or 1) > 1:
        raise UsageError(
            f"--frames: got {frames}, and {path.name!r} holds one picture; end --out in {', '.join(ANIMATED)}, or "
            f"number the frames: {path.stem}-%03d{path.suffix}; for a picture leave --frames out"
        )
    elif fps is not None and not holds_video(path) and (frames or 1) == 1:
        raise UsageError(f"--fps: {path.name!r} holds one picture; leave it out, or end --out in .gif or .mp4")
    if fps is not None and fps > GIF_FPS and ending == ".gif":
        raise UsageError(f"--fps: got {fps}; a .gif shows {GIF_FPS} frames a second at most")
    if ending == ".mp4" and not pictures and not _can_write_mp4():
        raise ImportError(
            "--out: .mp4 needs imageio-ffmpeg, which is not installed: pip install imageio imageio-ffmpeg; .gif, "
            ".webp and numbered pictures such as frame-%03d.png always work"
        )
    check_out(_numbered(path, 1) if _is_numbered(path) else path)


def check_kind(pipe: Any, video: bool, path: Path, frames: int | None, fps: int | None) -> None:
    """Raises UsageError where a pipeline that paints pictures is asked for a video."""
    if video:
        return
    name = type(pipe).__name__
    if (frames or 1) > 1:
        raise UsageError(f"--frames: got {frames}; {name} paints pictures, not video; leave it out")
    if fps is not None:
        raise UsageError(f"--fps: {name} paints pictures, not video; leave it out")
    if holds_video(path):
        raise UsageError(
            f"--out: got {str(path)!r}, a video, and {name} paints pictures; its ending must be one of "
            f"{', '.join(PICTURES)}"
        )


def holds_video(path: Path) -> bool:
    """Whether `--out` asks for a video, not for a picture."""
    return _is_numbered(path) or path.suffix.lower() in FILMS


def save(frames: Sequence[Any], path: Path, fps: float) -> None:
    """Saves PIL pictures as one file, or one each where the name numbers them; each file whole or not at all.

    Args:
        frames: the frames; one is a picture.
        path: an ending of a picture, .gif, .webp or .mp4, or a name with a number (%03d), which counts from 1.
        fps: frames per second.
    """
    if _is_numbered(path):
        for number, frame in enumerate(frames, 1):
            save_picture(frame, _numbered(path, number))
    elif path.suffix.lower() == ".mp4":
        from diffusers.utils import export_to_video

        with whole_file(path) as temporary:
            export_to_video(list(frames), str(temporary), fps=fps, macro_block_size=8)
    elif len(frames) == 1:
        save_picture(frames[0], path)
    else:
        ends = [round(100 * number / fps) for number in range(len(frames) + 1)]  # in the hundredths of a .gif
        durations = [10 * (end - begin) for begin, end in pairwise(ends)]
        with whole_file(path) as temporary:
            frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _can_write_mp4() -> bool:
    if find_spec("imageio") is not None:
        return find_spec("imageio_ffmpeg") is not None
    return find_spec("cv2") is not None


def _is_numbered(path: Path) -> bool:
    return NUMBER.search(path.name) is not None


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(NUMBER.sub(lambda found: found[0] % number, path.name, count=1))
