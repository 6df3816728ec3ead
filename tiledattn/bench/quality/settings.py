"""The ways of tiling that are compared, in pixels of one model's tile."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

Halo = int | Literal["all"]

OVERLAPS = ("12.5%", "25%", "50%", "75%")
KINDS = ("untiled", "alone", "blended", "attention", "single", "ours")
WINDOWS = ("uniform", "hann", "linear", "gaussian")
SCHEDULES = ("constant", "quadratic")


@dataclass(frozen=True)
class Setting:
    """One way of tiling a strip.

    Attributes:
        kind: "untiled" (one tile as large as the canvas), "alone" (nothing crosses borders), "blended" (overlap only;
            with the window "uniform" it is MultiDiffusion), "attention" (attention over the whole canvas and nothing
            else), "single" (one coupling alone) or "ours" (all couplings).
        overlap: pixels that adjacent tiles share.
        halo: pixels that attention sees beyond a border, or "all".
        rings: whether convolutions read their neighbours' positions.
        norm: scope of group norms.
        window: blend weights; unused without overlap.
        schedule: the halo's weight over the run.
        blend: where tiles that overlap are blended, "prediction" or "attention".
    """

    kind: str
    overlap: int = 0
    halo: Halo = 0
    rings: bool = False
    norm: str = "tile"
    window: str = "hann"
    schedule: str = "constant"
    blend: str = "prediction"

    @property
    def key(self) -> str:
        """A short name, unique among settings, fit for files and for `--methods`."""
        if self.kind in ("untiled", "alone"):
            return self.kind
        parts = [self.kind]
        if self.kind == "single":
            parts = ["rings" if self.rings else "norm" if self.norm != "tile" else f"halo-{self.halo}"]
        elif self.kind != "blended":
            parts.append(str(self.halo))
        if self.overlap:
            parts.append(f"overlap-{self.overlap}-{self.window}")
        if self.blend != "prediction":
            parts.append(f"behind-{self.blend}")
        if self.schedule != "constant":
            parts.append(self.schedule)
        return "-".join(parts)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self._what()}{self._blend()}{'' if self.schedule == 'constant' else f', {self.schedule} schedule'}"

    def _what(self) -> str:
        if self.kind == "untiled":
            return "untiled (one tile)"
        if self.kind == "alone":
            return "tiles alone"
        if self.kind == "blended":
            return "blended"
        reach = "halo all" if self.halo == "all" else f"halo {self.halo} px"
        if self.kind == "attention":
            return "whole-canvas attention alone" if self.halo == "all" else f"{reach} alone"
        if self.kind == "single":
            return "rings alone" if self.rings else "norms alone" if self.norm != "tile" else f"{reach} alone"
        return f"coupled, {reach}"

    def _blend(self) -> str:
        where = " behind attention" if self.blend == "attention" else ""
        return f", overlap {self.overlap} px ({self.window}{where})" if self.overlap else ""

    def options(self, native: tuple[int, int], canvas: tuple[int, int]) -> dict[str, Any]:
        """Arguments of `enable_tiling` for tiles of `native` (height, width) on a canvas, in pixels."""
        if self.kind == "untiled":
            return {"tile": canvas}
        return {
            "tile": native,
            "overlap": (0, self.overlap),
            "halo": self.halo if self.halo == "all" else (0, self.halo),
            "conv_halo": self.rings,
            "norm": self.norm,
            "window": self.window,
            "halo_schedule": self.schedule,
            "blend": self.blend,
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with key and name."""
        return {"key": self.key, "name": self.name, **asdict(self)}


def pixels(text: str, tile: int) -> int:
    """A length: "25%" of a tile `tile` pixels wide, or "16" pixels.

    Raises:
        ValueError: another form, or a share of the tile that is no whole number of pixels.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if found is None:
        raise ValueError(f"got {text!r}; expected pixels such as 16, or a share of the tile such as 25%")
    length = float(found[1]) * (tile / 100 if found[2] else 1)
    if length != int(length):
        raise ValueError(f"got {text!r}, which is {length:g} pixels of a tile of {tile}; expected whole pixels")
    return int(length)


def reach(text: str, tile: int) -> Halo:
    """A halo: as `pixels`, or "all"."""
    return "all" if text.strip().lower() == "all" else pixels(text, tile)


def standard(tile: int, convolutional: bool) -> list[Setting]:
    """What is compared where the command line asks for nothing else.

    Args:
        tile: width of a tile in pixels.
        convolutional: whether convolutions and norms mix positions (UNets), or attention alone (transformers).
    """
    eighth, quarter, half = tile // 8, tile // 4, tile // 2
    blended = [Setting("blended", pixels(share, tile)) for share in OVERLAPS]
    averaged = [Setting("blended", pixels(share, tile), window="uniform") for share in OVERLAPS]
    start = [Setting("untiled"), Setting("alone"), *blended, *averaged]
    if not convolutional:
        return [
            *start,
            Setting("attention", halo="all"),
            *(_ours(halo) for halo in (eighth, quarter, half)),
            _ours(quarter, overlap=eighth),
            _ours(quarter, schedule="quadratic"),
        ]
    return [
        *start,
        Setting("blended", quarter, window="gaussian"),
        Setting("attention", halo="all"),
        Setting("single", halo=eighth),
        Setting("single", rings=True),
        Setting("single", norm="canvas"),
        _ours(eighth),
        _ours(quarter),
        _ours("all"),
        _ours(eighth, overlap=eighth),
        *(_ours(eighth, overlap=overlap, blend="attention") for overlap in (eighth, quarter, half)),
        _ours(eighth, schedule="quadratic"),
    ]


def quick(tile: int, convolutional: bool) -> list[Setting]:
    """Four of them, to see that everything works."""
    halo = tile // (8 if convolutional else 2)
    return [Setting("untiled"), Setting("alone"), Setting("blended", tile // 4), _ours(halo)]


def sweep(
    tile: int,
    convolutional: bool,
    overlaps: Sequence[str] | None,
    halos: Sequence[str] | None,
    windows: Sequence[str] | None,
    schedules: Sequence[str] | None,
) -> list[Setting]:
    """Every combination of what the command line asks for; what it leaves out has one usual value.

    An overlap of 0 is always among those of the coupled settings.

    Raises:
        ValueError: a length that can't be read, an unknown window or schedule.
    """
    shared = sorted({pixels(text, tile) for text in overlaps or ("25%",)} - {0})
    seen: list[Halo] = [reach(text, tile) for text in halos or ("12.5%" if convolutional else "50%",)]
    weights = _known("window", windows or ("hann",), WINDOWS)
    over_time = _known("halo-schedule", schedules or ("constant",), SCHEDULES)
    found = [Setting("untiled"), Setting("alone")]
    found += [Setting("blended", overlap, window=window) for overlap, window in product(shared, weights)]
    found += [Setting("attention", halo="all", schedule=schedule) for schedule in over_time]
    if convolutional:
        found += [Setting("single", halo=halo) for halo in seen if halo not in (0, "all")]
        found += [Setting("single", rings=True), Setting("single", norm="canvas")]
    blends = [(0, "hann"), *product(shared, weights)]
    found += [
        _ours(halo, overlap=overlap, window=window, schedule=schedule)
        for halo, (overlap, window), schedule in product(seen, blends, over_time)
    ]
    return list(dict.fromkeys(found))


def chosen(settings: Iterable[Setting], glob: str | None) -> list[Setting]:
    """The settings whose key matches a glob (several by commas); tiles alone stay, the others are compared with them.

    Raises:
        ValueError: a glob that matches nothing, with the keys that there are.
    """
    known = list(settings)
    if glob is None:
        return known
    globs = [part.strip() for part in glob.split(",")]
    hits = {one.key for one in known if any(fnmatch.fnmatchcase(one.key, part) for part in globs)}
    if not hits:
        raise ValueError(f"got {glob!r}, which no method matches; known are {', '.join(one.key for one in known)}")
    return [one for one in known if one.key in hits or one.kind == "alone"]


def _ours(
    halo: Halo, overlap: int = 0, window: str = "hann", schedule: str = "constant", blend: str = "prediction"
) -> Setting:
    return Setting("ours", overlap, halo, True, "canvas", window, schedule, blend)


def _known(option: str, given: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for one in given:
        if one not in known:
            raise ValueError(f"--{option}: got {one!r}; known are {', '.join(known)}")
    return given
