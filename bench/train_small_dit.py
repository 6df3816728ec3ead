"""Train the small Wan that ships with the package, on photographs that ship with scikit-image.

Three stages on one CPU thread: an autoencoder, its decoder once more for sharpness, and a
text-conditioned transformer on the latents, all on single frames. Progress is kept in ``--work``: run the
same command again and it goes on from the last checkpoint. Ctrl-C writes one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from training import command, export_dit, frames, loop, photos, stages, transformer, words

_EXAMPLES = """\
examples:
  python bench/train_small_dit.py --out tiledattn/models/textures_dit
  python bench/train_small_dit.py --out /tmp/quick --work /tmp/quick-work --vae-steps 100 --dit-steps 200
  python bench/train_small_dit.py --out tiledattn/models/textures_dit --fresh      (forget the checkpoints)
"""
_STEPS = {"vae": 1600, "decoder": 500, "dit": 5500}


def train_denoiser(
    options: argparse.Namespace, vae: loop.Loop, decoder: loop.Loop, bank: list[list[torch.Tensor]]
) -> None:
    """Last stage; every save also leaves a usable pipeline and ``samples.png``."""
    tokenizer = words.build_tokenizer([prompt for m in photos.MATERIALS for prompt in m.prompts])
    stage = loop.Loop(
        "dit",
        transformer.Denoiser(tokenizer),
        options.work / "dit.pt",
        steps=options.dit_steps,
        lr=1e-3,
        decay=0.998,
        seed=options.seed + 1,
    )

    def report() -> None:
        pipe = export_dit.pipeline(vae.average.vae, stage.average, tokenizer)
        export_dit.sample_sheet(pipe, options.work / "samples.png")
        export_dit.save(pipe, options.out, stages.facts(options, vae=vae, decoder=decoder, dit=stage))

    if stage.step >= stage.steps:
        report()
    stage.run(transformer.StepLoss(stage.model, tokenizer, bank, options.batch), options.every, report)


def train(options: argparse.Namespace) -> None:
    """All stages."""
    rng = np.random.default_rng(options.seed)
    pictures = [photos.variants(material, 32, rng) for material in photos.MATERIALS]
    vae = stages.train_autoencoder(options, frames.Frames(frames.build()), pictures)
    bank = frames.latent_bank(vae.average, pictures)
    torch.manual_seed(options.seed + 2)
    scaling = 1 / float(np.mean(vae.average.vae.config.latents_std))
    decoder = stages.train_decoder(options, vae.average, frames.FrameDecoder(vae.average), scaling, pictures)
    torch.manual_seed(options.seed + 1)
    train_denoiser(options, vae, decoder, bank)


def main() -> int:
    """Train, resuming where an earlier run stopped."""
    options = command.parse(__doc__, _EXAMPLES, Path("build/training-dit"), _STEPS)
    return command.run(options, tuple(_STEPS), train)


if __name__ == "__main__":
    sys.exit(main())
