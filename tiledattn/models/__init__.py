"""Models that ship with the package: small enough to paint on a CPU in seconds."""

from __future__ import annotations

from pathlib import Path


def textures_unet() -> str:
    """The directory of a small Stable Diffusion that paints brick, grass, gravel and stars (native size 64x64 pixels).

    Load it with `diffusers.StableDiffusionPipeline.from_pretrained(tiledattn.models.textures_unet())`; its README.md
    tells what it was trained on and which prompts it knows.
    """
    return str(Path(__file__).parent / "textures_unet")


def textures_dit() -> str:
    """The directory of a small Wan that paints the same as single frames (native size 64x64 pixels).

    A transformer without convolutions: on it attention is all that crosses tile borders. Load it with
    `diffusers.WanPipeline.from_pretrained(tiledattn.models.textures_dit())`, call it with `num_frames=1`, and give
    `enable_tiling` its tile, 64: a Wan's configuration doesn't tell its native size.
    """
    return str(Path(__file__).parent / "textures_dit")
