"""Train the small Stable Diffusion that ships with the package, on photographs that ship with scikit-image.

Two stages, an autoencoder and then a text-conditioned denoiser on its latents, on one CPU thread. Progress is
kept in ``--work``: run the same command again and it goes on from the last checkpoint. Ctrl-C writes one.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import autoencoder, denoiser, export, loop, photos, text

_EXAMPLES = """\
examples:
  python bench/train_small_unet.py --out tiledattn/models/textures_unet
  python bench/train_small_unet.py --out /tmp/quick --work /tmp/quick-work --vae-steps 100 --unet-steps 200
  python bench/train_small_unet.py --out tiledattn/models/textures_unet --fresh      (forget the checkpoints)
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the finished pipeline")
    parser.add_argument(
        "--work", type=Path, default=Path("build/training"), help="checkpoints and contact sheets"
    )
    parser.add_argument("--vae-steps", type=int, default=1800, help="default: %(default)s")
    parser.add_argument("--unet-steps", type=int, default=7000, help="default: %(default)s")
    parser.add_argument(
        "--batch", type=int, default=16, help="native crops a denoiser step (default: %(default)s)"
    )
    parser.add_argument("--every", type=int, default=1000, help="steps between saves (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    options = parser.parse_args(arguments)
    for name in ("vae_steps", "unet_steps", "batch", "every", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def train_autoencoder(options: argparse.Namespace, pictures: list[list[torch.Tensor]]) -> loop.Loop:
    """First stage; leaves ``vae.png``, crops above and their reconstructions below."""
    stage = loop.Loop(
        "vae",
        autoencoder.build(),
        options.work / "vae.pt",
        steps=options.vae_steps,
        lr=2e-3,
        decay=0.99,
        seed=options.seed,
    )

    def report() -> None:
        draw = torch.Generator().manual_seed(1)
        x = torch.stack([photos.crop(pictures[i % len(pictures)], 64, 64, draw) for i in range(12)])
        with torch.no_grad():
            y = stage.average(x).sample
        export.tile_up([list(x), list(y)], options.work / "vae.png")

    stage.run(autoencoder.StepLoss(stage.model, pictures), min(options.every, 300), report)
    return stage


def train_denoiser(options: argparse.Namespace, vae: loop.Loop, bank: list[list[torch.Tensor]]) -> None:
    """Second stage; every save also leaves a usable pipeline and ``samples.png``."""
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

    def facts() -> dict[str, Any]:
        return {
            "command": "python bench/train_small_unet.py --out tiledattn/models/textures_unet",
            "seed": options.seed,
            "vae_steps": vae.step,
            "vae_loss": vae.loss,
            "vae_minutes": round(vae.seconds / 60),
            "unet_steps": stage.step,
            "unet_loss": stage.loss,
            "unet_minutes": round(stage.seconds / 60),
        }

    def report() -> None:
        pipe = export.pipeline(vae.average, stage.average, tokenizer)
        export.sample_sheet(pipe, options.work / "samples.png")
        export.save(pipe, options.out, facts())

    if stage.step >= stage.steps:
        report()
    stage.run(denoiser.StepLoss(stage.model, tokenizer, bank, options.batch), options.every, report)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Train, resuming where an earlier run stopped."""
    options = parse()
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for name in ("vae.pt", "unet.pt", "log.jsonl"):
            (options.work / name).unlink(missing_ok=True)
    try:
        rng = np.random.default_rng(options.seed)
        pictures = [photos.variants(material, 32, rng) for material in photos.MATERIALS]
        vae = train_autoencoder(options, pictures)
        torch.manual_seed(options.seed + 1)
        train_denoiser(options, vae, autoencoder.latent_bank(vae.average, pictures))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {options.work}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
