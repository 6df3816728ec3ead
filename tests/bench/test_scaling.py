"""Exponents, their intervals, and the command that measures them."""

import json
import re

import numpy as np
import pytest
import torch
from benchmark_run import RUN

from tiledattn.bench import environment, fitting, report, scaling, step_sweeps, sweeps
from tiledattn.bench.fitting import fit
from tiledattn.bench.sweeps import Load, Ready, Sweep
from tiledattn.bench.ways import NotOfferedError, Verdict

CPU = torch.device("cpu")
XS = [1.0, 2.0, 4.0, 8.0, 16.0]
RIGHT, WRONG = Verdict(0.1, 0.2), Verdict(0.3, 0.2)


@pytest.fixture(autouse=True)
def memory_is_taken_once(monkeypatch):
    monkeypatch.setattr(scaling, "MEMORY_CALLS", 1)


def power(exponent, rounds=7, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    return 3e-3 * np.asarray(XS) ** exponent * np.exp(noise * generator.standard_normal((rounds, len(XS))))


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
def test_a_power_law_is_found_exactly(exponent):
    found = fit(XS, power(exponent))
    assert found == pytest.approx((exponent,) * 3, abs=1e-12)


def test_a_single_series_is_enough():
    assert fit(XS, power(1.0)[0]) == pytest.approx((1.0,) * 3)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    found = [fit(XS, power(1.0, noise=0.1, seed=seed)) for seed in range(100)]
    held = sum(low <= 1.0 <= high for _, low, high in found)
    assert held >= 93  # the wider of two intervals of 95%
    assert np.mean([high - low for _, low, high in found]) < 0.3


def test_noise_widens_the_interval():
    quiet, loud = (fit(XS, power(1.0, noise=noise)) for noise in (0.01, 0.2))
    assert loud.high - loud.low > 5 * (quiet.high - quiet.low)


def test_what_is_no_power_law_has_a_wide_interval():
    constant_and_linear = np.asarray([[1.0 + x for x in XS]] * 5)
    found = fit(XS, constant_and_linear)
    assert found.low < found.value < found.high
    assert found.high - found.low > 0.2


def test_two_sizes_have_an_interval_of_their_noise_alone():
    xs, samples = XS[:2], power(1.0, noise=0.05)[:, :2]
    found = fit(xs, samples)
    assert found.low < found.value < found.high
    assert fit(xs, samples[:1]).low == fit(xs, samples[:1]).high  # one sample says nothing


@pytest.mark.parametrize(
    ("xs", "samples", "message"),
    [
        ([1.0, 1.0], [1.0, 2.0], "two different sizes"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"expected \[rounds, 2\]"),
        ([1.0, 2.0], [1.0, 0.0], "positive"),
        ([0.0, 2.0], [1.0, 1.0], "positive"),
    ],
)
def test_what_has_no_slope_is_refused(xs, samples, message):
    with pytest.raises(ValueError, match=message):
        fit(xs, samples)


def test_the_quantiles_are_those_of_student():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    assert pytest.approx([stats.t.ppf(0.975, df) for df in range(1, 21)], abs=1e-3) == fitting._T


def ready(verdict=RIGHT):
    x = torch.zeros(1000)
    return Ready(lambda: x + 1, x.nbytes, verdict)


def sweep(make=ready, against="canvas area", **options):
    loads = tuple(Load(x, make, x) for x in XS)
    return Sweep("adding", against, "tiles", "float32", loads, **options)


def test_an_entry_is_valid_and_fitted_from_where_the_sweep_says():
    entry, reason = scaling.measured(sweep(fit_from=4.0), 3, CPU)
    assert reason == ""
    report.validate({**RUN, "scaling": [{**entry, "command": "", "environment": RUN["environment"]}]})
    assert [point["x"] for point in entry["points"]] == XS
    assert entry["fit_from"] == 4.0
    assert entry["work_exponent"] == pytest.approx(1.0)
    if entry["points"][0]["extra_bytes"] is not None:
        assert entry["points"][0]["memory_bytes"] == entry["points"][0]["extra_bytes"] + 8000
        assert entry["memory_exponent"] is not None


def test_sizes_are_timed_in_turns(monkeypatch):
    order = []
    calls = [Ready(lambda n=n: order.append(n), 0, RIGHT) for n in range(3)]
    monkeypatch.setattr(scaling, "_seconds", lambda call, count, device: call() or 1.0)
    seconds = scaling.timed([Load(float(n), None) for n in range(3)], calls, 3, CPU)
    assert seconds.tolist() == [[1.0] * 3] * 3
    assert order[3:] == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_threads_are_set_for_their_size_only():
    seen = []
    before = torch.get_num_threads()

    def make():
        seen.append(torch.get_num_threads())
        return Ready(lambda: seen.append(torch.get_num_threads()), 0, RIGHT)

    loads = tuple(Load(float(count), make, None, count) for count in (1, 2))
    entry, _ = scaling.measured(Sweep("threads of", "threads", "threads", "float32", loads), 2, CPU)
    assert torch.get_num_threads() == before
    assert set(seen) == {1, 2}
    assert entry["memory_exponent"] is None
    assert entry["work_exponent"] is None


def test_a_wrong_result_leaves_no_figures(monkeypatch, tmp_path, capsys):
    results = iter([ready(), ready(WRONG), ready(), ready(), ready()])
    entry, reason = scaling.measured(sweep(lambda: next(results)), 2, CPU)
    assert entry is None
    assert reason == "wrong, hence no figures: 2 tiles err by 3.00e-01, more than 2.00e-01"
    monkeypatch.setattr(sweeps, "all_sweeps", lambda *given: [sweep(lambda: ready(WRONG))])
    path = tmp_path / "run.json"
    assert scaling.main(["--device", "cpu", "--json", str(path)]) == 1
    captured = capsys.readouterr()
    assert "adding/canvas area/float32: wrong, hence no figures" in captured.err
    assert "adding" not in captured.out
    assert not path.exists()


def test_ctrl_c_keeps_what_is_done(monkeypatch, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "examine", lambda device: RUN["environment"])
    monkeypatch.setattr(sweeps, "all_sweeps", lambda *given: [sweep(), sweep(stop, "tile")])
    path = tmp_path / "run.json"
    assert scaling.main(["--device", "cpu", "--rounds", "2", "--json", str(path)]) == 130
    out, err = capsys.readouterr()
    assert f"stopped; the 1 sweeps that were done are kept in {path}" in err
    assert "| adding | canvas area |" in out
    assert [entry["against"] for entry in json.loads(path.read_text())["scaling"]] == ["canvas area"]


def test_ctrl_c_without_a_file_prints_what_is_done(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "examine", lambda device: RUN["environment"])
    monkeypatch.setattr(sweeps, "all_sweeps", lambda *given: [sweep(), sweep(stop, "tile")])
    assert scaling.main(["--device", "cpu", "--rounds", "2"]) == 130
    out, err = capsys.readouterr()
    assert "stopped; the 1 sweeps that were done are below" in err
    assert "| adding | canvas area |" in out
    assert "exponents of at most 1.05 against canvas area, adding, float32: time" in out


def test_a_file_that_cannot_be_written_is_found_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    made = []
    monkeypatch.setattr(environment, "examine", lambda device: RUN["environment"])
    monkeypatch.setattr(sweeps, "all_sweeps", lambda *given: [sweep(lambda: made.append(1) or ready())])
    assert scaling.main(["--device", "cpu", "--json", str(tmp_path)]) == 2
    assert made == []
    assert re.search("--json: can't write '.*': .*a folder is in its place", capsys.readouterr().err)


def test_help_has_examples_and_an_unknown_option_is_bad_usage(capsys):
    assert scaling.main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    assert scaling.main(["--nothing"]) == 2


def test_copies_are_fitted_where_they_leave_the_caches(monkeypatch):
    def fit_from(cache):
        monkeypatch.setattr(sweeps, "last_level_cache", lambda: cache)
        return sweeps.tiles_area("blending", CPU, "float32", (1, 2, 3, 4, 6)).fit_from

    assert fit_from(1 << 18) == 1.0
    assert fit_from(1 << 20) == 4.0  # of 7.4 MB, beyond 4 times the cache
    assert fit_from(1 << 40) == 9.0  # the last three, where none is so large


def test_what_is_not_offered_is_a_line(capsys, monkeypatch):
    def make():
        raise NotOfferedError("No module named 'diffusers': pip install 'tiledattn[diffusers]'")

    monkeypatch.setattr(sweeps, "all_sweeps", lambda *given: [sweep(make)])
    assert scaling.main(["--device", "cpu"]) == 0
    assert "left out: No module named 'diffusers': pip install" in capsys.readouterr().err


def test_the_command_fills_a_run_and_replaces_what_it_measured_before(tmp_path, monkeypatch):
    about = {**RUN["environment"], "device_name": "this machine"}
    monkeypatch.setattr(environment, "examine", lambda device: about)
    monkeypatch.setattr(sweeps, "all_sweeps", lambda *given: [sweep()])
    path = tmp_path / "run.json"
    command = ["--device", "cpu", "--rounds", "2", "--json", str(path)]
    assert scaling.main(command) == 0
    first = report.validate(json.loads(path.read_text()))
    assert first["cases"] == []
    assert first["command"] == f"tiledattn bench scaling {' '.join(command)}"
    assert first["environment"] == about
    assert report.tables(first).count("tiledattn bench scaling") == 1
    assert first["scaling"][0]["environment"] == about
    path.write_text(json.dumps({**RUN, "environment": {**about, "commit": "older"}}))
    assert scaling.main(command) == 0
    assert scaling.main(command) == 0
    merged = report.validate(json.loads(path.read_text()))
    assert merged["cases"] == RUN["cases"]
    assert [entry["operation"] for entry in merged["scaling"]] == ["attention", "adding"]
    text = report.tables(merged)
    assert f"{RUN['command']}\n{RUN['scaling'][0]['command']}\n{first['command']}\n" in text
    assert "measured otherwise than the cases: adding/canvas area/float32: commit abc instead of older." in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--rounds", "1"], "--rounds 1: a spread needs at least 2"),
        (["--sweep", "nothing"], "--sweep nothing: no sweep has such a name"),
        (["--json", "RUN"], "that run is of a processor, this machine is"),
        (["--json", "BAD"], "BAD: format: got 1; expected 2"),
    ],
)
def test_bad_usage_is_a_line(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").write_text(json.dumps(RUN))
    (tmp_path / "BAD").write_text('{"format": 1}')
    assert scaling.main(["--device", "cpu", *command]) == 2
    assert message in capsys.readouterr().err


def test_the_list_names_every_sweep(capsys):
    assert scaling.main(["--device", "cpu", "--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert "attention/canvas area/float32" in names
    assert "denoiser step, UNet/canvas area/float32" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "made",
    [
        lambda: sweeps.attention_area(CPU, "float32", (2, 3), wrap=True),
        lambda: sweeps.attention_area(CPU, "bfloat16", (3, 4), wrap=False),
        lambda: sweeps.tiles_area("blending", CPU, "float32", (6, 7)),
        lambda: sweeps.tiles_area("extraction", CPU, "float32", (6, 7)),
        lambda: sweeps.attention_halo(CPU, "float32", (0, 2)),
        lambda: sweeps.attention_tile(CPU, "float32", (8, 12)),
    ],
)
def test_the_operations_pass_their_check(made):
    found = made()
    entry, reason = scaling.measured(found, 2, CPU)
    assert reason == ""
    assert len(entry["points"]) == 2
    low, high = {"attention, with borders": (1.0, 1.2), "blending": (0.95, 1.0), "extraction": (0.95, 1.0)}.get(
        found.operation, (1 - 1e-9, 1 + 1e-9)
    )  # elsewhere work is in proportion to x exactly
    assert low < entry["work_exponent"] < high


def test_a_wrong_kernel_is_noticed(monkeypatch):
    import tiledattn as ta

    right = ta.blend_tiles
    monkeypatch.setattr(ta, "blend_tiles", lambda *inputs, **options: right(*inputs, **options) * 1.001)
    entry, reason = scaling.measured(sweeps.tiles_area("blending", CPU, "float32", (6, 7)), 2, CPU)
    assert entry is None
    assert reason.startswith("wrong, hence no figures: 36 tiles err by 1.")


@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_denoiser_steps_pass_their_check(name):
    pytest.importorskip("diffusers")
    entry, reason = scaling.measured(step_sweeps.step_area(name, CPU, (2, 3)), 2, CPU)
    assert reason == ""
    assert [point["x"] for point in entry["points"]] == [4.0, 9.0]


def test_steps_without_diffusers_say_what_to_install(monkeypatch):
    step_sweeps._model.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    entry, reason = scaling.measured(step_sweeps.step_area("UNet", CPU, (2, 3)), 2, CPU)
    assert entry is None
    assert "pip install 'tiledattn[diffusers]'" in reason
