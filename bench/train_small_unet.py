"""Train the small Stable Diffusion that ships with the package, on photographs that ship with scikit-image.

Three stages on one CPU thread: an autoencoder, its decoder once more for sharpness, and a
text-conditioned denoiser on the latents. Progress is kept in ``--work``: run the same command again and it goes
on from the last checkpoint. Ctrl-C writes one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from training import autoencoder, command, denoiser, export, loop, photos, sharpening, stages, text

_EXAMPLES = """\
examples:
  python bench/train_small_unet.py --out tiledattn/models/textures_unet
  python bench/train_small_unet.py --out /tmp/quick --work /tmp/quick-work --vae-steps 100 --unet-steps 200
  python bench/train_small_unet.py --out tiledattn/models/textures_unet --fresh      (forget the checkpoints)
"""
_STEPS = {"vae": 1800, "decoder": 600, "unet": 3600}


def train_denoiser(
    options: argparse.Namespace, vae: loop.Loop, decoder: loop.Loop, bank: list[list[torch.Tensor]]
) -> None:
    """Last stage; every save also leaves a usable pipeline and ``samples.png``."""
    tokenizer = text.build_tokenizer([prompt for m in photos.MATERIALS for prompt in m.prompts])
    stage = loop.Loop(
        "unet",
        denoiser.Denoiser(tokenizer),
        options.work / "unet.pt",
        steps=options.unet_steps,
        lr=1e-3,
        decay=0.998,
        seed=options.seed + 1,
    )

    def report() -> None:
        pipe = export.pipeline(vae.average, stage.average, tokenizer)
        export.sample_sheet(pipe, options.work / "samples.png")
        export.save(pipe, options.out, stages.facts(options, vae=vae, decoder=decoder, unet=stage))

    if stage.step >= stage.steps:
        report()
    stage.run(denoiser.StepLoss(stage.model, tokenizer, bank, options.batch), options.every, report)


def train(options: argparse.Namespace) -> None:
    """All stages."""
    rng = np.random.default_rng(options.seed)
    pictures = [photos.variants(material, 32, rng) for material in photos.MATERIALS]
    vae = stages.train_autoencoder(options, autoencoder.build(), pictures)
    bank = autoencoder.latent_bank(vae.average, pictures)
    torch.manual_seed(options.seed + 2)
    scaling = vae.average.config.scaling_factor
    decoder = stages.train_decoder(options, "decoder", sharpening.Decoder(vae.average), vae.average, scaling, pictures)
    decoder.average.install(vae.average)
    torch.manual_seed(options.seed + 1)
    train_denoiser(options, vae, decoder, bank)


def main() -> int:
    """Train, resuming where an earlier run stopped."""
    options = command.parse(__doc__, _EXAMPLES, Path("build/training"), _STEPS)
    return command.run(options, tuple(_STEPS), train)


if __name__ == "__main__":
    sys.exit(main())
