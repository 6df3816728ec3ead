"""When a verdict lets a result pass."""

import math

import pytest
import torch

from tiledattn.bench.ways import Verdict, budget


@pytest.mark.parametrize(("error", "allowed"), [(math.inf, math.inf), (math.nan, 1.0), (2.0, 1.0), (1.0, math.nan)])
def test_what_does_not_pass(error, allowed):
    assert not Verdict(error, allowed).passed


def test_what_passes():
    assert Verdict(0.0, 0.0).passed
    assert Verdict(1.0, 2.0).passed


def test_what_is_not_a_number_in_every_precision_is_not_right():
    broken = torch.full((4,), math.nan)
    assert not budget(broken, broken, broken.double()).passed
