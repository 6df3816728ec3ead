"""What all commands share: how errors and Ctrl-C end them, and how option texts are read."""

from __future__ import annotations

import functools
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

import typer

from ..files import check_writable

P = ParamSpec("P")
T = TypeVar("T")

DebugOption = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default one for a small model, as torch has it for another.")
]
MAX_SEED = 2**63 - 1
# Arguments of the library that options carry the names of.
OPTIONS = (
    *("size", "tile", "overlap", "halo", "wrap", "norm", "window", "halo_schedule", "backend", "highlight", "out"),
    *("positions", "timestep_shift", "jitter", "region", "blend"),
)


class UsageError(ValueError):
    """An option's value that doesn't work; the message says which and what would."""


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are one line on stderr; exit code 2 for bad usage, else 1, and 130 after Ctrl-C.

    With `debug=True` among its arguments the traceback comes before that line.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            print("tiledattn: stopped; no file was left half-written", file=sys.stderr)
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"tiledattn: error: {text}", file=sys.stderr)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None

    return run


@contextmanager
def bad_usage(option: str | None = None, **other_names: str) -> Iterator[None]:
    """Turns a TypeError or ValueError about an option's value into a `UsageError` that names the option.

    Without `option` it is the argument that the message begins with; `other_names` maps those that are named
    differently.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(f"{option}: {error}" if option else _with_option(str(error), other_names)) from error


def _with_option(message: str, other_names: dict[str, str]) -> str:
    """ "halo_schedule: ..." as "--halo-schedule: ...", "tile height: ..." as "--tile: height: ..."."""
    found = re.match(r"(\w+)(?: (frames|height|width))?: ", message)
    name = other_names.get(found[1], found[1]) if found else ""
    if found is None or name not in OPTIONS:
        return message
    rest = re.sub(r"\baxis ([01]) is", lambda axis: f"{('height', 'width')[int(axis[1])]} is", message[found.end() :])
    return f"--{name.replace('_', '-')}: {f'{found[2]}: ' if found[2] else ''}{rest}"


def read(option: str, parse: Callable[[str], T], text: str) -> T:
    """`parse(text)`, whose ValueError becomes a usage error that names the option."""
    with bad_usage(option):
        return parse(text)


def check_out(path: Path) -> None:
    """Raises UsageError for a file that `--out` asks for and that can't be written; leaves nothing behind."""
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(f"--out: can't write {str(path)!r}: {error.strerror or error}") from error


def check_words(prompts: Sequence[str], negative: str | None, guidance: float | None) -> None:
    """Raises UsageError for a prompt that is no text (bytes of another encoding are none) or an endless guidance."""
    for option, text in [*(("--prompt", text) for text in prompts), ("--negative-prompt", negative or "")]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{option}: got {text!r}, which is not valid UTF-8") from error
    if guidance is not None and not math.isfinite(guidance):
        raise UsageError(f"--guidance: got {guidance}; expected a finite number")


def parse_size(text: str) -> tuple[int, int]:
    """ "512x64" (width x height) as (height, width).

    Raises:
        ValueError: another form, or a length below 1.
    """
    found = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", text)
    if found is None or 0 in (int(found[1]), int(found[2])):
        raise ValueError(f"got {text!r}; expected WxH, such as 1024x512")
    return int(found[2]), int(found[1])


def parse_extent(text: str) -> int | tuple[int, int]:
    """ "64" as 64, "64x32" (width x height) as (32, 64).

    Raises:
        ValueError: another form.
    """
    if re.fullmatch(r"\s*\d+\s*", text):
        return int(text)
    found = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", text)
    if found is None:
        raise ValueError(f"got {text!r}; expected a number such as 64, or WxH such as 128x64")
    return int(found[2]), int(found[1])


def parse_halo(text: str) -> int | tuple[int, int] | Literal["all"]:
    """As `parse_extent`, or "all".

    Raises:
        ValueError: another form.
    """
    if text.strip().lower() == "all":
        return "all"
    try:
        return parse_extent(text)
    except ValueError:
        raise ValueError(f'got {text!r}; expected a number such as 64, WxH, or "all"') from None


def parse_wrap(text: str) -> tuple[bool, bool]:
    """ "none", "x", "y" or "xy" as (wrap y, wrap x).

    Raises:
        ValueError: another word.
    """
    axes = text.strip().lower()
    if axes == "none":
        return False, False
    if axes not in ("x", "y", "xy", "yx"):
        raise ValueError(f"got {text!r}; expected none, x, y or xy")
    return "y" in axes, "x" in axes
