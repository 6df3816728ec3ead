"""The stages before the denoiser, the same for either autoencoder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import autoencoder, loop, photos, sharpening, sheets


def draw_reconstructions(vae: nn.Module, pictures: list[list[torch.Tensor]], path: Path) -> None:
    """Crops above and their reconstructions below."""
    draw = torch.Generator().manual_seed(1)
    x = torch.stack([photos.crop(pictures[i % len(pictures)], 64, 64, draw) for i in range(12)])
    with torch.no_grad():
        y = vae(x).sample
    sheets.tile_up([list(x), list(y)], path)


def train_autoencoder(options: argparse.Namespace, model: nn.Module, pictures: list[list[torch.Tensor]]) -> loop.Loop:
    """First stage; leaves ``vae.png``."""
    stage = loop.Loop(
        "vae", model, options.work / "vae.pt", steps=options.vae_steps, lr=2e-3, decay=0.99, seed=options.seed
    )

    def report() -> None:
        draw_reconstructions(stage.average, pictures, options.work / "vae.png")

    stage.run(autoencoder.StepLoss(stage.model, pictures), min(options.every, 300), report)
    return stage


def train_decoder(
    options: argparse.Namespace,
    vae: Any,
    decoder: sharpening.Decoder,
    scaling: float,
    pictures: list[list[torch.Tensor]],
) -> loop.Loop:
    """Second stage; gives ``vae`` a sharper decoder and leaves ``decoder.png``. ``scaling`` is one over a deviation."""
    stage = loop.Loop(
        "decoder",
        decoder,
        options.work / "decoder.pt",
        steps=options.decoder_steps,
        lr=1e-3,
        decay=0.99,
        seed=options.seed + 2,
    )

    def report() -> None:
        stage.average.install(vae)
        draw_reconstructions(vae, pictures, options.work / "decoder.png")

    stage.run(sharpening.StepLoss(stage.model, vae, scaling, pictures), min(options.every, 250), report)
    stage.average.install(vae)
    return stage


def facts(options: argparse.Namespace, **loops: loop.Loop) -> dict[str, Any]:
    """What the model card says about the run."""
    told: dict[str, Any] = {"seed": options.seed, "note": options.note}
    for name, stage in loops.items():
        told |= {
            f"{name}_steps": stage.step,
            f"{name}_loss": stage.loss,
            f"{name}_minutes": round(stage.seconds / 60),
        }
    return told
