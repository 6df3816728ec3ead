"""What a model family answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ...geometry import TileLayout


@dataclass(frozen=True)
class CallContext:
    """What a family needs to turn a call on the canvas into a call on tiles.

    Attributes:
        layout: the layout in latents.
        batch: rows of the canvas batch (guidance copies included).
        pixels: pixels per latent.
        size_conditioning: "tile", "crop" or "canvas".
    """

    layout: TileLayout
    batch: int
    pixels: int
    size_conditioning: str


class Family(Protocol):
    """The denoisers that are called alike. Implementations hold no state."""

    classes: tuple[str, ...]
    """Names of the supported classes, for messages."""

    def matches(self, model: Any) -> bool:
        """Whether the model is one of the family."""

    def check(self, model: Any) -> None:
        """Raises ValueError with the reason for a configuration that can't be tiled."""

    def granularity(self, model: Any) -> int:
        """What canvas, tile and overlap must be multiples of, in latents."""

    def native_tile(self, model: Any) -> tuple[int, int]:
        """Height and width the model was trained at, in latents."""

    def pixels_per_latent(self, model: Any) -> int:
        """Pixels a latent stands for when there is no VAE to ask (conditioning on sizes)."""

    def parameters(self) -> tuple[str, ...]:
        """Names of the forward's parameters in order."""

    def self_attentions(self, model: Any) -> dict[str, nn.Module]:
        """The self-attention layers over canvas tokens, by name."""

    def cross_attentions(self, model: Any) -> dict[str, nn.Module]:
        """The layers in which canvas tokens attend to conditioning, by name."""

    def canvas_of(self, call: dict[str, Any]) -> Tensor:
        """The canvas [B, C, height, width] among the arguments; raises for arguments that can't be tiled."""

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext) -> dict[str, Any]:
        """The call for `tiles` [T*B, C, *tile]: conditioning repeated, or cut."""

    def timestep_of(self, call: dict[str, Any]) -> Any:
        """The timestep among the arguments."""

    def prediction_of(self, output: Any) -> Tensor:
        """The prediction [T*B, C, *tile] in the model's output."""

    def with_prediction(self, output: Any, prediction: Tensor) -> Any:
        """The model's output with another prediction."""
