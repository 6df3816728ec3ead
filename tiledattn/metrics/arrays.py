"""What the measures take in: arrays or tensors of real numbers, as float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import TileLayout
from ..geometry.numbers import is_whole

Floats = NDArray[np.float64]

# Added to both sides of a ratio, so that a blank picture is seamless instead of 0/0; 4e-8 of a grey level.
FLOOR = 1e-9

CHANNELS_FIRST = "channels come first: torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255"


def finite(name: str, values: Any) -> Floats:
    """`values` as float64; errors name the argument."""
    try:
        data = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: got rows of different lengths; expected an array") from error
    if data.dtype.kind not in "iuf":
        raise TypeError(f"{name}: got dtype {data.dtype}; expected real numbers")
    data = data.astype(np.float64)
    if not np.isfinite(data).all():
        raise ValueError(f"{name}: got values that are not finite")
    return data


def numbers(name: str, values: Any) -> Floats:
    """An array or tensor (on any device, of any real dtype) as float64."""
    if hasattr(values, "detach"):
        values = values.detach()
        if values.is_complex():
            raise TypeError(f"{name}: got dtype {values.dtype}; expected real numbers")
        values = values.double().cpu().numpy()
    elif not isinstance(values, np.ndarray):
        hint = f"; {CHANNELS_FIRST}" if hasattr(values, "getbands") else ""
        raise TypeError(f"{name}: got {type(values).__name__}; expected a torch tensor or a numpy array{hint}")
    return finite(name, values)


def check_filled(name: str, data: Floats) -> None:
    """Raises ValueError for an array without values."""
    if data.size == 0:
        raise ValueError(f"{name}: got shape {data.shape}, which holds no values; every length must be at least 1")


def check_layout(layout: object) -> None:
    """Raises TypeError for what is no layout."""
    if not isinstance(layout, TileLayout):
        hint = "; give an axis as axis=" if isinstance(layout, int) else ""
        raise TypeError(f"layout: got {type(layout).__name__}; expected a TileLayout{hint}")


def pictures_of(pictures: Any, layout: TileLayout) -> Floats:
    """Pictures ``[..., C, *size]`` as float64, checked against their layout."""
    check_layout(layout)
    data = numbers("pictures", pictures)
    axes = len(layout.size)
    if data.ndim < 1 + axes or data.shape[-axes:] != layout.size:
        expected = ", ".join(map(str, layout.size))
        hint = f"; {CHANNELS_FIRST}" if data.shape[-axes - 1 : -1] == layout.size else ""
        raise ValueError(f"pictures: got shape {data.shape}; expected [..., C, {expected}] for {layout}{hint}")
    check_filled("pictures", data)
    return data


def axis_of(layout: TileLayout, axis: int) -> int:
    """`axis` counted from the first; negative values count from the last."""
    axes = len(layout.size)
    if not is_whole(axis) or not -axes <= axis < axes:
        raise ValueError(f"axis: got {axis!r}; the layout has axes 0 to {axes - 1}")
    return int(axis) % axes


def axes_of(layout: TileLayout, axis: int | None) -> range:
    """The one axis asked for, or all."""
    if axis is None:
        return range(len(layout.size))
    index = axis_of(layout, axis)
    return range(index, index + 1)


def log_ratio(top: Any, bottom: Any) -> Floats:
    """log of (top + floor) / (bottom + floor)."""
    ratio: Floats = np.log(np.maximum(top, 0.0) + FLOOR) - np.log(np.maximum(bottom, 0.0) + FLOOR)
    return ratio
