"""Figures of the quality evaluation that pages quote are those of the newest kept run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.record import order

from .pages import ROOT, read

UNET, DIT = "textures_unet", "textures_dit"
SEAM, TONE, PATCHES = "seam_contrast", "tone_step", "patch_ratio"
QUOTED = {
    "README.md": [
        *((model, method, SEAM) for model in (UNET, DIT) for method in ("alone", "blended-overlap-16-uniform")),
        *((model, f"blended-overlap-{overlap}-hann", SEAM) for model in (UNET, DIT) for overlap in (16, 32)),
        (UNET, "rings", SEAM),
        (UNET, "ours-8", SEAM),
        *((DIT, f"ours-{halo}", SEAM) for halo in (8, 16, 32)),
        *((model, "blended-overlap-16-hann", PATCHES) for model in (UNET, DIT)),
        (UNET, "ours-8", PATCHES),
        (DIT, "ours-32", PATCHES),
    ],
    "docs/choosing.md": [
        *((UNET, method, SEAM) for method in ("alone", "rings", "halo-8", "norm")),
        *((UNET, method, TONE) for method in ("alone", "rings", "norm", "ours-8")),
        *((DIT, f"ours-{halo}", SEAM) for halo in ("16", "32", "16-overlap-8-hann", "16-quadratic")),
        (DIT, "attention-all", "wrap_score"),
    ],
}


@pytest.fixture(scope="module")
def run() -> Any:
    kept = (ROOT / "bench/results/quality").glob("*/*.json")
    return json.loads(max(kept, key=order).read_text())


def figure(run: Any, model: str, method: str, measure: str) -> str:
    """As pages write it: 1.22 (1.06-1.41)."""
    (found,) = (one for one in run["models"] if one["model"] == model)
    (row,) = (row for row in found["rows"] if row["key"] == method)
    value, low, high = (row["measures"][measure][name] for name in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


def outdated(page: str, run: Any) -> list[str]:
    """What the page quotes otherwise than the run has it."""
    text = " ".join(read(page).split())
    return [f"{' '.join(one)}: {figure(run, *one)}" for one in QUOTED[page] if figure(run, *one) not in text]


@pytest.mark.parametrize("page", QUOTED)
def test_quoted_figures_are_those_of_the_kept_run(page: str, run: Any) -> None:
    assert outdated(page, run) == [], f"bring {page} up to date with bench/results/quality"


def test_another_figure_is_noticed(run: Any) -> None:
    other = json.loads(json.dumps(run))
    for model in other["models"]:
        for row in model["rows"]:
            if row["key"] == "rings":
                row["measures"][SEAM]["high"] += 0.01
    assert len(outdated("README.md", other)) == len(outdated("docs/choosing.md", other)) == 1
