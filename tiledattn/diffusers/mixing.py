"""Mixes prompts into the conditioning of a call for tiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def entry(call: dict[str, Any], name: str) -> Any:
    """A call's argument; "added_cond_kwargs.text_embeds" is an entry of the dictionary that an argument is."""
    value: Any = call
    for part in name.split("."):
        value = None if value is None else value.get(part)
    return value


def with_entry(call: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The call with another value of an argument, named as in `entry`; the given call stays as it is."""
    first, _, rest = name.partition(".")
    return {**call, first: with_entry(call[first], rest, value) if rest else value}


def mix_call(
    call: dict[str, Any],
    encoded: Sequence[dict[str, Tensor]],
    own: Sequence[bool],
    weights: Tensor,
    masks: Sequence[str] = (),
) -> dict[str, Any]:
    """A call in whose positive rows every tile has its own mix of prompts.

    Prompts of different length are padded with zeros to the longest where the model has a mask, which becomes the
    union of the masks of the prompts that a tile mixes, and where the call has a list of rows of any length.

    Args:
        call: the call for tiles, rows [T*B, ...].
        encoded: each region's conditioning [1, ...] by argument, named as in `entry`.
        own: which of the B rows are the positive prompt's.
        weights: [T, R + 1] of the regions and the call's own prompt.
        masks: arguments that mask tokens, where neither the call nor a prompt may have one as all tokens are shown.

    Raises:
        ValueError: an argument that the call lacks, or prompts of different length for a model without a mask.
    """
    names = list(dict.fromkeys(name for each in encoded for name in each))
    masks = list(dict.fromkeys([*(name for name in names if "mask" in name), *masks]))
    new = call
    for name in names:
        if name in masks:
            continue
        rows, prompts = entry(call, name), [each[name] for each in encoded if name in each]
        if rows is None or len(prompts) < len(encoded):
            raise ValueError(f"regions: {name}: only some of the prompts have it; it can't be mixed")
        if not isinstance(rows, Tensor):
            new = with_entry(new, name, type(rows)(_mix_lists(list(rows), prompts, own, weights)))
            continue
        mask = _mask_of(name, masks, rows, encoded)
        shapes = {x.shape[1:] for x in (rows, *prompts)}
        unmasked = mask is None or (entry(call, mask) is None and not any(mask in each for each in encoded))
        if mask is None or (unmasked and len(shapes) == 1):
            _check_lengths(name, rows, prompts)
            new = with_entry(new, name, mix(rows, own, weights, torch.cat([p.to(rows.device) for p in prompts])))
        else:
            values, union = _mix_masked(rows, prompts, *_masks(mask, rows, call, encoded), own, weights)
            new = with_entry(with_entry(new, name, values), mask, union)
    return new


def mix(rows: Tensor, own: Sequence[bool], weights: Tensor, prompts: Tensor) -> Tensor:
    """Conditioning of every tile, mixed in the rows of the positive prompt; the others stay.

    Args:
        rows: [T*B, ...], the tile index slow.
        own: which of the B rows are the positive prompt's.
        weights: [T, R + 1], as `region_weights` gives.
        prompts: the regions' conditioning [R, ...], or [R, T, ...] where it differs from tile to tile.

    Returns:
        Like `rows`.
    """
    tiles = torch.unflatten(rows, 0, (len(weights), -1))
    exact = torch.promote_types(rows.dtype, torch.float32)
    table = weights.to(rows.device, exact).reshape(*weights.shape, *(1,) * (rows.ndim - 1))
    regions = sum(table[:, r] * prompts[r].to(exact) for r in range(len(prompts)))
    mixed = [
        (tiles[:, row].to(exact) * table[:, -1] + regions).to(rows.dtype) if positive else tiles[:, row]
        for row, positive in enumerate(own)
    ]
    return torch.stack(mixed, 1).flatten(0, 1)


def _mix_masked(
    rows: Tensor,
    prompts: Sequence[Tensor],
    row_mask: Tensor,
    masks: Sequence[Tensor],
    own: Sequence[bool],
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows [T*B, L, ...] and their mask [T*B, L] of mixed prompts, padded to the longest.

    Where a tile's union of masks shows a token, prompts that don't have it give zero.
    """
    longest = max([rows.shape[1], *(p.shape[1] for p in prompts)])
    rows, row_mask = _padded(rows, longest), _padded(row_mask, longest)
    table, tiles = weights.to(rows.device), len(weights)
    texts = torch.cat([_padded(p.to(rows.device), longest) for p in prompts])
    shown = torch.cat([_padded(m.to(rows.device), longest) for m in masks]) != 0  # [R, L]
    own_shown = torch.unflatten(row_mask, 0, (tiles, -1)) != 0  # [T, B, L]
    regions = ((table[:, :-1, None] > 0) & shown).any(1)  # [T, L]
    values, unions = [], []
    for row, positive in enumerate(own):
        text, mask = (torch.unflatten(x, 0, (tiles, -1))[:, row] for x in (rows, row_mask))
        if positive:
            union = regions | ((table[:, -1:] > 0) & own_shown[:, row])
            rest = (1,) * (text.ndim - 2)
            base = torch.where(torch.unflatten(own_shown[:, row] | ~union, 1, (-1, *rest)), text, 0)
            parts = [
                torch.where(torch.unflatten(shown[r] | ~union, 1, (-1, *rest)), texts[r].to(rows.dtype), 0)
                for r in range(len(texts))
            ]
            text, mask = mix(base, (True,), weights, torch.stack(parts)), union.to(row_mask.dtype)
        values.append(text)
        unions.append(mask)
    return torch.stack(values, 1).flatten(0, 1), torch.stack(unions, 1).flatten(0, 1)


def _mix_lists(rows: list[Tensor], prompts: Sequence[Tensor], own: Sequence[bool], weights: Tensor) -> list[Tensor]:
    """Rows of any length [L, ...]: each tile's are as long as the longest prompt that it mixes."""
    out, batch = list(rows), len(own)
    for index, row in enumerate(rows):
        tile, place = divmod(index, batch)
        if not own[place]:
            continue
        shares = [(float(weights[tile, -1]), row)]
        shares += [(float(w), p[0].to(row.device)) for w, p in zip(weights[tile], prompts, strict=False)]
        shares = [(share, text) for share, text in shares if share > 0]
        longest = max(text.shape[0] for _, text in shares)
        exact = torch.promote_types(row.dtype, torch.float32)
        mixed = sum(share * _padded(text[None], longest)[0].to(exact) for share, text in shares)
        assert isinstance(mixed, Tensor)
        out[index] = mixed.to(row.dtype)
    return out


def _mask_of(name: str, masks: Sequence[str], rows: Tensor, encoded: Sequence[dict[str, Tensor]]) -> str | None:
    """The mask over a conditioning's tokens: as long in every prompt, and of the same number in its name."""
    fits = [
        mask
        for mask in masks
        if all(mask not in each or each[mask].shape[1:2] == each[name].shape[1:2] for each in encoded)
    ]
    if rows.ndim < 3 or not fits:
        return None
    return next((mask for mask in fits if _number(mask) == _number(name)), fits[0])


def _masks(
    name: str, rows: Tensor, call: dict[str, Any], encoded: Sequence[dict[str, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """The mask of the call's rows and those of the regions; all tokens where one has none."""
    given = entry(call, name)
    if given is None:
        given = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    text = next(key for each in encoded for key in each if "mask" not in key and each[key].ndim > 2)
    masks = [
        each[name] if name in each else each[text].new_ones(each[text].shape[:2], dtype=given.dtype) for each in encoded
    ]
    if given.ndim != 2 or any(mask.ndim != 2 for mask in masks):
        raise ValueError(f"regions: {name}: got shape {tuple(given.shape)}; only masks [B, tokens] can be united")
    return given, masks


def _check_lengths(name: str, rows: Tensor, prompts: Sequence[Tensor]) -> None:
    wrong = [prompt for prompt in prompts if prompt.shape[1:] != rows.shape[1:]]
    if wrong:
        raise ValueError(
            f"regions: {name}: a region's prompt has shape {tuple(wrong[0].shape[1:])} and the call's own "
            f"{tuple(rows.shape[1:])}; this model has no mask to make them equally long; write prompts of as many "
            "tokens, or pass the max_sequence_length that prompt_embeds were encoded with"
        )


def _padded(x: Tensor, length: int) -> Tensor:
    """[B, L, ...] with zeros behind, up to `length`."""
    return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], 1)


def _number(name: str) -> str:
    found = re.search(r"(_\d+)?$", name)
    return found[0] if found else ""
