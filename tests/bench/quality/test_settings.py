"""What is compared: keys, lengths, the standard lists and sweeps."""

from __future__ import annotations

import pytest

from tiledattn.bench.quality.settings import Setting, chosen, pixels, quick, reach, standard, sweep


@pytest.mark.parametrize("convolutional", [True, False])
def test_the_standard_list_holds_every_kind_once(convolutional):
    found = standard(64, convolutional)
    assert len({one.key for one in found}) == len({one.name for one in found}) == len(found)
    kinds = {one.kind for one in found}
    assert {"untiled", "alone", "blended", "attention", "ours"} <= kinds
    assert ("single" in kinds) == convolutional
    for window in ("hann", "uniform"):
        assert [one.overlap for one in found if one.kind == "blended" and one.window == window] == [8, 16, 32, 48]
    assert len(quick(64, convolutional)) == 4


def test_each_coupling_alone_is_alone():
    alone = [one for one in standard(64, True) if one.kind == "single"]
    assert sorted((one.halo, one.rings, one.norm) for one in alone) == [
        (0, False, "canvas"),
        (0, True, "tile"),
        (8, False, "tile"),
    ]
    attention = next(one for one in standard(64, True) if one.kind == "attention")
    assert (attention.halo, attention.rings, attention.norm, attention.overlap) == ("all", False, "tile", 0)


def test_lengths():
    assert pixels("12.5%", 64) == 8
    assert pixels(" 16 ", 64) == 16
    assert reach("ALL", 64) == "all"
    assert reach("50%", 1024) == 512
    for text in ("", "-8", "8px", "all", "33%"):
        with pytest.raises(ValueError, match="got"):
            pixels(text, 64)


def test_a_sweep_is_every_combination():
    found = sweep(64, True, ["8", "25%"], ["8", "all"], ["hann", "uniform"], ["constant", "quadratic"])
    keys = [one.key for one in found]
    assert len(set(keys)) == len(keys)
    assert sum(one.kind == "blended" for one in found) == 4
    assert sum(one.kind == "ours" for one in found) == 2 * (1 + 4) * 2
    assert {"rings", "norm", "halo-8", "attention-all", "attention-all-quadratic"} <= set(keys)
    assert "ours-all-overlap-16-uniform-quadratic" in keys
    assert not [one for one in sweep(64, False, None, None, None, ["constant"]) if one.kind == "single"]


def test_a_glob_keeps_tiles_alone():
    found = [one.key for one in chosen(standard(64, True), "ours-8*, rings")]
    behind = [f"ours-8-overlap-{overlap}-hann-behind-attention" for overlap in (8, 16, 32)]
    assert found == ["alone", "rings", "ours-8", "ours-8-overlap-8-hann", *behind, "ours-8-quadratic"]
    with pytest.raises(ValueError, match="known are untiled"):
        chosen(standard(64, True), "theirs")


def test_options_of_a_strip():
    assert Setting("untiled").options((64, 64), (64, 384)) == {"tile": (64, 384)}
    options = Setting("ours", 8, 16, True, "canvas").options((64, 64), (64, 384))
    assert options["overlap"] == (0, 8)
    assert options["halo"] == (0, 16)
    assert Setting("attention", halo="all").options((64, 64), (64, 384))["halo"] == "all"
