"""From a trained pipeline to a directory that ``from_pretrained`` opens, with a model card."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training import photos

_DATA = """\
The photographs that ship inside scikit-image {skimage}, with source and licence as scikit-image's own
documentation of `skimage.data` records them:

| photograph | source | licence |
|---|---|---|
{sources}

The first three are grey; they were given a hue that leaves the luminance as it was, so the colours are
ours. The brick photograph was turned by a quarter and its perspective undone, so that courses are level.
Each photograph was resized (by {scales}, with a few per cent of random variation), flipped, and, brick
excepted, turned by quarters. Four photographs are all it has seen: it repeats what is in them."""


def count(*modules: torch.nn.Module) -> str:
    """Parameters in millions."""
    return f"{sum(p.numel() for m in modules for p in m.parameters()) / 1e6:.2f} M"


def card(template: str, **facts: Any) -> str:
    """``template`` filled in with the facts and with what all cards tell: data, prompts, versions and the date."""
    import diffusers
    import skimage
    import transformers

    data = _DATA.format(
        skimage=skimage.__version__,
        sources="\n".join(f"| `skimage.data.{m.name}` | <{m.source}> | {m.licence} |" for m in photos.MATERIALS),
        scales=", ".join(f"{m.scale:g}" for m in photos.MATERIALS),
    )
    text = template.format(
        prompts="\n".join("- " + ", ".join(f'"{p}"' for p in m.prompts) for m in photos.MATERIALS),
        data=data,
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        date=datetime.date.today().isoformat(),
        **facts,
    )
    return text.rstrip() + "\n"


def save(pipe: Any, out: Path, finish: Callable[[Any, Path], None], write_card: Callable[[Any, float], str]) -> None:
    """Write a pipeline in half precision; the finished directory takes the old one's place at the end.

    ``finish`` gets the pipeline and its folder, ``write_card`` the pipeline and the folder's megabytes.
    """
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    half = pipe.to(torch.float16)
    half.save_pretrained(partial, safe_serialization=True)
    for weights in partial.rglob("*.safetensors"):
        # Written readable by their owner only, which is no use in an installed package.
        weights.chmod(0o644)
    # transformers loads what the config names, diffusers float32: without this a plain load would mix the two
    config = partial / "text_encoder" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'))
    finish(half, partial)
    size = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
    (partial / "README.md").write_text(write_card(half, size / 1e6), encoding="utf-8")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
