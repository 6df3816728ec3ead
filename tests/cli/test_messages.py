"""What the commands say: sizes that work, devices, the shipped model's words, intervals."""

from __future__ import annotations

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("typer", "diffusers", "transformers", "matplotlib"):
    pytest.importorskip(package)

from tiledattn.cli import pipelines
from tiledattn.cli.command import UsageError
from tiledattn.cli.methods import DIT_METHODS, PROMPTS, UNET_METHODS, Painted
from tiledattn.cli.report import Row, print_table
from tiledattn.cli.sheet import draw_sheet
from tiledattn.cli.shipped import note_vocabulary, shipped
from tiledattn.cli.sizes import check_canvas
from tiledattn.geometry import TileLayout
from tiledattn.metrics import Interval
from tiledattn.models import textures_dit, textures_unet

METHODS = UNET_METHODS + DIT_METHODS
PIPES = {8: SimpleNamespace(unet=object()), 16: SimpleNamespace(transformer=object())}


def refusal(step: int, height: int, width: int, options: SimpleNamespace) -> str:
    """What is said of a size; nothing of one that works."""
    try:
        check_canvas(PIPES[step], height, width, options)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("pixels", "granularity"), [(8, 8), (4, 4), (2, 2), (8, 1), (16, 4)])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("step", PIPES)
def test_sizes_that_are_suggested_work(step, pixels, granularity, wrap):
    tile = (granularity * 4, granularity * 6)
    options = SimpleNamespace(pixels=pixels, granularity=granularity, tile=tile, wrap=(False, wrap))
    for size in itertools.product((1, 4, 20, 33, 64, 130, 132, 516, 1000), repeat=2):
        message = refusal(step, *size, options)
        found = [(int(height), int(width)) for width, height in re.findall(r"(\d+)x(\d+)", message)]
        assert found[:1] == [size] * bool(message)
        assert len(found) != 1
        for height, width in found[1:]:
            assert not refusal(step, height, width, options)
            assert height % step == width % step == 0


def test_a_device_that_is_not_there_points_to_the_doctor(monkeypatch):
    def missing(*arguments, **options):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", missing)
    with pytest.raises(UsageError, match=r"--device: got 'cuda', .*; tiledattn doctor lists the devices"):
        pipelines.load_pipeline(None, "cuda")
    with pytest.raises(UsageError, match=r"got 'gpu'; expected auto, cpu, cuda, cuda:1 or another device of torch$"):
        pipelines.load_pipeline(None, "gpu")


def test_offloading_needs_a_gpu():
    with pytest.raises(UsageError, match=r"--offload: brings one part at a time to a GPU, and this runs on the CPU"):
        pipelines.load_pipeline(None, "cpu", offload=True)


def test_only_the_shipped_models_have_their_words(capsys):
    note_vocabulary(shipped(None), ["a photo of Bricks", "the night sky", *PROMPTS.values()])
    note_vocabulary(shipped("another/model"), ["a castle"])
    assert capsys.readouterr().err == ""
    for model in (None, textures_unet(), "textures_dit"):
        note_vocabulary(shipped(model), ["a castle"])
        note = capsys.readouterr().err
        assert note.count("\n") == 1
        assert "the shipped model knows brick, grass, gravel and stars; 'a castle' names none" in note


def test_shipped_models_have_names_that_a_folder_of_the_same_name_hides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [shipped(name).folder for name in (None, "textures_unet")] == [textures_unet()] * 2
    assert shipped("textures_dit").folder == textures_dit()
    assert shipped(textures_dit()) is shipped("textures_dit")
    assert shipped("textures") is None
    (tmp_path / "textures_dit").mkdir()
    assert shipped("textures_dit") is None


@pytest.mark.parametrize("low", [0.9, math.nan])
def test_intervals_are_shown_where_there_are_some(low, tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    def text(self, x, y, written, **style):
        texts.append(written)

    texts: list[str] = []
    monkeypatch.setattr(Figure, "text", text)
    value = Interval(1.0, low, low + 0.2, 2)
    layout = TileLayout((16, 64), (16, 16), wrap=(False, True))
    painted = [Painted(method, "a", layout, 4, np.zeros((2, 3, 16, 64)), 0.5, ()) for method in METHODS]
    rows = [
        Row(method.model, method.name, 4, 1.0, 0.5, value, value, math.nan, value, {"a": value}) for method in METHODS
    ]
    draw_sheet(painted, rows, tmp_path / "sheet.png")
    print_table(rows)
    assert texts.count("0.90–1.10") == (0 if math.isnan(low) else len(METHODS))
    assert ("interval" in capsys.readouterr().out) != math.isnan(low)
