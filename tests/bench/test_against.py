"""A run beside an earlier one."""

import copy
import json

import pytest
from benchmark_run import RUN

from tiledattn.bench import against


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


@pytest.mark.parametrize(("seconds", "slower"), [(0.002 * 1.07, False), (0.002 * 1.08, True)])
def test_slower_is_what_exceeds_the_joint_spread(seconds, slower):
    text = against.table(changed(cpu=seconds), RUN)  # spreads of 5% each: jointly 7.1%
    assert ("**1.08** | slower |" in text) == slower
    assert f"{int(slower)} of " in text


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
