"""Train the small Wan that ships with the package, on photographs that ship with scikit-image.

Four stages on one CPU thread, all on single frames: an encoder that learns the latents of the autoencoder in
``textures_unet``, a decoder of these latents, the decoder once more for sharpness, and a text-conditioned
transformer on the latents. Progress is kept in ``--work``: run the same command again and it goes on from the
last checkpoint. Ctrl-C writes one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import T5Tokenizer

from tiledattn.models import textures_unet
from training import command, export_dit, frames, loop, photos, stages, transformer, words

_EXAMPLES = """\
examples:
  python bench/train_small_dit.py --out tiledattn/models/textures_dit
  python bench/train_small_dit.py --out /tmp/quick --work /tmp/quick-work --decoder-steps 100 --dit-steps 200
  python bench/train_small_dit.py --out tiledattn/models/textures_dit --fresh      (forget the checkpoints)
"""
_STEPS = {"encoder": 600, "decoder": 1000, "grain": 800, "dit": 5000}


def train_autoencoder(
    options: argparse.Namespace, vae: frames.Frames, teacher: AutoencoderKL, pictures: list[list[torch.Tensor]]
) -> dict[str, loop.Loop]:
    """The first three stages, which share a code and are otherwise on their own; gives ``vae`` their weights."""
    encoder = loop.Loop(
        "encoder",
        frames.FrameEncoder(vae),
        options.work / "encoder.pt",
        steps=options.encoder_steps,
        lr=2e-3,
        decay=0.99,
        seed=options.seed,
    )
    encoder.run(frames.EncoderLoss(encoder.model, teacher, pictures), min(options.every, 300), lambda: None)
    encoder.average.install(vae)
    scaling = teacher.config.scaling_factor
    decoder = stages.train_decoder(
        options, "decoder", frames.FrameDecoder(vae), teacher, scaling, pictures, lr=2e-3, grain=0.0
    )
    decoder.average.install(vae)
    grain = stages.train_decoder(options, "grain", frames.FrameDecoder(vae), teacher, scaling, pictures)
    grain.average.install(vae)
    return {"encoder": encoder, "decoder": decoder, "grain": grain}


def denoiser_loop(options: argparse.Namespace, tokenizer: T5Tokenizer) -> loop.Loop:
    """The last stage, where its checkpoint left off."""
    torch.manual_seed(options.seed + 1)
    return loop.Loop(
        "dit",
        transformer.Denoiser(tokenizer),
        options.work / "dit.pt",
        steps=options.dit_steps,
        lr=1e-3,
        decay=0.998,
        seed=options.seed + 1,
    )


def train_denoiser(
    options: argparse.Namespace, vae: frames.Frames, done: dict[str, loop.Loop], bank: list[list[torch.Tensor]]
) -> None:
    """Last stage; every save also leaves a usable pipeline and ``samples.png``."""
    tokenizer = words.build_tokenizer([prompt for m in photos.MATERIALS for prompt in m.prompts])
    stage = denoiser_loop(options, tokenizer)

    def report() -> None:
        pipe = export_dit.pipeline(vae.vae, stage.average, tokenizer)
        export_dit.sample_sheet(pipe, options.work / "samples.png")
        export_dit.save(pipe, options.out, stages.facts(options, **done, dit=stage))

    if stage.step >= stage.steps:
        report()
    stage.run(transformer.StepLoss(stage.model, tokenizer, bank, options.batch), options.every, report)


def train(options: argparse.Namespace) -> None:
    """All stages."""
    rng = np.random.default_rng(options.seed)
    pictures = [photos.variants(material, 32, rng) for material in photos.MATERIALS]
    teacher = AutoencoderKL.from_pretrained(textures_unet(), subfolder="vae", local_files_only=True)
    vae = frames.Frames(frames.build())
    bank = frames.latent_bank(vae.vae, teacher, pictures)
    train_denoiser(options, vae, train_autoencoder(options, vae, teacher, pictures), bank)


def main() -> int:
    """Train, resuming where an earlier run stopped."""
    options = command.parse(__doc__, _EXAMPLES, Path("build/training-dit"), _STEPS)
    return command.run(options, tuple(_STEPS), train)


if __name__ == "__main__":
    sys.exit(main())
