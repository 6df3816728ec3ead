"""Models that ship with the package: small enough to paint on a CPU in seconds."""

from __future__ import annotations

from pathlib import Path


def textures_unet() -> str:
    """The directory of a small Stable Diffusion that paints brick, grass, gravel and stars (native size 64x64 pixels).

    Load it with `diffusers.StableDiffusionPipeline.from_pretrained(tiledattn.models.textures_unet())`; its README.md
    tells what it was trained on and which prompts it knows.
    """
    return str(Path(__file__).parent / "textures_unet")
