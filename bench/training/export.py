"""From trained parts to a directory that ``StableDiffusionPipeline.from_pretrained`` opens."""

from __future__ import annotations

import copy
import datetime
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from training import denoiser, photos

SHEET_PROMPTS = ("a photo of a brick wall", "a photo of grass", "a photo of gravel", "stars in deep space")

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# textures_unet

A very small text-conditioned latent Stable Diffusion: {parameters} parameters, half precision, {megabytes}
MB, native size 64x64 pixels (16x16 latents of 4 channels). It paints brick, grass, gravel and stars. It
exists so that tiling can be shown, tested and measured on a real `diffusers.StableDiffusionPipeline`
without a download; it has no other use.

```python
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("tiledattn/models/textures_unet", dtype=torch.float32)
pipe("a photo of a brick wall", height=64, width=64, num_inference_steps=20, guidance_scale=1.5).images[0]
```

Prompts it knows (another word falls apart into bytes it has never seen):
{prompts}

## Data

The photographs that ship inside scikit-image {skimage}, with source and licence as scikit-image's own
documentation of `skimage.data` records them:

| photograph | source | licence |
|---|---|---|
{sources}

The first three are grey; they were given a hue that leaves the luminance as it was, so the colours are
ours. The brick photograph was turned by a quarter and its perspective undone, so that courses are level.
Each photograph was resized (by {scales}, with a few per cent of random variation), flipped, and, brick
excepted, turned by quarters. Four photographs are all it has seen: it repeats what is in them.

## Training

`{command}`, seed {seed}, one CPU thread, bfloat16 autocast. The run's versions: torch {torch}, diffusers
{diffusers}, transformers {transformers}.

| part | parameters | steps | loss, running mean | minutes |
|---|---|---|---|---|
| autoencoder | {vae_parameters} | {vae_steps} | {vae_loss:.4f} (L1, gradients, spectra) | {vae_minutes} |
| decoder, once more | | {decoder_steps} | {decoder_loss:.4f} (the same, more on spectra) | {decoder_minutes} |
| UNet, text encoder | {unet_parameters} | {unet_steps} | {unet_loss:.4f} (squared error) | {unet_minutes} |

Four steps in five are at native size, the others at 16x32 or 32x16 latents. The saved weights are
exponential averages. Scheduler: DPM-Solver++ of order 2, velocity prediction, zero terminal signal; 20 steps
and a guidance of 1 to 2 are good values. Weights: Apache-2.0, like the package. Saved on {date}.

{note}
"""


def pipeline(vae: AutoencoderKL, model: denoiser.Denoiser, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A stock pipeline around copies of the parts."""
    return StableDiffusionPipeline(
        vae=copy.deepcopy(vae).eval(),
        text_encoder=copy.deepcopy(model.text).eval(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(model.unet).eval(),
        scheduler=denoiser.sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _count(*modules: torch.nn.Module) -> str:
    return f"{sum(p.numel() for m in modules for p in m.parameters()) / 1e6:.2f} M"


def _card(pipe: StableDiffusionPipeline, facts: dict[str, Any], megabytes: float) -> str:
    import diffusers
    import skimage
    import transformers

    rows = [f"| `skimage.data.{m.name}` | <{m.source}> | {m.licence} |" for m in photos.MATERIALS]
    prompts = ["- " + ", ".join(f'"{p}"' for p in m.prompts) for m in photos.MATERIALS]
    card = _CARD.format(
        parameters=_count(pipe.vae, pipe.unet, pipe.text_encoder),
        megabytes=f"{megabytes:.1f}",
        prompts="\n".join(prompts),
        sources="\n".join(rows),
        scales=", ".join(f"{m.scale:g}" for m in photos.MATERIALS),
        skimage=skimage.__version__,
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        vae_parameters=_count(pipe.vae),
        unet_parameters=_count(pipe.unet, pipe.text_encoder),
        date=datetime.date.today().isoformat(),
        **facts,
    )
    return card.rstrip() + "\n"


def _write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The two files older releases of transformers look for, beside the one newer releases read."""
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def save(pipe: StableDiffusionPipeline, out: Path, facts: dict[str, Any]) -> None:
    """Write the pipeline in half precision; the finished directory takes the old one's place at the end."""
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
    _write_vocabulary(pipe.tokenizer, partial / "tokenizer")
    size = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
    (partial / "README.md").write_text(_card(half, facts, size / 1e6), encoding="utf-8")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def tile_up(rows: list[list[torch.Tensor]], path: Path, zoom: int = 2) -> None:
    """A contact sheet of ``[3, H, W]`` pictures in -1..1."""
    sheet = torch.cat([torch.cat([_margin(p) for p in row], 2) for row in rows], 1)
    pixels = ((sheet.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    partial = path.with_suffix(".partial.png")
    picture.save(partial)
    os.replace(partial, path)


def _margin(picture: torch.Tensor) -> torch.Tensor:
    """Two white pixels between pictures."""
    return torch.nn.functional.pad(picture, (1, 1, 1, 1), value=1.0)


@torch.no_grad()
def sample_sheet(pipe: StableDiffusionPipeline, path: Path, guidance: float = 1.5) -> None:
    """For each material eight native samples, and below them one four times as wide, untiled."""
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for prompt in SHEET_PROMPTS:
        for width, count in ((64, 8), (256, 2)):
            images = pipe(
                prompt,
                height=64,
                width=width,
                num_inference_steps=20,
                guidance_scale=guidance,
                num_images_per_prompt=count,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
            rows.append([image * 2 - 1 for image in images])
    widest = max(sum(p.shape[2] + 2 for p in row) for row in rows)
    for row in rows:
        gap = widest - sum(p.shape[2] + 2 for p in row)
        if gap > 2:
            row.append(torch.ones(3, 64, gap - 2))
    tile_up(rows, path)
