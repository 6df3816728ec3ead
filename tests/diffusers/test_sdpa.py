"""What canvas queries see of the text, out of a model's mask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tiledattn.diffusers.sdpa import _prefix_mask

LAYER = SimpleNamespace(name="blocks.0.attn")
SHOWN = torch.tensor([True, True, False])  # two tokens of text and one of padding, beside four canvas tokens


def column_mask(behind: bool) -> torch.Tensor:
    canvas = torch.ones(4, dtype=torch.bool)
    return torch.cat([canvas, SHOWN] if behind else [SHOWN, canvas])


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_columns(behind, additive):
    mask = column_mask(behind)[None, None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -10000.0)
    seen = _prefix_mask(mask, LAYER, 2, 3, 3 if behind else 0)
    assert torch.equal(seen, SHOWN.expand(2, 3))


@pytest.mark.parametrize("behind", [False, True])
def test_of_a_mask_per_query_a_canvas_querys_row_counts(behind):
    """Rows of padding may be masked altogether, and those of text otherwise."""
    columns = column_mask(behind)
    mask = torch.zeros(7, 7, dtype=torch.bool)
    canvas = slice(0, 4) if behind else slice(3, 7)
    mask[canvas] = columns
    seen = _prefix_mask(mask[None, None], LAYER, 1, 3, 3 if behind else 0)
    assert torch.equal(seen, SHOWN[None])


def test_no_mask_and_a_mask_per_head():
    assert _prefix_mask(None, LAYER, 1, 3, 0) is None
    assert _prefix_mask(column_mask(False)[None, None, None], LAYER, 1, 0, 0) is None
    with pytest.raises(NotImplementedError, match=r"blocks\.0\.attn: a mask per head"):
        _prefix_mask(torch.ones(1, 2, 1, 7, dtype=torch.bool), LAYER, 1, 3, 0)
