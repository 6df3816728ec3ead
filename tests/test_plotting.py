"""Drawings of layouts: what is on them, and that files appear whole or not at all."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tiledattn import plotting
from tiledattn.geometry import TileLayout

matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def pixels(layout: TileLayout, halo, tile=None) -> np.ndarray:
    """The drawing without margins, one pixel a canvas position, [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.size[1] / 10, layout.size[0] / 10), dpi=10)
    axes = figure.add_axes((0, 0, 1, 1))
    plotting.draw_layout(axes, layout, halo, tile)
    axes.set_xlim(0, layout.size[1])
    axes.set_ylim(layout.size[0], 0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def is_dark(colour: np.ndarray) -> bool:
    return bool(colour.max() < 60)


def saturation(colour: np.ndarray) -> int:
    return int(colour.max() - colour.min())


def test_the_halo_lies_around_its_tile():
    drawn = pixels(TileLayout((96, 96), (32, 32)), 12, tile=4)
    assert is_dark(drawn[40, 40])
    assert saturation(drawn[48, 24]) > 100
    assert saturation(drawn[26, 26]) > 100
    assert saturation(drawn[48, 10]) < 40
    assert not np.array_equal(drawn[48, 24], drawn[48, 70])


def test_the_halo_continues_at_the_other_end_of_a_wrapped_axis():
    for wrap in (False, True):
        drawn = pixels(TileLayout((32, 128), (32, 32), wrap=(False, wrap)), (0, 12), tile=0)
        assert is_dark(drawn[6, 6])
        assert (saturation(drawn[6, 122]) > 100) == wrap


def test_a_tile_across_a_wrapped_border_shows_on_both_sides():
    layout = TileLayout((32, 96), (32, 48), (0, 16), wrap=(False, True))
    drawn = pixels(layout, 0, tile=layout.num_tiles - 1)
    assert is_dark(drawn[6, 86])
    assert is_dark(drawn[6, 6])
    assert not is_dark(drawn[6, 40])


def test_overlaps_are_shaded():
    drawn = pixels(TileLayout((32, 112), (32, 64), (0, 16)), 0)
    assert saturation(drawn[6, 56]) > saturation(drawn[6, 20]) + 10


@pytest.mark.parametrize(
    ("layout", "halo"),
    [
        (TileLayout((512, 1024), (128, 128), 16, wrap=(False, True)), 32),
        (TileLayout(240, 64, 16), 40),
        (TileLayout((16, 64, 64), (8, 32, 32), (2, 8, 0), wrap=(False, True, True)), "all"),
        (TileLayout((4096, 4096), (64, 64)), (0, 64)),
    ],
)
def test_plot_writes_a_picture(tmp_path, layout, halo):
    path = tmp_path / "new" / "layout.png"
    layout.plot(path, halo=halo)
    with Image.open(path) as picture:
        assert min(picture.size) > 200
    assert [f.name for f in path.parent.iterdir()] == ["layout.png"]


@pytest.mark.parametrize(
    ("layout", "title"),
    [
        (
            TileLayout((1024, 512), (128, 128), 16, wrap=(False, True)),
            "45 tiles (9 rows x 5 columns) of 128 x 128 on a",
        ),
        (TileLayout((2048, 64), (64, 64)), "32 tiles (32 rows x 1 column) of 64 x 64 on a canvas 2048 high x 64 wide"),
        (TileLayout((64, 2048), (64, 32), (0, 16)), "of 64 high x 32 wide on a canvas 64 high x 2048 wide"),
        (TileLayout(64, 64), "1 tile (1 column) of 64 long on a canvas 64 long"),
        (TileLayout((16, 64, 64), (8, 32, 32)), "8 tiles (2 spans of frames x 2 rows x 2 columns) of 8 frames x 32"),
    ],
)
@pytest.mark.parametrize("halo", [0, "all"])
def test_all_text_lies_inside_the_picture(layout, title, halo, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def check(self, name, **options):
        self.canvas.draw()
        width, height = self.get_size_inches() * self.dpi
        for part in (*self.texts, *self.legends):
            box = part.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height
        drawn = self.axes[0].get_window_extent()
        assert abs((drawn.x0 + drawn.x1) / width - 1) < 0.1
        assert title in " ".join(text.get_text() for text in self.texts).replace("\N{NO-BREAK SPACE}", " ")

    monkeypatch.setattr(Figure, "savefig", check)
    layout.plot(tmp_path / "layout.png", halo=halo)


def test_the_ending_chooses_the_format(tmp_path):
    TileLayout(64, 32).plot(tmp_path / "layout.svg")
    assert "<svg" in (tmp_path / "layout.svg").read_text()
    with pytest.raises(ValueError, match=r"path: got .*layout\.xyz"):
        TileLayout(64, 32).plot(tmp_path / "layout.xyz")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "layout.png"
    path.write_bytes(b"old")

    def interrupted(self, name, **options):
        with open(name, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TileLayout(64, 32).plot(path)
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["layout.png"]


@pytest.mark.parametrize("tile", [-1, 2, True, 0.5])
def test_bad_tiles_are_named(tmp_path, tile):
    with pytest.raises(ValueError, match=r"tile: got .*; the layout has tiles 0 to 1"):
        TileLayout(64, 32).plot(tmp_path / "layout.png", tile=tile)


def test_a_bad_layout_is_named(tmp_path):
    with pytest.raises(TypeError, match="layout: got int"):
        plotting.plot_layout(64, tmp_path / "layout.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'tiledattn\[cli\]'"):
        TileLayout(64, 32).plot(tmp_path / "layout.png")
    assert not list(tmp_path.iterdir())


def test_more_tiles_than_a_drawing_holds(tmp_path):
    with pytest.raises(ValueError, match="layout: 1,048,576 tiles; at most 65,536 can be drawn"):
        TileLayout((8192, 8192), 8).plot(tmp_path / "layout.png")
    assert not list(tmp_path.iterdir())
