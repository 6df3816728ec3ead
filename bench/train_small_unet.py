"""Train the small Stable Diffusion that ships with the package, on photographs that ship with scikit-image.

Three stages on one CPU thread: an autoencoder, its decoder once more for sharpness, and a
text-conditioned denoiser on the latents. Progress is kept in ``--work``: run the same command again and it goes
on from the last checkpoint. Ctrl-C writes one.
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
from diffusers import AutoencoderKL
from training import autoencoder, denoiser, export, loop, photos, sharpening, text

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
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="checkpoints and sheets")
    parser.add_argument("--vae-steps", type=int, default=1800, help="default: %(default)s")
    parser.add_argument("--decoder-steps", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--unet-steps", type=int, default=3600, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="crops a denoiser step (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1000, help="steps between saves (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--note", default="", help="a sentence for the model card about how the run went")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    options = parser.parse_args(arguments)
    for name in ("vae_steps", "decoder_steps", "unet_steps", "batch", "every", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def draw_reconstructions(vae: AutoencoderKL, pictures: list[list[torch.Tensor]], path: Path) -> None:
    """Crops above and their reconstructions below."""
    draw = torch.Generator().manual_seed(1)
    x = torch.stack([photos.crop(pictures[i % len(pictures)], 64, 64, draw) for i in range(12)])
    with torch.no_grad():
        y = vae(x).sample
    export.tile_up([list(x), list(y)], path)


def train_autoencoder(options: argparse.Namespace, pictures: list[list[torch.Tensor]]) -> loop.Loop:
    """First stage; leaves ``vae.png``."""
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
        draw_reconstructions(stage.average, pictures, options.work / "vae.png")

    stage.run(autoencoder.StepLoss(stage.model, pictures), min(options.every, 300), report)
    return stage


def train_decoder(options: argparse.Namespace, vae: AutoencoderKL, pictures: list[list[torch.Tensor]]) -> loop.Loop:
    """Second stage; gives ``vae`` a sharper decoder and leaves ``decoder.png``."""
    stage = loop.Loop(
        "decoder",
        sharpening.Decoder(vae),
        options.work / "decoder.pt",
        steps=options.decoder_steps,
        lr=1e-3,
        decay=0.99,
        seed=options.seed + 2,
    )

    def report() -> None:
        stage.average.install(vae)
        draw_reconstructions(vae, pictures, options.work / "decoder.png")

    stage.run(sharpening.StepLoss(stage.model, vae, pictures), min(options.every, 250), report)
    stage.average.install(vae)
    return stage


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

    def facts() -> dict[str, Any]:
        return {
            "command": "python bench/train_small_unet.py --out tiledattn/models/textures_unet",
            "seed": options.seed,
            "note": options.note,
            "vae_steps": vae.step,
            "vae_loss": vae.loss,
            "vae_minutes": round(vae.seconds / 60),
            "decoder_steps": decoder.step,
            "decoder_loss": decoder.loss,
            "decoder_minutes": round(decoder.seconds / 60),
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
        for name in ("vae.pt", "decoder.pt", "unet.pt", "log.jsonl"):
            (options.work / name).unlink(missing_ok=True)
    try:
        rng = np.random.default_rng(options.seed)
        pictures = [photos.variants(material, 32, rng) for material in photos.MATERIALS]
        vae = train_autoencoder(options, pictures)
        bank = autoencoder.latent_bank(vae.average, pictures)
        torch.manual_seed(options.seed + 2)
        decoder = train_decoder(options, vae.average, pictures)
        torch.manual_seed(options.seed + 1)
        train_denoiser(options, vae, decoder, bank)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {options.work}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
