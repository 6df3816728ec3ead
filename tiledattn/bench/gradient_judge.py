"""Judges gradients of attention: all tiles, batch entries and heads.

As in `attention_judge`: all of them are compared with float64 where there are few scores; else one head of one batch
entry is, and all are compared with plain PyTorch in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta

from .attention_judge import MOST_EXACT_SCORES, near_enough, rows_by_definition, steps
from .ways import Inputs, Verdict, Way, budget_by_rows, nearest

Gradients = tuple[Tensor, Tensor, Tensor]


class GradientJudge:
    """Knows the exact gradients of queries, keys and values, [G, T * N, D] with G = B * H."""

    def __init__(
        self, layout: ta.TileLayout, halo: tuple[int, ...], inputs: Inputs, yardstick: torch.dtype | None = None
    ) -> None:
        self._inputs, self._tiles = inputs, layout.num_tiles
        self._seen = rows_by_definition(layout, halo, inputs[0].device)
        every = tuple(by_head(x) for x in inputs)
        scores = every[0].shape[0] * layout.tile_positions * self._seen.numel()
        self._all = scores <= MOST_EXACT_SCORES[inputs[0].device.type]
        some = every if self._all else tuple(x[-1:] for x in every)
        plainly = self._plain(tuple(x.to(yardstick) if yardstick else x for x in some))
        self._plainly = tuple(x.to(inputs[0].dtype) for x in plainly)
        self._exactly = self._exact(some)
        self._nearly = None if self._all else self._plain(tuple(x.float() for x in every))

    def verdict(self, found: Gradients, way: Way) -> Verdict:
        """The gradient that is nearest to its limit; another dtype than the inputs', a NaN or infinity fail."""
        of_inputs = self._inputs[0]
        for x in found:
            if x.shape != of_inputs.shape or x.dtype != of_inputs.dtype or not bool(x.isfinite().all()):
                return Verdict(float("inf"), 0.0)
        verdicts = []
        for number, (x, plain, exact) in enumerate(zip(map(by_head, found), self._plainly, self._exactly, strict=True)):
            verdicts.append(budget_by_rows(x if self._all else x[-1:], plain, exact))
            if self._nearly is not None:
                near = self._nearly[number]
                verdicts += near_enough(x, near, near[-1:], plain, exact)
        return nearest(*verdicts)

    def _plain(self, inputs: Inputs) -> Gradients:
        """By autograd through SDPA over keys and values that are copied next to each other."""
        q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
        with torch.enable_grad():
            groups, _, dim = q.shape
            keys, values = (
                x.index_select(1, self._seen.flatten()).view(groups, *self._seen.shape, dim) for x in (k, v)
            )
            queries = q.reshape(groups, self._tiles, -1, dim)
            out = F.scaled_dot_product_attention(queries, keys, values).flatten(1, 2)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), inputs[3])
        return dq, dk, dv

    def _exact(self, inputs: Inputs) -> Gradients:
        """By the formula, in float64: with weights P and dP = dO V^T, dS = P (dP - sum of P dP)."""
        found = tuple(torch.zeros(inputs[0].shape, dtype=torch.float64, device=x.device) for x in inputs[:3])
        scale = inputs[0].shape[-1] ** -0.5
        for group in range(len(inputs[0])):
            q, k, v, gradient = (x[group].double() for x in inputs)
            dq, dk, dv = (x[group] for x in found)
            tokens = len(q) // self._tiles
            for tile, seen in enumerate(self._seen):
                keys, values = k[seen], v[seen]
                for step in steps(tokens, len(seen), q.device):
                    at = slice(tile * tokens + step.start, tile * tokens + min(step.stop, tokens))
                    weights = (q[at] * scale @ keys.T).softmax(-1)
                    of_weights = gradient[at] @ values.T
                    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
                    dq[at] = of_scores @ keys
                    dk.index_add_(0, seen, of_scores.T @ q[at])
                    dv.index_add_(0, seen, weights.T @ gradient[at])
        return found[0], found[1], found[2]


def by_head(x: Tensor) -> Tensor:
    """[T, B, N, H, D] -> [B * H, T * N, D]."""
    return x.permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1, 2)
