"""From trained parts to a directory that ``StableDiffusionPipeline.from_pretrained`` opens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from training import denoiser, package, sheets

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

{data}

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


def _card(pipe: StableDiffusionPipeline, facts: dict[str, Any], megabytes: float) -> str:
    return package.card(
        _CARD,
        command="python bench/train_small_unet.py --out tiledattn/models/textures_unet",
        parameters=package.count(pipe.vae, pipe.unet, pipe.text_encoder),
        megabytes=f"{megabytes:.1f}",
        vae_parameters=package.count(pipe.vae),
        unet_parameters=package.count(pipe.unet, pipe.text_encoder),
        **facts,
    )


def _write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The two files older releases of transformers look for, beside the one newer releases read."""
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def save(pipe: StableDiffusionPipeline, out: Path, facts: dict[str, Any]) -> None:
    """Write the pipeline in half precision; the finished directory takes the old one's place at the end."""
    package.save(
        pipe,
        out,
        lambda half, folder: _write_vocabulary(half.tokenizer, folder / "tokenizer"),
        lambda half, megabytes: _card(half, facts, megabytes),
    )


@torch.no_grad()
def sample_sheet(pipe: StableDiffusionPipeline, path: Path, guidance: float = 1.5) -> None:
    """For each material eight native samples, and below them one four times as wide, untiled."""
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for prompt in sheets.PROMPTS:
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
    sheets.fill_up(rows)
    sheets.tile_up(rows, path)
