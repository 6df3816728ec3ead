"""A layer around cross-tile attention, and what the tests of training ask of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from support import assert_within_budget, plain_attention
from torch import Tensor, nn

import tiledattn as ta

LAYOUT = ta.TileLayout((6, 8), (3, 4), (0, 1), (False, True))
HALO, PREFIX, WIDTH, HEADS = 2, 2, 12, 2

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(backend: str) -> Attention:
    """Cross-tile attention by `backend`."""
    return lambda q, k, v: ta.cross_tile_attention(q, k, v, LAYOUT, HALO, num_prefix_tokens=PREFIX, backend=backend)


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by gathering and SDPA, tile by tile."""
    return plain_attention(q, k, v, LAYOUT, HALO, num_prefix_tokens=PREFIX)


class Layer(nn.Module):
    """x + project(attention(qkv(x))) on tokens [T, B, S, WIDTH], two query heads on one key head."""

    def __init__(self, attend: Attention) -> None:
        super().__init__()
        head = WIDTH // HEADS
        self.attend, self.sizes = attend, (WIDTH, head, head)
        self.qkv, self.project = nn.Linear(WIDTH, sum(self.sizes)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, WIDTH // HEADS)) for part in self.qkv(x).split(self.sizes, -1))
        return x + self.project(self.attend(q, k, v).flatten(-2))


def make_layer(attend: Attention) -> Layer:
    """Always the same weights."""
    torch.manual_seed(0)
    return Layer(attend)


def make_task(batch: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens and what the layer should make of them: the mean over the tile's own tokens, halved."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(LAYOUT.num_tiles, batch, PREFIX + LAYOUT.tile_positions, WIDTH, generator=generator)
    return x, (x + x.mean(2, keepdim=True)) / 2


def gradients(layer: Layer, x: Tensor, target: Tensor) -> list[Tensor]:
    """Of the weights and of the input."""
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad((layer(x) - target).square().mean(), [*layer.parameters(), x]))


def assert_gradients_are_right(attend: Attention) -> None:
    """Weights and input get the gradients of float64, within twice the error of plain PyTorch."""
    x, target = make_task()
    found = gradients(make_layer(attend), x, target)
    plain = gradients(make_layer(attention_by_hand), x, target)
    exact = gradients(make_layer(attention_by_hand).double(), x.double(), target.double())
    for a, b, c in zip(found, plain, exact, strict=True):
        assert_within_budget(a, b, c)


def losses(layer: Layer, steps: int) -> list[float]:
    """The loss before every step, and after the last one; the layer is left as it was."""
    x, target = make_task()
    learner = copy.deepcopy(layer)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (learner(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    with torch.no_grad():
        return [*found, float((learner(x) - target).square().mean())]
