"""The photographs: every prompt of the shipped models has its own, at the size that the models saw."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tiledattn.bench.quality import photographs


def test_prompts_find_their_material():
    assert photographs.material_of("a photo of a brick wall").name == "brick"
    assert photographs.material_of(" Stars in deep space").name == "hubble_deep_field"
    assert photographs.material_of("a castle") is None


def test_they_are_colour_pictures_at_training_scale():
    pytest.importorskip("skimage")
    for material in photographs.MATERIALS:
        picture = photographs.at_training_scale(material)
        assert picture.shape[0] == 3
        assert min(picture.shape[1:]) > 128
        assert picture.dtype == np.float32
        assert 0 <= picture.min() < picture.max() <= 1


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match="bench"):
        photographs.load(photographs.MATERIALS[0])
