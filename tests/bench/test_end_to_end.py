"""Whole pictures against the Panorama pipeline: the same work, a gate, and what the study concludes."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import tiledattn as ta
from tiledattn.bench import end_to_end, end_to_end_study, runner
from tiledattn.bench.end_to_end_study import Method, Row
from tiledattn.bench.ways import Verdict
from tiledattn.metrics import Interval

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two tiles, one thread, no search for the best view batch."""
    monkeypatch.setattr(end_to_end, "GRID", (2, 1))
    monkeypatch.setattr(end_to_end, "VIEW_BATCHES", (4,))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(**options):
    case = end_to_end.EndToEnd("picture", "small", {"cpu": ("float32",)}, steps=1, ours=(0,), panorama=(8,), **options)
    return {row["way"]: row for row in runner.run(case, "float32", CPU, 0.0)["rows"]}


def test_both_have_times():
    rows = rows_of()
    assert list(rows) == ["coupled, no overlap", "Panorama pipeline, 50% overlap"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["coupled, no overlap"]["error"] > 0


def test_a_broken_law_or_a_picture_that_is_not_finite_has_no_time(monkeypatch):
    monkeypatch.setattr(end_to_end, "law_verdict", lambda *_: Verdict(1.0, 0.1))
    rows = rows_of()
    assert "failed" in rows["coupled, no overlap"]
    assert "seconds" in rows["Panorama pipeline, 50% overlap"]
    monkeypatch.setattr(end_to_end, "panorama", lambda *_: lambda noise: torch.full((1, 3, 128, 64), math.nan))
    assert "errs by inf" in rows_of()["Panorama pipeline, 50% overlap"]["failed"]


def test_of_one_tile_both_paint_the_same():
    """Scheduler, steps, guidance, prompt and decoding are the same."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    ours = end_to_end.our_painter(4, CPU, torch.float32)(noise)
    peer = end_to_end.panorama(4, CPU, torch.float32, 0)(noise)
    assert torch.allclose(ours, peer, atol=2e-3)
    assert float(ours.std()) > 0.02


@pytest.mark.parametrize("overlap", [0, 8, 14])
def test_views_are_the_layouts(overlap):
    pipe = end_to_end._panorama_class().__new__(end_to_end._panorama_class())
    pipe.vae_scale_factor, pipe.view_overlap = 4, overlap
    views = pipe.get_views(256, 256)
    assert len(views) == {0: 16, 8: 49, 14: 625}[overlap]
    assert all((bottom - top, right - left) == (16, 16) for top, bottom, left, right in views)
    assert max(bottom for _, bottom, _, _ in views) == 64
    assert end_to_end.DEFAULT_OVERLAP / end_to_end.LATENTS == (64 - 8) / 64


def test_the_fastest_view_batch_is_taken(monkeypatch):
    now, seconds = [0.0], {4: [1.0, 1.0], 8: [9.0, 0.5], 16: [2.0, 0.7]}
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: now[0])

    def paint(size):
        now[0] += seconds[size].pop(0)

    assert end_to_end.fastest_view_batch(paint, (4, 8, 16)) == 8


def interval(low, high):
    return Interval(math.sqrt(low * high), low, high, 8)


def test_equal_is_a_ratio_whose_interval_holds_one():
    """Intervals that just meet are apart."""
    assert end_to_end_study.equal(interval(0.9, 1.1), interval(0.95, 1.3))
    assert not end_to_end_study.equal(interval(0.77, 1.37), interval(0.57, 0.80))
    assert end_to_end_study.equal(interval(0.77, 1.37), interval(0.69, 1.04))


def a_row(kind, overlap, seconds, seams, tones=(0.9, 1.1)):
    return Row(Method(kind, overlap), seconds, 8, interval(*seams), interval(*tones))


def test_panorama_needs_the_smallest_overlap_with_equal_seams():
    ours = a_row("ours", 0, 1.0, (0.95, 1.05))
    peers = [a_row("panorama", 12, 9.0, (0.9, 1.1)), a_row("panorama", 8, 4.0, (1.0, 1.1))]
    peers += [a_row("panorama", 4, 2.0, (0.9, 1.1), (1.2, 1.4)), a_row("panorama", 0, 1.0, (1.8, 2.2))]
    assert end_to_end_study.needed([ours, *peers]).method.overlap == 8
    assert end_to_end_study.needed([ours, peers[-1]]) is None
    text = end_to_end_study.table([ours, *peers])
    assert "Panorama needs 50% overlap; ours takes 0.25 of its time" in text
    assert "With no overlap ours takes 1.00 of Panorama's time" in text


def test_a_planted_seam_is_measured():
    generator = np.random.default_rng(0)
    pictures = generator.random((6, 3, 256, 256)) * 0.1
    method = Method("ours", 0)
    plain = end_to_end_study.row(method, pictures, [5.0, 1.0, 2.0])
    assert plain.seconds == 1.5
    assert 1.0 in plain.seam_contrast
    pictures[:, :, 128:] += 0.5
    planted = end_to_end_study.row(method, pictures, [1.0])
    assert planted.seam_contrast.low > 1.2
    assert planted.tone_step.low > 1.2


def test_the_study_paints_in_turns_and_writes(tmp_path, capsys, monkeypatch):
    calls = []

    def painter(name):
        def make(prompt):
            def paint(noise):
                calls.append(name)
                return torch.rand(1, 3, 256, 256)

            return paint

        return make

    methods = {
        Method("ours", 0): painter("ours"),
        Method("ours", 8): painter("more"),
        Method("panorama", 8): painter("p"),
    }
    monkeypatch.setattr(end_to_end_study, "_painters", lambda options: methods)
    assert end_to_end_study.main(["--seeds", "5", "--json", str(tmp_path / "out.json")]) == 0
    assert (calls.count("ours"), calls.count("more"), calls.count("p")) == (5, end_to_end_study.TIME_SEEDS, 5)
    assert [name for name, _ in itertools.groupby(calls)][:4] == ["ours", "more", "p", "more"]
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3
    assert "seam contrast" in capsys.readouterr().out
    assert ta.TileLayout((256, 256), 64, 32) == Method("panorama", 8).layout
