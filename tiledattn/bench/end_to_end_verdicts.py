"""What the end-to-end study concludes: ratios paired by seed, with intervals, and whether targets are reached."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import tiledattn as ta
from tiledattn.metrics import Interval, ratio_interval, seam_gradients, tone_differences
from tiledattn.metrics.intervals import student_t
from tiledattn.metrics.lines import Where

from .end_to_end import BEHIND_ATTENTION, GRID, LATENTS, PIXELS, share
from .quality.measures import together
from .quality.patches import patch_ratio_over
from .quality.photographs import at_training_scale, material_of

PERIOD = 2 * PIXELS  # of the UNet's coarsest level
MOST_OF_NEEDED = 0.4
MOST_COUPLINGS = 0.1  # of a step

AXES = ("y", "x")

PICTURES, POOLED = "picture by picture", "pooled"  # mean of logarithms of pictures' ratios, and ratio of sums

Key = tuple[int, int]  # number of the prompt, seed
Pair = tuple[float, float]  # what is divided by what
Patches = Mapping["Method", Mapping["Method", Interval]]  # by ours, by Panorama


@dataclass(frozen=True)
class Method:
    """A way of painting, "ours" or "panorama", with its overlap in latents and where ours blends it."""

    kind: str
    overlap: int
    blend: str = "prediction"

    @property
    def name(self) -> str:
        """As the table shows it."""
        where = BEHIND_ATTENTION if self.blend == "attention" else ""
        return f"{'coupled' if self.kind == 'ours' else 'Panorama pipeline'}, {share(self.overlap)}{where}"

    @property
    def is_standard(self) -> bool:
        """Whether it is one of ours that Panorama is held against: all but predictions blended in overlaps."""
        return self.kind == "ours" and (self.overlap == 0 or self.blend == "attention")

    @property
    def layout(self) -> ta.TileLayout:
        """In pixels."""
        size = tuple(LATENTS * PIXELS * n for n in GRID)
        return ta.TileLayout(size, LATENTS * PIXELS, self.overlap * PIXELS)

    @property
    def where(self) -> Where:
        """Where this method can jump.

        Panorama averages views with equal weights and so jumps where views begin and end; a smooth window, as ours has
        it, changes most where the deepest tile does.
        """
        return "border" if self.kind == "panorama" and self.overlap > 0 else "owner"

    def gradients(self, pictures: Any, axis: int) -> tuple[Any, Any]:
        """Mean |gradient| across an axis's seams and across its control lines, per picture.

        Raises:
            ValueError: no control line is left between the seams.
        """
        return seam_gradients(pictures, self.layout, PERIOD, axis=axis, where=self.where)


@dataclass(frozen=True)
class Row:
    """The figures of one method by prompt and seed: seconds, and of seams and tone steps the two parts of the ratio.

    Seams by axis: where structure is missing on the seams of one axis (courses of brick that end at borders), the mean
    over both would hide the edges on the other.
    """

    method: Method
    seconds: dict[Key, float]
    seams: tuple[dict[Key, Pair], dict[Key, Pair]]
    tones: dict[Key, Pair]

    @property
    def median(self) -> float:
        """Seconds of a picture."""
        return statistics.median(self.seconds.values())

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, one entry a picture."""
        pictures = [
            {
                "prompt": key[0],
                "seed": key[1],
                "seconds": self.seconds[key],
                "seam": {axis: seams[key] for axis, seams in zip(AXES, self.seams, strict=True)},
                "tone": tone,
            }
            for key, tone in self.tones.items()
        ]
        method = self.method
        return {"kind": method.kind, "overlap": method.overlap, "blend": method.blend, "pictures": pictures}


def row(method: Method, pictures: dict[Key, Any], seconds: dict[Key, float]) -> Row:
    """The figures of pictures [3, H, W] of one method."""
    data = np.stack([np.asarray(p, dtype=np.float64) for p in pictures.values()])
    both = (method.gradients(data, 0), method.gradients(data, 1), tone_differences(data, method.layout))
    y, x, tones = (
        {key: (float(top), float(bottom)) for key, top, bottom in zip(pictures, *pair, strict=True)} for pair in both
    )
    return Row(method, seconds, (y, x), tones)


def patch_ratios(
    pictures: Mapping[Method, dict[Key, Any]], prompts: Sequence[str], ours: Method
) -> dict[Method, Interval]:
    """Each Panorama's ratio of patches (`quality.patches`), seams across x over inside, over that of one of ours.

    Of the pictures of the same prompts and seeds; each method's patches lie where it can jump.

    Returns:
        By Panorama; nothing where a prompt has no photograph to compare with, or scikit-image, which has them, lacks.
    """
    try:
        truths = [at_training_scale(one) for one in map(material_of, prompts) if one is not None]
    except ImportError:
        return {}
    if len(truths) < len(prompts):
        return {}
    return {
        method: together(
            [_patches(method, painted, ours, pictures[ours], number, truth) for number, truth in enumerate(truths)]
        )
        for method, painted in pictures.items()
        if method.kind == "panorama"
    }


def _patches(
    method: Method, painted: dict[Key, Any], ours: Method, others: dict[Key, Any], prompt: int, truth: Any
) -> Interval:
    """`patch_ratios` of one method and prompt."""
    keys = [key for key in painted if key in others and key[0] == prompt]
    some, reference = (np.stack([one[key] for key in keys]) for one in (painted, others))
    return patch_ratio_over((some, method.layout, method.where), (reference, ours.layout, ours.where), PERIOD, [truth])


def pooled(pairs: dict[Key, Pair]) -> Interval:
    """A ratio over all pictures, grouped by prompt."""
    tops, bottoms = zip(*pairs.values(), strict=True)
    return ratio_interval(tops, bottoms, [key[0] for key in pairs])


def paired(a: dict[Key, float], b: dict[Key, float]) -> Interval:
    """The geometric mean of a / b over the pictures that both have, with its 95% interval.

    Student's t on the logarithms of the same prompt and seed; the spread is that within prompts, since the prompts were
    chosen and not drawn.
    """
    keys = [key for key in a if key in b]
    logs = [math.log(a[key] / b[key]) for key in keys]
    return grouped(logs, [key[0] for key in keys])


def grouped(logs: ArrayLike, groups: ArrayLike, confidence: float = 0.95) -> Interval:
    """The exponential of the mean over groups of means of logarithms, with its interval."""
    values, labels = np.asarray(logs, dtype=np.float64), np.asarray(groups)
    parts = [values[labels == label] for label in np.unique(labels)]
    freedom = len(values) - len(parts)
    centre = float(np.mean([part.mean() for part in parts]))
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else math.nan for part in parts)
    reach = student_t(confidence, freedom) * math.sqrt(variance) / len(parts)
    return Interval(math.exp(centre), math.exp(centre - reach), math.exp(centre + reach), len(values), confidence)


def paired_pooled(a: dict[Key, Pair], b: dict[Key, Pair]) -> Interval:
    """The pooled ratio of a over that of b, of the pictures that both have, with its 95% interval.

    Sum over sum per prompt, the geometric mean over prompts; the jackknife leaves a seed out of both. A picture in
    which little is divided by little weighs little, unlike in `paired`.
    """
    keys = [key for key in a if key in b]
    prompts = np.asarray([key[0] for key in keys])
    table = np.asarray([(*a[key], *b[key]) for key in keys])
    signs, logs, variance = np.asarray([1, -1, -1, 1]), [], 0.0
    for prompt in np.unique(prompts):
        rows = table[prompts == prompt] + 1e-9
        count = len(rows)
        logs.append(float(np.log(rows.sum(0)) @ signs))
        left_out = np.log(rows.sum(0) - rows) @ signs if count > 1 else np.full(1, math.nan)
        variance += (count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum())
    centre = float(np.mean(logs))
    reach = student_t(0.95, len(keys) - len(logs)) * math.sqrt(variance) / len(logs)
    return Interval(math.exp(centre), math.exp(centre - reach), math.exp(centre + reach), len(keys))


def contrasts(pairs: dict[Key, Pair]) -> dict[Key, float]:
    """The ratio of every picture."""
    return {key: (top + 1e-9) / (bottom + 1e-9) for key, (top, bottom) in pairs.items()}


def measured(peer: Row, ours: Row, patches: Interval | None = None, estimator: str = PICTURES) -> dict[str, Interval]:
    """The peer over ours by seed: seam contrast of either axis, tone step and, if given, patches, which are pooled."""
    pairs = {
        f"seam contrast, {axis}": pair
        for axis, pair in zip(AXES, zip(peer.seams, ours.seams, strict=True), strict=True)
    }
    pairs["tone step"] = (peer.tones, ours.tones)
    found = {
        name: paired_pooled(a, b) if estimator == POOLED else paired(contrasts(a), contrasts(b))
        for name, (a, b) in pairs.items()
    }
    return found if patches is None else {**found, "patches": patches}


def not_above(peer: Row, ours: Row, patches: Interval | None = None, estimator: str = PICTURES) -> bool:
    """Whether the peer is significantly above ours in nothing: every ratio's interval begins at or below 1."""
    return all(ratio.low <= 1 for ratio in measured(peer, ours, patches, estimator).values())


def needed(rows: Sequence[Row], ours: Row, patches: Mapping[Method, Interval], estimator: str = PICTURES) -> Row | None:
    """Panorama at the smallest overlap with which it is `not_above` one of ours."""
    return next((r for r in _peers(rows) if not_above(r, ours, patches.get(r.method), estimator)), None)


def _peers(rows: Sequence[Row]) -> list[Row]:
    """Panorama by overlap."""
    return sorted((r for r in rows if r.method.kind == "panorama"), key=lambda r: r.method.overlap)


def verdict(what: str, found: Interval, most: float) -> str:
    """A line: "reached" where the whole interval is at most that, "missed" where it is above, else "not settled"."""
    word = "reached" if found.high <= most else "missed" if found.low > most else "not settled"
    return f"{word}: {what} {found}, at most {most:g}"


def table(rows: Sequence[Row], patches: Patches, couplings: Interval | None = None) -> str:
    """The rows as Markdown, and a line per target.

    Args:
        rows: one of ours without overlap among them.
        patches: `patch_ratios` by one of ours.
        couplings: the step of coupled tiles over that of tiles alone.
    """
    ours = next(r for r in rows if r.method == Method("ours", 0))
    lines = [
        "| method | seconds | of ours | seam contrast, y | over ours | seam contrast, x | over ours | tone step "
        "| over ours | patches, over ours | pictures |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        cells = [r.method.name, f"{r.median:.2f}", f"{r.median / ours.median:.2f}"]
        for mine, theirs in (*zip(ours.seams, r.seams, strict=True), (ours.tones, r.tones)):
            over = "" if r is ours else str(paired(contrasts(theirs), contrasts(mine)))
            cells += [str(pooled(theirs)), over]
        cells.append(str(patches.get(ours.method, {}).get(r.method, "")))
        lines.append("| " + " | ".join([*cells, str(len(r.seconds))]) + " |")
    return "\n".join([*lines, "", *_verdicts(rows, patches, couplings)])


def _none_is_enough(
    rows: Sequence[Row], ours: Row, patches: Mapping[Method, Interval], estimator: str, words: str
) -> str:
    """The line where no overlap that was painted is enough: what tells each from ours, and the time of the largest.

    A larger overlap has more views and takes longer: if all smaller ones that there are were painted, ours takes at
    most that part of the time of what would be enough.
    """
    peers = _peers(rows)
    if not peers:
        return f"not settled: no Panorama was painted to have seams like {_spelled(ours.method)}, {words}"
    reasons = []
    for peer in peers:
        ratios = measured(peer, ours, patches.get(peer.method), estimator)
        if any(math.isnan(ratio.low) for ratio in ratios.values()):
            return f"not settled: too few pictures to tell Panorama's seams from {_spelled(ours.method)}, {words}"
        above = ", ".join(f"{name} {ratio}" for name, ratio in ratios.items() if ratio.low > 1)
        reasons.append(f"{share(peer.method.overlap)}: {above}")
    bound = paired(ours.seconds, peers[-1].seconds)
    smaller = {o for o in covering_overlaps() if o < peers[-1].method.overlap}
    bounded = smaller <= {peer.method.overlap for peer in peers} and bound.high <= MOST_OF_NEEDED
    return (
        f"{'reached' if bounded else 'not settled'}: no overlap of Panorama that was painted has "
        f"seams like {_spelled(ours.method)}, {words} ({'; '.join(reasons)}); more takes longer: time of ours over "
        f"that of the largest {bound}, at most {MOST_OF_NEEDED:g}"
    )


def covering_overlaps() -> list[int]:
    """Overlaps with which diffusers' own views cover the canvas: it leaves out a view that would reach beyond."""
    return [o for o in range(LATENTS) if all(LATENTS * (n - 1) % (LATENTS - o) == 0 for n in GRID)]


def _spelled(ours: Method) -> str:
    if ours.overlap == 0:
        return "ours without overlap"
    return f"ours with {share(ours.overlap)}{BEHIND_ATTENTION if ours.blend == 'attention' else ''}"


def _equal_seams(rows: Sequence[Row], ours: Row, patches: Mapping[Method, Interval]) -> list[str]:
    """Lines about the overlap that Panorama needs for the seams of one of ours, by either estimator of a ratio."""
    lines = list[str]()
    criteria: list[tuple[str, Mapping[Method, Interval]]] = [("by edges and tones", {})]
    if patches:
        criteria.append(("by patches as well", patches))
    for (criterion, further), estimator in itertools.product(criteria, (PICTURES, POOLED)):
        words = f"{criterion}, {estimator}"
        found = needed(rows, ours, further, estimator)
        if found is None:
            lines.append(_none_is_enough(rows, ours, further, estimator, words))
        else:
            what = (
                f"time of {_spelled(ours.method)} over Panorama's with {share(found.method.overlap)}, needed {words},"
            )
            lines.append(verdict(what, paired(ours.seconds, found.seconds), MOST_OF_NEEDED))
    for peer in _peers(rows):
        both = [measured(peer, ours, patches.get(peer.method), estimator) for estimator in (PICTURES, POOLED)]
        below = [f"{name} {ratio}" for name, ratio in both[0].items() if ratio.high < 1 and both[1][name].high < 1]
        if below:
            what = f"Panorama's with {share(peer.method.overlap)} are below {_spelled(ours.method)}"
            lines.append(f"note: {what}: {', '.join(below)}")
    return lines


def _verdicts(rows: Sequence[Row], patches: Patches, couplings: Interval | None) -> list[str]:
    lines = [line for r in rows if r.method.is_standard for line in _equal_seams(rows, r, patches.get(r.method, {}))]
    for r in rows:
        peer = next((p for p in rows if p.method == Method("panorama", r.method.overlap)), None)
        if r.method.kind == "ours" and peer is not None:
            where = BEHIND_ATTENTION if r.method.blend == "attention" else ""
            what = f"time of ours over Panorama's, both with {share(r.method.overlap)}{where},"
            lines.append(verdict(what, paired(r.seconds, peer.seconds), 1.0))
    if couplings is not None:
        # What the couplings are of a coupled step.
        value, low, high = (1 - 1 / x for x in (couplings.value, couplings.low, couplings.high))
        part = Interval(value, low, high, couplings.count)
        lines.append(verdict("couplings' part of a step without overlap", part, MOST_COUPLINGS))
    return lines
