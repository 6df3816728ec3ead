"""Gradients of cross-tile attention: the backward alone, its forward done before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiledattn as ta
from tiledattn.dispatch import provides

from . import attention_cases as forward
from . import peers
from .gradient_judge import GradientJudge
from .ways import Call, Case, Inputs, Judge, Way, our_backends, random


@dataclass(frozen=True)
class BackwardCase(forward.AttentionCase):
    """dq, dk and dv of all tiles."""

    def amount(self, dtype: torch.dtype) -> float:
        """Five products of queries and keys."""
        return 2.5 * super().amount(dtype)

    def least_bytes(self, dtype: torch.dtype) -> float:
        """Queries, keys, values, the result and its gradient read once, three gradients written once."""
        return 2.0 * super().least_bytes(dtype)

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """Queries, keys, values and the output's gradient [T, B, N, H, D]."""
        shape = (4, self.layout.num_tiles, self.batch, self.layout.tile_positions, self.heads, self.dim)
        return random(shape, device, dtype, seed).unbind(0)

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours, autograd through gathered K/V with each kind of SDPA and through FlexAttention."""
        ours = partial(ta.cross_tile_attention, layout=self.layout, halo=self.halo)
        names = [name for name in our_backends(device) if provides(name, "cross_tile_attention_backward")]
        flex = forward.MadeOnce(partial(self._flex, device))
        return [
            *(Way(name, "ours", partial(_backward, partial(ours, backend=name), None)) for name in names),
            *(
                Way(f"gather + SDPA {name}".strip(), "peer", partial(self._by_hand, device, kind))
                for name, kind in forward.SDPA[device.type].items()
            ),
            Way("FlexAttention", "peer", lambda inputs: _backward(flex.attend, None, inputs)),
        ]

    def _by_hand(self, device: torch.device, kind: SDPBackend | None, inputs: Inputs) -> Call:
        self.refuse_scores(kind, self._rows(device), copies=3)
        return _backward(partial(peers.gather_and_attend, places=self.places(device)), kind, inputs)

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """By `GradientJudge`: all tiles, batch entries and heads."""
        return GradientJudge(self.layout, self.halo, inputs, yardstick).verdict


def _backward(attend: Callable[..., Tensor], kind: SDPBackend | None, inputs: Inputs) -> Call:
    """The gradients' call; what runs the forward also chooses the backward's kernel."""
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    with torch.enable_grad():
        if kind is None:
            out = attend(q, k, v)
        else:
            with sdpa_kernel(kind):
                out = attend(q, k, v)
    return lambda: torch.autograd.grad(out, (q, k, v), inputs[3], retain_graph=True)


MOST_TOKENS_ON_CPU = 10000  # more take minutes


def _dtypes(case: forward.AttentionCase) -> Mapping[str, tuple[str, ...]]:
    large = case.layout.num_tiles * case.layout.tile_positions > MOST_TOKENS_ON_CPU
    return {device: found for device, found in case.dtypes.items() if not (large and device == "cpu")}


CASES: list[Case] = [
    BackwardCase(
        f"{case.operation}, gradients",
        case.name,
        _dtypes(case),
        *(getattr(case, name) for name in ("layout", "halo", "heads", "dim", "batch")),
    )
    for case in forward.CASES
    if type(case) is forward.AttentionCase
]
