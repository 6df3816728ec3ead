"""Resolution binning of a pipeline (PixArt, Sana): a tiled canvas is as large as was asked for.

With `use_resolution_binning` (the default of those pipelines) a picture is painted at the trained size nearest in shape
and resized to what was asked for: a canvas of 4096 pixels would be one of 1024, enlarged.
"""

from __future__ import annotations

from typing import Any

from .axes import check_multiple
from .weak import Weak

_BIN = "classify_height_width_bin"


class AskedSize:
    """A pipeline's choice of the canvas for the size that was asked for: that size.

    Args:
        pipe: the pipeline; one that makes no choice is left alone.
        multiples: what height and width must be multiples of, in pixels.
    """

    def __init__(self, pipe: Any, multiples: tuple[int, ...]) -> None:
        self._pipe = Weak(pipe)
        self._multiples = multiples
        self._active = False
        self._replaced: Any = None
        self._original: Any = None

    def __call__(self, height: int, width: int, ratios: Any) -> tuple[int, int]:
        """(height, width).

        Raises:
            ValueError: a size that the denoiser can't paint, naming the nearest that it can.
        """
        if not self._active:
            chosen: tuple[int, int] = self._original(height, width, ratios=ratios)
            return chosen
        for name, value, multiple in zip(("height", "width"), (height, width), self._multiples[-2:], strict=True):
            check_multiple(name, value, multiple, "pixel", 1)
        return height, width

    def install(self) -> None:
        """Takes the place of the pipeline's choice, once."""
        processor = self._processor()
        present = getattr(processor, _BIN, None)
        if present is not None and not (isinstance(present, AskedSize) and present._active):
            self._active = True
            self._replaced, self._original = vars(processor).get(_BIN), getattr(processor, _BIN)
            setattr(processor, _BIN, self)

    def remove(self) -> None:
        """Puts the pipeline's choice back; where a stranger has wrapped this one since, it stays there, inert."""
        self._active = False
        processor = self._processor()
        if processor is None or vars(processor).get(_BIN) is not self:
            return
        if self._replaced is None:
            delattr(processor, _BIN)
        else:
            setattr(processor, _BIN, self._replaced)

    def _processor(self) -> Any | None:
        return getattr(self._pipe(), "image_processor", None)
