"""Tiny random-weight transformers of every family, and calls for them.

A new family gets the tests of `diffusers/test_families.py` by a file here and its line in CASES.
"""

from __future__ import annotations

from . import (
    cogvideox,
    flux,
    flux2,
    hunyuan,
    hunyuan15,
    ltx,
    ltx2,
    lumina2,
    mochi,
    pixart,
    qwenimage,
    sana,
    sd3,
    wan,
    zimage,
)
from .case import Case, Size, randn

CASES: tuple[Case, ...] = (
    *wan.CASES,
    *flux.CASES,
    *flux2.CASES,
    *qwenimage.CASES,
    *lumina2.CASES,
    *pixart.CASES,
    *sana.CASES,
    *sd3.CASES,
    *zimage.CASES,
    *cogvideox.CASES,
    *hunyuan.CASES,
    *hunyuan15.CASES,
    *ltx.CASES,
    *ltx2.CASES,
    *mochi.CASES,
)

__all__ = ["CASES", "Case", "Size", "randn"]
