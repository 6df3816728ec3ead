"""A run beside an earlier one."""

import copy
import json
import random

import pytest
from benchmark_run import RUN

from tiledattn.bench import against, timing


def changed(**seconds):
    """The run with other seconds for ways of its first case."""
    run = copy.deepcopy(RUN)
    for row in run["cases"][0]["rows"]:
        if row["way"] in seconds:
            row["seconds"] = seconds[row["way"]]
    return run


def lines_of(now, then):
    return [line for line in against.table(now, then).splitlines() if line.startswith("| attention/small")]


def test_ratios_to_the_earlier_run():
    lines = lines_of(changed(cpu=0.0019), RUN)
    assert lines[0] == "| attention/small/float32 | cpu | 2 ms | 1.9 ms | 0.95 |  |"
    assert all("1.00" in line for line in lines[1:])


def noisy(spread, samples, **seconds):
    """`changed`, with these spreads and numbers of samples."""
    run = changed(**seconds)
    for row in run["cases"][0]["rows"]:
        if "seconds" in row:
            row.update(spread=spread, samples=samples)
    return run


@pytest.mark.parametrize(
    ("spread", "samples", "ratio", "told"),
    [
        (0.05, 9, 1.06, False),  # 3 standard errors of 5% * 1.2533 / 1.349 / sqrt(8) in both runs: 7%
        (0.05, 9, 1.08, True),
        (0.05, 200, 1.02, True),
        (0.8, 9, 2.0, False),
        (0.8, 60, 2.0, True),
        (0.01, 1, 5.0, False),  # one sample has no spread to tell by
    ],
)
def test_verdicts_are_by_the_uncertainty_of_medians(spread, samples, ratio, told):
    fast, slow = noisy(spread, samples), noisy(spread, samples, cpu=0.002 * ratio)
    for now, then, word, shown in ((slow, fast, "slower", ratio), (fast, slow, "faster", 1 / ratio)):
        text = against.table(now, then)
        assert (f"**{shown:.2f}** | {word} |" in text) == told
        counts = {"slower": 0, "faster": 0, word: int(told)}
        assert f"{counts['slower']} of 8 are slower and {counts['faster']} faster, beyond the joint" in text


def test_equal_times_are_seldom_told_apart():
    rng = random.Random(0)

    def row(samples):
        found = timing.summary([rng.gauss(1.0, 0.05) for _ in range(samples)])
        return {"seconds": found.median, "spread": found.spread, "samples": found.samples}

    for samples, most in ((3, 0.08), (9, 0.04), (40, 0.02)):
        found = [against._verdict(row(samples), row(samples)) for _ in range(500)]
        assert sum(map(bool, found)) < most * len(found), samples


def test_cases_whose_work_differs_are_named_and_not_compared():
    then = copy.deepcopy(RUN)
    then["cases"][0]["amount"] = 2e9
    text = against.table(RUN, then)
    line = "Not compared, since the amount of work differs: attention/small/float32: 2000000000 then, 1000000000 now."
    assert line in text.splitlines()
    assert lines_of(RUN, then) == []
    assert "| attention/lost/float32 | cpu |" in text
    then["cases"] = then["cases"][:1]
    assert line in (text := against.table(RUN, then)).splitlines()
    assert "in common" not in text


def test_a_limit_whose_work_differs_is_named_and_not_compared():
    then = copy.deepcopy(RUN)
    (limit,) = (row for row in then["cases"][0]["rows"] if row["kind"] == "limit")
    limit["amount"] = 3e10
    assert "differs: attention/small/float32, a product: 3e+10 then, 1e+10 now." in (text := against.table(RUN, then))
    assert "| a product |" not in text
    assert "| attention/small/float32 | cpu |" in text


@pytest.mark.parametrize(
    ("name", "now", "line"),
    [
        ("triton", "3.8", "triton differs: 3.7 then, 3.8 now."),
        ("cuda", "13.0", "cuda differs: none then, 13.0 now."),
        ("cudnn", 91002, "cudnn differs: 91001 then, 91002 now."),
        ("driver", "580", "driver differs: none then, 580 now."),
        ("sm90", "0", "sm90 differs: none then, 0 now."),
        ("huge_pages", "never", "huge_pages differs: madvise then, never now."),
        ("python", "3.12", "python differs: 3.11 then, 3.12 now."),
        ("case_seconds", 1.5, "case_seconds differs: 4.0 then, 1.5 now."),
        ("kernel", "6.19", "kernel differs: none then, 6.19 now."),
        ("protocol", "out of caches", "protocol differs: warm then, out of caches now."),
        (
            "packages",
            {"monai": "1.7", "natten": "0.2", "numpy": "2.4"},
            "packages differs: monai 1.6 then, 1.7 now; natten none then, 0.2 now.",
        ),
    ],
)
def test_whatever_differs_between_the_environments_is_a_line(name, now, line):
    then, run = copy.deepcopy(RUN), copy.deepcopy(RUN)
    about = {"triton": "3.7", "cudnn": 91001, "sm90": None, "huge_pages": "madvise", "case_seconds": 4.0}
    for data in (then, run):
        data["environment"] |= {**about, "packages": {"monai": "1.6", "numpy": "2.4"}}
    assert "Mind that" not in against.table(run, then)
    run["environment"][name] = now
    run["environment"] |= {"date": "2026-01-03", "commit": "def"}  # told in the first line
    (told,) = (text for text in against.table(run, then).splitlines() if text.startswith("Mind that"))
    assert told == f"Mind that {line}"


@pytest.mark.parametrize(
    ("then", "now", "of_before"),
    [
        ("2026-11-30", "2026-12-01", "the earlier run is of before"),
        ("2026-12-02", "2026-11-20", "the run of now is of before"),
        ("2026-11-20", "2026-11-30", None),
        ("2026-12-01", "2027-01-02", None),
    ],
)
def test_warm_runs_of_before_december_2026_were_warmed_otherwise(then, now, of_before):
    old, new = copy.deepcopy(RUN), copy.deepcopy(RUN)
    old["environment"]["date"], new["environment"]["date"] = then, now
    text = against.table(new, old)
    assert ('Mind that "warm" means one untimed call' in text) == (of_before is not None)
    assert of_before is None or of_before in text
    for run in (old, new):
        run["environment"]["protocol"] = "out of caches"
    assert "Mind that" not in against.table(new, old)


def test_another_dtype_or_way_is_not_compared():
    then = copy.deepcopy(RUN)
    then["cases"][0]["dtype"] = "bfloat16"
    assert lines_of(RUN, then) == []
    for case in then["cases"]:
        case["case"] = "another"
    assert "no case and way in common" in against.table(RUN, then)


def test_what_failed_then_or_now_has_no_ratio():
    then = copy.deepcopy(RUN)
    row = then["cases"][0]["rows"][0]
    del row["seconds"]
    row["failed"] = "it errs"
    assert not any("| cpu |" in line for line in lines_of(RUN, then))
    assert not any("| cpu |" in line for line in lines_of(then, RUN))
    lost = "No time any more: attention/small/float32, cpu: "
    assert f"{lost}it errs.\n" in against.table(then, RUN)
    assert "No time any more" not in against.table(RUN, then)
    del then["cases"][0]["rows"][0]
    assert f"{lost}it was not run.\n" in against.table(then, RUN)
    del then["cases"][0]
    assert lost not in against.table(then, RUN)


def test_another_device_is_refused_and_other_threads_are_named():
    then = copy.deepcopy(RUN)
    then["environment"]["threads"] = 16
    assert "Mind that threads differs: 16 then, 2 now." in against.table(RUN, then)
    text = against.table(changed(cpu=0.02), then)
    assert "| slower |" not in text
    assert "Threads differ: no verdicts." in text
    then["environment"]["device_name"] = "another"
    assert against.table(RUN, then) == "Not compared: the earlier run is of 'another', this one of 'a processor'.\n"


def test_reading(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN))
    assert against.read(path) == RUN
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match=r"run\.json': format: got 0"):
        against.read(path)
    path.write_text("no JSON")
    with pytest.raises(ValueError, match=r"run\.json': "):
        against.read(path)
    with pytest.raises(ValueError, match=r"can't read .*missing"):
        against.read(tmp_path / "missing")
