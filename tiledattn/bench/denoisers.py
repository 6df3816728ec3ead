"""Denoisers whose steps are timed: the shipped ones, and large ones with random weights (extra `diffusers`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiledattn import models

from .ways import NotOfferedError

TIMESTEP = 500
SDXL: dict[str, Any] = {  # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX: dict[str, Any] = {"guidance_embeds": True}  # the other defaults are those of Flux.1 dev


@dataclass(frozen=True)
class Denoiser:
    """A model, and how one step of it is called.

    Attributes:
        name: as tables show it.
        make: the model, on the default device and in the default dtype.
        step: (model, canvas [B, C, *size]) -> prediction of the canvas's shape.
        channels: C.
        tile: the native size, in positions of the canvas.
        batch: rows of the canvas: 2 with guidance.
        law: the arguments of `enable_tiling` with which the tiled model equals the untiled one; None: no law says so.
        joins: whether its tiles may stay joined, so that its attention alone goes by tiles.
    """

    name: str
    make: Callable[[], nn.Module]
    step: Callable[[nn.Module, Tensor], Tensor]
    channels: int
    tile: tuple[int, ...]
    batch: int
    law: dict[str, Any] | None = field(default=None, hash=False)
    joins: bool = False

    def canvas(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """The size of a canvas of rows x columns native tiles."""
        *frames, height, width = self.tile
        return (*frames, height * grid[0], width * grid[1])

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model on a device, without gradients.

        Raises:
            NotOfferedError: diffusers is missing.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                model = self.make()
        except ImportError as missing:
            raise NotOfferedError(f"{missing}: pip install 'tiledattn[diffusers]'") from None
        finally:
            torch.set_default_dtype(before)
        return nn.Module.to(model, device, dtype).eval().requires_grad_(False)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules with the same weights, so that it can be tiled on its own."""
    weights = [*model.parameters(), *model.buffers()]
    copied: nn.Module = copy.deepcopy(model, {id(x): x for x in weights})
    return copied


def _shipped(kind: str, folder: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import diffusers

        model: nn.Module = getattr(diffusers, kind).from_pretrained(Path(folder), local_files_only=True)
        return model

    return make


def random_model(kind: str, config: dict[str, Any]) -> Callable[[], nn.Module]:
    """Makes a model of diffusers by the name of its class and its configuration, with random weights."""

    def make() -> nn.Module:
        import diffusers

        torch.manual_seed(0)
        model: nn.Module = getattr(diffusers, kind)(**config)
        return model

    return make


def _text(canvas: Tensor, *shape: int, seed: int = 1) -> Tensor:
    """Conditioning of as many rows as the canvas has, the same in every precision up to its rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(canvas), *shape, generator=generator).to(canvas)


def _small_step(model: nn.Module, canvas: Tensor) -> Tensor:
    """The shipped UNet [B, 4, h, w] and DiT [B, 4, 1, h, w]."""
    timestep = torch.full((len(canvas),), TIMESTEP, device=canvas.device)
    found: Tensor = model(canvas, timestep, _text(canvas, 16, 64), return_dict=False)[0]
    return found


def _sdxl_step(model: nn.Module, canvas: Tensor) -> Tensor:
    """[B, 4, h, w], of which the text encoders' part is random."""
    height, width = (8.0 * n for n in canvas.shape[2:])
    ids = torch.tensor([height, width, 0, 0, height, width]).to(canvas).expand(len(canvas), -1)
    added = {"text_embeds": _text(canvas, 1280, seed=2), "time_ids": ids}
    found: Tensor = model(canvas, TIMESTEP, _text(canvas, 77, 2048), added_cond_kwargs=added, return_dict=False)[0]
    return found


def _flux_step(model: nn.Module, canvas: Tensor) -> Tensor:
    """[B, 64, h, w], packed here as the pipeline packs it."""
    rows, columns = canvas.shape[2:]
    places = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
    places = places.to(canvas.device, canvas.dtype)  # real also where the canvas is a fake tensor: it is read
    one = torch.ones(len(canvas)).to(canvas)
    (found,) = model(
        hidden_states=canvas.flatten(2).transpose(1, 2),
        timestep=0.5 * one,
        guidance=3.5 * one,
        pooled_projections=_text(canvas, 768, seed=2),
        encoder_hidden_states=_text(canvas, 512, 4096),
        img_ids=places,
        txt_ids=torch.zeros(512, 3).to(canvas),
        return_dict=False,
    )
    prediction: Tensor = found.transpose(1, 2).unflatten(2, (rows, columns))
    return prediction


_EVERYTHING = {"halo": "all", "conv_halo": True, "norm": "canvas"}  # law 4
UNET = Denoiser(
    "shipped UNet",
    _shipped("UNet2DConditionModel", f"{models.textures_unet()}/unet"),
    _small_step,
    4,
    (16, 16),
    2,
    _EVERYTHING,
    joins=True,
)
DIT = Denoiser(
    "shipped DiT",
    _shipped("WanTransformer3DModel", f"{models.textures_dit()}/transformer"),
    _small_step,
    4,
    (1, 16, 16),
    1,
    {"halo": "all"},  # law 5
)
SDXL_UNET = Denoiser(
    "SDXL, random weights",
    random_model("UNet2DConditionModel", SDXL),
    _sdxl_step,
    4,
    (128, 128),
    2,
    {**_EVERYTHING, "size_conditioning": "canvas"},
    joins=True,
)
FLUX_DIT = Denoiser(
    "Flux.1, random weights",
    random_model("FluxTransformer2DModel", FLUX),
    _flux_step,
    FLUX.get("in_channels", 64),
    (64, 64),
    1,
)
