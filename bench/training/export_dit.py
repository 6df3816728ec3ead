"""From trained parts to a directory that ``WanPipeline.from_pretrained`` opens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from transformers import T5Tokenizer

from training import package, sheets, transformer

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# textures_dit

A very small text-conditioned latent diffusion transformer in the classes of Wan: {parameters} parameters, half
precision, {megabytes} MB, native size 64x64 pixels (16x16 latents of 4 channels, each a token), one frame. It paints
brick, grass, gravel and stars. It exists so that tiling can be shown, tested and measured on a real
`diffusers.WanPipeline` without a download; it has no other use.

```python
import torch
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("tiledattn/models/textures_dit", dtype=torch.float32)
pipe("gravel", height=64, width=64, num_frames=1, num_inference_steps=12, guidance_scale=1.0).frames[0]
```

Prompts it knows (another word falls apart into letters it has never seen):
{prompts}

## Build

Tokens meet by attention alone: the patch embedding takes one latent, and there is no convolution. Positions are
rotary; texts come in by cross-attention. Wan attends to the prompts' padding too: the model was trained to expect
as much of it as any `max_sequence_length` from 16 to 512 brings; a short one is faster. The autoencoder has Wan's
one block of attention made inert, so that a picture does not depend on the canvas it lies in, and causal
convolutions whose slices for earlier frames are zero. It was never shown more than one frame.

## Data

{data}

## Training

`{command}`, seed {seed}, one CPU thread, bfloat16 autocast. The run's versions: torch {torch}, diffusers {diffusers},
transformers {transformers}.

| part | parameters | steps | loss, running mean | minutes |
|---|---|---|---|---|
| encoder | {encoder_parameters} | {encoder_steps} | {encoder_loss:.4f} (L1 to the teacher's) | {encoder_minutes} |
| decoder | {decoder_parameters} | {decoder_steps} | {decoder_loss:.4f} (L1, gradients, spectra) | {decoder_minutes} |
| decoder, once more | | {grain_steps} | {grain_loss:.4f} (the same, more on spectra) | {grain_minutes} |
| transformer, text encoder | {dit_parameters} | {dit_steps} | {dit_loss:.4f} (squared error) | {dit_minutes} |

The encoder's teacher is the autoencoder of `textures_unet`: the latents are that one's, which had a longer training.
Four of the transformer's steps in five are at native size, the others at 16x32 or 32x16 latents. Flow matching with
logit-normal times; the saved weights are exponential averages. Scheduler: UniPC of order 2 on the flow's own times;
12 steps and a guidance of 1 to 2 are good values. Weights: Apache-2.0, like the package. Saved on {date}.

{note}
"""


def pipeline(vae: AutoencoderKLWan, model: transformer.Denoiser, tokenizer: T5Tokenizer) -> WanPipeline:
    """A stock pipeline around copies of the parts."""
    painter = copy.deepcopy(model.transformer).eval()
    for block in painter.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=copy.deepcopy(model.text).eval(),
        vae=copy.deepcopy(vae).eval(),
        scheduler=transformer.sampling_scheduler(),
        transformer=painter,
    )


def _for_older_releases(folder: Path) -> None:
    """Spell the tokenizer as older releases of transformers read it.

    To newer ones both names are one class; to older ones the shorter is another, and no list of extra tokens is empty.
    """
    index, settings = folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"
    index.write_text(index.read_text(encoding="utf-8").replace('"T5Tokenizer"', '"T5TokenizerFast"'))
    kept = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "T5TokenizerFast"}
    kept.pop("extra_special_tokens", None)
    settings.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def save(pipe: WanPipeline, out: Path, facts: dict[str, Any]) -> None:
    """Write the pipeline in half precision; the finished directory takes the old one's place at the end."""
    package.save(
        pipe,
        out,
        lambda half, folder: _for_older_releases(folder),
        lambda half, megabytes: package.card(
            _CARD,
            command="python bench/train_small_dit.py --out tiledattn/models/textures_dit",
            parameters=package.count(half.vae, half.transformer, half.text_encoder),
            megabytes=f"{megabytes:.1f}",
            encoder_parameters=package.count(half.vae.encoder, half.vae.quant_conv),
            decoder_parameters=package.count(half.vae.decoder, half.vae.post_quant_conv),
            dit_parameters=package.count(half.transformer, half.text_encoder),
            **facts,
        ),
    )


@torch.no_grad()
def sample_sheet(pipe: WanPipeline, path: Path, guidance: float = 1.0) -> None:
    """For each material six native samples, and below them one four times as wide, untiled."""
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for prompt in sheets.PROMPTS:
        for width, count in ((64, 6), (256, 1)):
            frames = pipe(
                prompt,
                height=64,
                width=width,
                num_frames=1,
                num_inference_steps=12,
                guidance_scale=guidance,
                num_videos_per_prompt=count,
                max_sequence_length=16,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).frames
            rows.append([frame * 2 - 1 for frame in frames[:, 0]])
    sheets.fill_up(rows)
    sheets.tile_up(rows, path)
