"""Attention of processors that take the rows of a batch one at a time, each with as much text as it has (Mochi)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass
class _Row:
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


class RowByRow:
    """Collects the rows of one layer and attends to all of them when the last one comes.

    Tiles are rows, and a tile needs its neighbours' keys, which come later. Until then a row gets a placeholder, which
    is filled with its output at the end: the processor pads it, and must do nothing else with it before all rows are
    there. A placeholder that was used before is no number, so that nothing wrong passes for a result.

    Args:
        count: rows of the batch.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: list[_Row] = []

    def pad(self, *args: Any, **kwargs: Any) -> Any:
        """`F.pad`; a padded placeholder is one itself."""
        out = F.pad(*args, **kwargs)
        if self._rows and args[0] is self._rows[-1].out:
            self._rows[-1].out = out
        return out

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One row's attention.

        Args:
            attend: attention of all rows: [rows, H, S, D] thrice and a mask of keys, bool [rows, 1, 1, S], or None.
            query, key, value: [1, H, S, D], the row's own S.

        Returns:
            [1, H, S, D]: a placeholder, or the last row's output.
        """
        self._rows.append(_Row(query, key, value, torch.full_like(query, torch.nan)))
        if len(self._rows) < self._count:
            return self._rows[-1].out
        rows, self._rows = self._rows, []
        lengths = [row.query.shape[2] for row in rows]
        longest = max(lengths)

        def together(tensors: list[Tensor]) -> Tensor:
            return torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in tensors])

        mask = None
        if min(lengths) < longest:
            mask = torch.arange(longest, device=query.device) < torch.tensor(lengths, device=query.device)[:, None]
            mask = mask[:, None, None]
        out = attend(
            together([row.query for row in rows]),
            together([row.key for row in rows]),
            together([row.value for row in rows]),
            mask,
        )
        for row, result, length in zip(rows[:-1], out, lengths, strict=False):
            row.out[:, :, :length] = result[None, :, :length]
        return out[-1:, :, : lengths[-1]]
