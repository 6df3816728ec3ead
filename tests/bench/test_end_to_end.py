"""Whole pictures against the Panorama pipeline: the same work, a gate, and what the study concludes."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

import tiledattn as ta
from tiledattn.bench import end_to_end, end_to_end_study, end_to_end_verdicts, runner, step_cases
from tiledattn.bench.end_to_end_verdicts import Method, Row
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
    case = end_to_end.EndToEnd("picture", "small", {"cpu": ("float32",)}, steps=1, ours=0, panorama=(8,), **options)
    return {row["way"]: row for row in runner.run(case, "float32", CPU, 0.0)["rows"]}


def test_both_have_times():
    rows = rows_of()
    assert list(rows) == ["coupled, no overlap", "Panorama pipeline, 50% overlap"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert all(0 < row["error"] <= row["allowed"] < 1e-3 for row in rows.values())
    assert [row["kind"] for row in rows.values()] == ["ours", "bound"]


def test_blended_behind_attention():
    case = end_to_end.EndToEnd(
        "picture", "small", {"cpu": ("float32",)}, steps=1, ours=8, panorama=(), blend="attention"
    )
    (row,) = runner.run(case, "float32", CPU, 0.0)["rows"]
    assert row["way"] == "coupled, 50% overlap, blended behind attention"
    assert 0 < row["error"] <= row["allowed"] < 1e-3
    noise = torch.randn(1, 4, 32, 16, generator=torch.Generator().manual_seed(3))
    behind, at_the_end = (
        end_to_end.our_painter(4, CPU, torch.float32, 8, blend=b)(noise) for b in ("attention", "prediction")
    )
    assert 1e-4 < (behind - at_the_end).abs().mean() < 0.1


def test_a_broken_law_has_no_time(monkeypatch):
    monkeypatch.setattr(end_to_end, "law_verdict", lambda *_: Verdict(1.0, 0.1))
    rows = rows_of()
    assert "failed" in rows["coupled, no overlap"]
    assert "seconds" in rows["Panorama pipeline, 50% overlap"]


@pytest.fixture
def uncoupled(monkeypatch):
    """Couplings are silently off wherever they were not asked for by name, which the law does."""
    import tiledattn.diffusers as td

    right = td.enable_tiling
    monkeypatch.setattr(td, "enable_tiling", lambda model, **options: right(model, **{**step_cases.ALONE, **options}))


def test_couplings_that_are_silently_off_have_no_time(uncoupled):
    rows = rows_of()
    assert "errs by" in rows["coupled, no overlap"]["failed"]
    assert "seconds" in rows["Panorama pipeline, 50% overlap"]


def gate_of(overlap, blend):
    def make(dtype):
        return end_to_end.our_painter(20, CPU, dtype, overlap, "a photo of a lake", blend=blend)

    noise = torch.randn(1, 4, 32, 16, generator=torch.Generator().manual_seed(3))
    return end_to_end.judged(make(torch.float32), make(torch.float32), make(torch.float64), noise)


@pytest.mark.parametrize(("overlap", "blend"), [(0, "prediction"), (8, "attention")])
def test_the_studys_gate_lets_couplings_pass(overlap, blend):
    assert gate_of(overlap, blend).passed


def test_the_studys_gate_knows_couplings_that_are_off(uncoupled):
    assert not gate_of(0, "prediction").passed


@pytest.mark.parametrize("name", ["our_painter", "panorama"])
def test_another_picture_than_that_of_the_method_has_no_time(monkeypatch, name):
    """Only the first one made, which is what is timed, is broken."""
    right, made = getattr(end_to_end, name), []

    def make(*args, **options):
        made.append(1)
        painter = right(*args, **options)
        return painter if len(made) > 1 else lambda noise: painter(noise) * 1.01

    monkeypatch.setattr(end_to_end, name, make)
    failed = [way for way, row in rows_of().items() if "seconds" not in row]
    assert len(failed) == 1
    assert failed[0].startswith("coupled" if name == "our_painter" else "Panorama")


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


SEEDS = 16


def a_row(kind, overlap, seconds, seam=1.0, tone=1.0, other_seam=1.0):
    """Contrasts that vary by seed as those of all others do, so that only pairs tell them apart."""
    rng = np.random.default_rng(5)
    common, own = rng.normal(size=SEEDS) * 0.5, np.random.default_rng(overlap + 100).normal(size=SEEDS) * 0.02
    keys = [(0, seed) for seed in range(SEEDS)]
    pairs = [
        {key: (level * math.exp(c + d), 1.0) for key, c, d in zip(keys, common, own, strict=True)}
        for level in (other_seam, seam, tone)
    ]
    times = {key: seconds * math.exp(d) for key, d in zip(keys, own, strict=True)}
    return Row(Method(kind, overlap), times, (pairs[0], pairs[1]), pairs[2])


def test_panorama_needs_the_smallest_overlap_that_is_not_above_ours():
    ours = a_row("ours", 0, 1.0)
    peers = [a_row("panorama", 12, 9.0), a_row("panorama", 8, 4.0, 0.7, 1.0)]
    peers += [a_row("panorama", 4, 2.0, 1.0, 1.2), a_row("panorama", 0, 1.2, 2.0)]
    assert end_to_end_verdicts.needed([ours, *peers], ours, {}).method.overlap == 8
    assert end_to_end_verdicts.needed([ours, peers[-1]], ours, {}) is None
    patches = {peer.method: Interval(2.0, 1.5, 2.5, 9) for peer in peers if peer.method.overlap < 12}
    assert end_to_end_verdicts.needed([ours, *peers], ours, patches).method.overlap == 12
    text = end_to_end_verdicts.table([ours, *peers], {ours.method: patches}, Interval(1.05, 1.04, 1.06, 9))
    assert (
        "reached: time of ours without overlap over Panorama's with 50% overlap, needed by edges and tones, picture by "
        "picture, 0.25" in text
    )
    assert "Panorama's with 75% overlap, needed by patches as well, pooled, 0.11" in text
    assert "note: Panorama's with 50% overlap are below ours without overlap: seam contrast, x 0.7" in text
    assert "note: Panorama's with 25% overlap" not in text
    few = end_to_end_verdicts.table([ours, peers[-1]], {})
    assert (
        "not settled: no overlap of Panorama that was painted has seams like ours without overlap, by edges and tones, "
        "picture by picture (no overlap: " in few
    )
    assert "seam contrast, x 2.0" in few
    assert "seam contrast, y" not in few.partition("(no overlap: ")[2].partition(")")[0]
    one = [
        Row(
            r.method,
            *({(0, 0): v[0, 0]} if isinstance(v, dict) else v for v in (r.seconds,)),
            tuple({(0, 0): s[0, 0]} for s in r.seams),
            {(0, 0): r.tones[0, 0]},
        )
        for r in (ours, peers[2])
    ]
    assert (
        "not settled: too few pictures to tell Panorama's seams from ours without overlap"
        in end_to_end_verdicts.table(one, {})
    )
    assert "not settled: no Panorama was painted" in end_to_end_verdicts.table([ours], {})
    assert "reached: time of ours over Panorama's, both with no overlap, 0.83" in text
    assert "reached: couplings' part of a step without overlap 0.05 (0.04 to 0.06), at most 0.1" in text


def test_more_overlap_than_was_painted_takes_longer_still():
    """Then the largest that was painted bounds the time; ours with overlap is held against Panorama as well."""
    ours, more = a_row("ours", 0, 1.0), a_row("ours", 4, 1.1, 0.8)
    more = dataclasses.replace(more, method=Method("ours", 4, "attention"))
    peers = [a_row("panorama", 0, 1.2, 2.0), a_row("panorama", 4, 2.0), a_row("panorama", 8, 4.0)]
    text = end_to_end_verdicts.table([ours, more, *peers], {})
    assert "not settled: no" not in text
    assert "Panorama's with 25% overlap, needed by edges and tones, picture by picture, 0.5" in text
    reached = (
        "reached: no overlap of Panorama that was painted has seams like ours with 25% overlap, blended behind "
        "attention, by edges and tones, picture by picture (no overlap: seam contrast, x 2.5"
    )
    assert reached in text
    assert "; 25% overlap: seam contrast, x 1.25" in text
    assert "more takes longer: time of ours over that of the largest 0.2" in text
    assert "reached: no overlap" not in end_to_end_verdicts.table([ours, more, *peers[::2]], {})  # 25% might be enough
    predictions = dataclasses.replace(more, method=Method("ours", 4))
    assert "seams like ours with 25%" not in end_to_end_verdicts.table([ours, predictions, *peers], {})


def test_a_verdict_is_given_by_either_estimator():
    """One picture with next to no edges inside its tiles, which weighs much picture by picture and little pooled."""
    ours, peer = a_row("ours", 0, 1.0), a_row("panorama", 8, 4.0)
    seams = {key: (1.02 * top, bottom) for key, (top, bottom) in peer.seams[1].items()}
    seams |= {(0, seed): (seams[0, seed][0] * 2e-4, 1e-4) for seed in range(6)}
    peer = dataclasses.replace(peer, seams=(peer.seams[0], seams))
    by_picture, pooled = (
        end_to_end_verdicts.measured(peer, ours, estimator=estimator)["seam contrast, x"]
        for estimator in (end_to_end_verdicts.PICTURES, end_to_end_verdicts.POOLED)
    )
    assert by_picture.low > 1 > pooled.low
    text = end_to_end_verdicts.table([ours, peer], {})
    assert "not settled: no overlap of Panorama that was painted has seams like ours without overlap, by edges" in text
    assert "Panorama's with 50% overlap, needed by edges and tones, pooled, 0.25" in text


def test_pooled_pairs_are_ratio_intervals_where_the_other_is_one():
    rng = np.random.default_rng(0)
    pairs = {(prompt, seed): tuple(rng.uniform(0.5, 1.5, 2)) for prompt in range(2) for seed in range(9)}
    found = end_to_end_verdicts.paired_pooled(pairs, dict.fromkeys(pairs, (1.0, 1.0)))
    expected = end_to_end_verdicts.pooled(pairs)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    same = end_to_end_verdicts.paired_pooled(pairs, pairs)
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    assert math.isnan(end_to_end_verdicts.paired_pooled({(0, 0): (1.0, 2.0)}, {(0, 0): (1.0, 1.0)}).low)


def test_overlaps_whose_views_cover_the_canvas():
    stock = end_to_end._panorama_class().__mro__[1]
    for overlap in range(end_to_end.LATENTS):
        views = stock.get_views(None, 8 * 64, 8 * 64, window_size=16, stride=16 - overlap)
        ends = [(bottom, right) for _, bottom, _, right in views]
        assert ((64, 64) in ends) == (overlap in end_to_end_verdicts.covering_overlaps())


def test_an_edge_on_one_axis_is_not_made_up_for_by_the_other():
    ours, peer = a_row("ours", 0, 1.0), a_row("panorama", 0, 1.0, 2.0, other_seam=0.5)
    assert not end_to_end_verdicts.not_above(peer, ours)
    assert end_to_end_verdicts.not_above(a_row("panorama", 0, 1.0, 0.9, other_seam=0.5), ours)


def test_patches_of_each_method_lie_on_its_seams():
    """Panorama of 50% has its edges elsewhere than ours; of both those planted on their own lines count."""
    rng = np.random.default_rng(0)
    ours, peer = Method("ours", 0), Method("panorama", 8)
    clean = {(0, seed): rng.random((3, 256, 256)) * 0.1 for seed in range(5)}
    marked = {key: picture.copy() for key, picture in clean.items()}
    for picture in marked.values():
        for line in (32, 64, 96, 128, 160, 192, 224):
            picture[:, :, line:] += 1.0
    prompts = ["a photo of a brick wall"]
    found = end_to_end_verdicts.patch_ratios({ours: clean, peer: marked}, prompts, ours)
    assert list(found) == [peer]
    assert found[peer].low > 1.02
    assert 1.0 in end_to_end_verdicts.patch_ratios({ours: clean, peer: clean}, prompts, ours)[peer]
    assert not end_to_end_verdicts.patch_ratios({ours: clean, peer: clean}, ["a photo of a lake"], ours)


def test_what_borders_of_the_picture_look_like_is_no_matter():
    rng = np.random.default_rng(0)
    clean = {(0, seed): rng.random((3, 256, 256)) * 0.1 for seed in range(5)}
    marked = {key: picture.copy() for key, picture in clean.items()}
    for picture in marked.values():
        picture[:, :, :16] *= 5
        picture[:, :, -16:] *= 5
    ours, peer = Method("ours", 0), Method("panorama", 4)
    prompts = ["a photo of a brick wall"]
    found = [end_to_end_verdicts.patch_ratios({ours: p, peer: p}, prompts, ours)[peer] for p in (clean, marked)]
    assert found[0] == found[1]


def test_pairs_tell_apart_what_pooled_intervals_do_not():
    ours, peer = a_row("ours", 0, 1.0), a_row("panorama", 4, 1.0, 1.1)
    assert end_to_end_verdicts.pooled(ours.seams[1]).high > end_to_end_verdicts.pooled(peer.seams[1]).low
    assert not end_to_end_verdicts.not_above(peer, ours)


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.2, 0.39, "reached"), (0.3, 0.5, "not settled"), (0.5, 0.6, "missed")]
)
def test_a_verdict_is_about_the_whole_interval(low, high, word):
    found = Interval(math.sqrt(low * high), low, high, 8)
    assert end_to_end_verdicts.verdict("it", found, 0.4).startswith(f"{word}: it")


def test_prompts_are_groups():
    """What differs between prompts is no spread; of one picture a prompt there is none to tell."""
    logs, groups = [0.1, -0.1, 3.1, 2.9], [0, 0, 1, 1]
    assert end_to_end_verdicts.grouped(logs, groups).high < 1.1 * math.exp(1.5) * 1.3
    assert math.isnan(end_to_end_verdicts.grouped([0.1, 3.0], [0, 1]).low)


@pytest.mark.parametrize("overlap", [4, 8, 12])
def test_panoramas_seams_are_where_views_begin_and_end(overlap):
    method = Method("panorama", overlap)
    pictures = np.random.default_rng(0).random((6, 3, 256, 256)) * 0.1
    starts = {start for start, _ in method.layout.origins}
    for line in (starts | {start + 64 for start in starts}) - {0, 256}:
        pictures[:, :, line:] += 0.3
    keyed = {(0, seed): one for seed, one in enumerate(pictures)}
    found = end_to_end_verdicts.row(method, keyed, dict.fromkeys(keyed, 1.0))
    assert end_to_end_verdicts.pooled(found.seams[0]).low > 1.2
    elsewhere = [a / b for a, b in zip(*Method("ours", overlap).gradients(pictures, 0), strict=True)]
    assert max(elsewhere) < 1.1


def test_an_overlap_that_leaves_no_line_to_compare_with_is_told_before_painting(capsys):
    assert end_to_end_study.main(["--panorama", "14", "--view-batch", "4"]) == 2
    assert "period" in capsys.readouterr().err


def test_a_planted_seam_is_measured():
    pictures = np.random.default_rng(0).random((6, 3, 256, 256)) * 0.1
    keys = [(0, seed) for seed in range(6)]

    def found():
        return end_to_end_verdicts.row(
            Method("ours", 0), dict(zip(keys, pictures, strict=True)), dict.fromkeys(keys, 1)
        )

    assert 1.0 in end_to_end_verdicts.pooled(found().seams[0])
    pictures[:, :, 128:] += 0.5
    assert end_to_end_verdicts.pooled(found().seams[0]).low > 1.2
    assert 1.0 in end_to_end_verdicts.pooled(found().seams[1])
    assert end_to_end_verdicts.pooled(found().tones).low > 1.2


@pytest.fixture
def painters(monkeypatch):
    """Painters that know the noise's mean only, and which were called; "wrong" can be set."""
    state = {"calls": [], "wrong": None}

    def painter(name):
        made = []

        def make(prompt, dtype):
            first = not made  # which is the one that is timed
            made.append(dtype)

            def paint(noise, steps=None):
                if steps is None:
                    state["calls"].append((name, float(noise.mean())))
                level = 1.5 if state["wrong"] == name and first else 1.0
                generator = torch.Generator().manual_seed(3)
                return (torch.rand(1, 3, 256, 256, generator=generator) * level).to(dtype)

            return paint

        return make

    found = {
        Method("ours", 0): painter("ours"),
        Method("ours", 8): painter("more"),
        Method("panorama", 8): painter("p"),
    }
    monkeypatch.setattr(end_to_end_study, "_painters", lambda options: found)
    monkeypatch.setattr(end_to_end_study, "couplings", lambda *_: Interval(1.2, 1.15, 1.25, 9))

    def judged(painter, plain, exact, noise):
        return step_cases.finite_budget(painter(noise, 1), plain(noise, 1), exact(noise, 1))

    monkeypatch.setattr(end_to_end_study, "judged", judged)
    return state


def test_the_study_paints_in_turns_and_writes(tmp_path, capsys, painters):
    arguments = ["--seeds", "5", "--prompt", "a", "--prompt", "b", "--json", str(tmp_path / "out.json")]
    assert end_to_end_study.main(arguments) == 0
    names = [name for name, _ in painters["calls"]]
    assert [names.count(name) for name in ("ours", "more", "p")] == [10, 2 * end_to_end_study.TIME_SEEDS, 10]
    assert [name for name, _ in itertools.groupby(names)][:4] == ["ours", "more", "p", "more"]
    assert len({mean for name, mean in painters["calls"] if name == "ours"}) == 10
    assert len(json.loads((tmp_path / "out.json").read_text())["methods"]) == 3
    assert "missed: couplings' part" in capsys.readouterr().out
    assert ta.TileLayout((256, 256), 64, 32) == Method("panorama", 8).layout


def test_a_method_that_paints_something_else_ends_the_study(capsys, painters):
    painters["wrong"] = "p"
    assert end_to_end_study.main(["--seeds", "2"]) == 1
    assert "Panorama pipeline, 50% overlap errs by" in capsys.readouterr().err
    assert not painters["calls"]
