"""FID, KID and CLIP score: what is missing is told; with stand-ins for torchmetrics they get the right pictures."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from tiledattn.bench.quality import learned


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(learned, "find_spec", lambda name: None)
    reasons = learned.missing()
    assert set(reasons) == {"FID", "KID", "CLIP score"}
    assert all("pip install" in reason for reason in reasons.values())
    monkeypatch.setattr(learned, "find_spec", lambda name: object())
    monkeypatch.setattr(learned, "clip_on_disk", lambda: False)
    monkeypatch.setattr(learned, "inception_weights", lambda: tmp_path / "weights.pth")
    reasons = learned.missing()
    assert "on disk" in reasons["FID"]
    assert "hf download" in reasons["CLIP score"]
    (tmp_path / "weights.pth").write_bytes(b"")
    monkeypatch.setattr(learned, "clip_on_disk", lambda: True)
    assert learned.missing() == {}


@pytest.fixture
def stub(monkeypatch):
    """torchmetrics, as far as it is called: keeps what it is given, and answers with counts."""
    seen = []

    class Metric:
        def __init__(self, **options):
            self.counts = {True: 0, False: 0}
            seen.append((type(self).__name__, options))

        def update(self, pictures, real=None):
            if isinstance(real, bool):
                assert pictures.dtype == torch.float32
                assert 0 <= pictures.min() <= pictures.max() <= 1
                self.counts[real] += len(pictures)
            else:
                assert all(one.dtype == torch.uint8 for one in pictures)
                assert real == ["a wall"] * len(pictures)
                self.counts[False] += len(pictures)

    class Inception(Metric):
        def compute(self):
            return torch.tensor(float(self.counts[False] + self.counts[True]))

    class Kernel(Metric):
        def compute(self):
            return torch.tensor(0.5), torch.tensor(0.1)

    class Score(Metric):
        def compute(self):
            return torch.tensor(float(self.counts[False]))

    for path, name, kind in (
        ("torchmetrics.image.fid", "FrechetInceptionDistance", Inception),
        ("torchmetrics.image.kid", "KernelInceptionDistance", Kernel),
        ("torchmetrics.multimodal.clip_score", "CLIPScore", Score),
    ):
        for depth in range(1, path.count(".") + 2):
            package = ".".join(path.split(".")[:depth])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setattr(sys.modules[path], name, kind, raising=False)
    return seen


def test_they_get_crops_of_the_strip_and_of_photographs(stub):
    pictures = np.random.default_rng(0).random((2, 3, 16, 64), dtype=np.float32)
    photograph = np.random.default_rng(1).random((3, 20, 30), dtype=np.float32)
    found = learned.learned([pictures], ["a wall"], [[photograph]], (16, 16))
    crops = 2 * 64 // 8
    assert found == {"FID": crops + learned.CROPS, "KID": 0.5, "CLIP score": crops}
    assert ("Kernel", {"subset_size": crops, "normalize": True}) in stub


def test_what_is_left_out_is_not_called(stub):
    pictures = np.zeros((1, 3, 16, 64), dtype=np.float32)
    assert learned.learned([pictures], ["a wall"], [[]], (16, 16), ("CLIP score",)) == {}
    assert learned.learned([pictures], ["a wall"], [[pictures[0]]], (16, 16), ("FID", "KID", "CLIP score")) == {}
    assert stub == []
