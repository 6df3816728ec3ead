"""The stages before the denoiser that the two scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import autoencoder, loop, photos, sharpening, sheets


def draw_reconstructions(
    reconstruct: Callable[[torch.Tensor], torch.Tensor], pictures: list[list[torch.Tensor]], path: Path
) -> None:
    """Crops above and their reconstructions below, beside a checkpoint."""
    draw = torch.Generator().manual_seed(1)
    x = torch.stack([photos.crop(pictures[i % len(pictures)], 64, 64, draw) for i in range(12)])
    with torch.no_grad():
        y = reconstruct(x)
    sheets.tile_up([list(x), list(y)], path.with_suffix(".png"))


def train_autoencoder(options: argparse.Namespace, model: nn.Module, pictures: list[list[torch.Tensor]]) -> loop.Loop:
    """First stage; leaves ``vae.png``."""
    stage = loop.Loop(
        "vae", model, options.work / "vae.pt", steps=options.vae_steps, lr=2e-3, decay=0.99, seed=options.seed
    )

    def report() -> None:
        draw_reconstructions(lambda x: stage.average(x).sample, pictures, stage.path)

    stage.run(autoencoder.StepLoss(stage.model, pictures), min(options.every, 300), report)
    return stage


def train_decoder(
    options: argparse.Namespace,
    name: str,
    decoder: sharpening.Decoder,
    encoder: Any,
    scaling: float,
    pictures: list[list[torch.Tensor]],
    **settings: float,
) -> loop.Loop:
    """Teaches a decoder ``encoder``'s latents, of which ``scaling`` is one over the deviation; leaves a ``.png``."""
    stage = loop.Loop(
        name,
        decoder,
        options.work / f"{name}.pt",
        steps=getattr(options, f"{name}_steps"),
        lr=settings.pop("lr", 1e-3),
        decay=0.99,
        seed=options.seed + 2,
    )

    def report() -> None:
        draw_reconstructions(lambda x: stage.average(encoder.encode(x).latent_dist.mean), pictures, stage.path)

    loss = sharpening.StepLoss(stage.model, encoder, scaling, pictures, **settings)
    stage.run(loss, min(options.every, 250), report)
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
