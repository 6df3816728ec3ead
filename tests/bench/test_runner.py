"""A case is run: what is wrong has no time."""

import dataclasses
import time

import pytest
import torch
from benchmark_run import RUN

import tiledattn as ta
from tiledattn.bench import attention_cases, backward_cases, memory, peers, report, runner, tile_cases, ways

CPU = torch.device("cpu")
LAYOUT = ta.TileLayout((32, 32), 16, 0, True)


@dataclasses.dataclass(frozen=True)
class Attention(attention_cases.AttentionCase):
    """A small case with further ways, named after what is wrong with them."""

    more: tuple = ()

    def ways(self, device, dtype):
        return [*self.ours(device), *(ways.Way(name, kind, prepare) for name, kind, prepare in self.more)]


def run(*more, dtype="float32"):
    case = Attention("attention", "tiny", {"cpu": (dtype,)}, LAYOUT, (3, 3), 2, 16, 1, more)
    entry = runner.run(case, dtype, CPU, 0.0)
    return {row["way"]: row for row in entry["rows"]}, entry


def wrong_by(change, halo=3):
    def prepare(inputs):
        return lambda: change(ta.cross_tile_attention(*inputs, LAYOUT, halo, backend="torch"))

    return prepare


def one_head_wrong(out):
    out = out.clone()
    out[-1, :, :, -1] *= 1.01
    return out


def one_nan(out):
    out = out.clone()
    out[1, 0, 7, 0, 0] = float("nan")
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_have_times_and_errors(dtype):
    rows, entry = run(dtype=dtype)
    for name in ways.our_backends(CPU):
        assert rows[name]["seconds"] > 0
        assert rows[name]["error"] <= rows[name]["allowed"] < 0.05
    assert entry["amount"] == 4 * 4 * 256 * 22**2 * 2 * 16


@pytest.mark.parametrize("kind", ["ours", "peer"])
@pytest.mark.parametrize(
    "prepare",
    [wrong_by(lambda x: x * 1.001), wrong_by(one_head_wrong), wrong_by(one_nan), wrong_by(lambda x: x, halo=2)],
    ids=["scaled", "one head", "one NaN", "less halo"],
)
def test_a_planted_wrong_kernel_has_no_time(kind, prepare):
    rows, entry = run(("planted", kind, prepare))
    assert "errs by" in rows["planted"]["failed"]
    assert "seconds" not in rows["planted"]
    text = report.tables(report.validate({**RUN, "cases": [entry]}))
    assert "wrong, hence no figure" in text


def test_a_bound_is_judged_by_what_it_does():
    rows, _ = run(("bound", "bound", wrong_by(lambda x: x, halo=0)), ("not one", "bound", wrong_by(lambda x: x)))
    assert "seconds" in rows["bound"]
    assert "failed" in rows["not one"]


def raising(problem):
    def prepare(*arguments):
        raise problem

    return prepare


def test_what_is_not_offered_says_why():
    rows, _ = run(
        ("refused", "ours", raising(ta.BackendUnavailableError("no GPU"))),
        ("too large", "peer", raising(ways.NotOfferedError("too many tokens"))),
        ("peer breaks", "peer", raising(RuntimeError("No available\nkernel."))),
        ("we break", "ours", raising(RuntimeError("oops"))),
    )
    assert rows["refused"]["skipped"] == "no GPU"
    assert rows["too large"]["skipped"] == "too many tokens"
    assert rows["peer breaks"]["skipped"] == "RuntimeError: No available kernel."
    assert rows["we break"]["failed"] == "RuntimeError: oops"


@pytest.mark.parametrize("operation", ["blending", "extraction", "padding"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tile_cases(operation, dtype):
    layout = ta.TileLayout((36, 24), 12) if operation == "padding" else ta.TileLayout((28, 36), 12, 4)
    case = tile_cases.TileCase(operation, "tiny", {}, layout, 3, 1)
    entry = runner.run(case, dtype, CPU, 0.0)
    assert all("seconds" in row or "not installed" in row["skipped"] for row in entry["rows"])
    judge = case.judge(case.inputs(CPU, ways.DTYPES[dtype], 0))
    right = case.ways(CPU, ways.DTYPES[dtype])[0].prepare(case.inputs(CPU, ways.DTYPES[dtype], 0))()
    assert judge(right, None).passed
    right[..., -1, -1] += 1
    assert not judge(right, None).passed


@pytest.mark.parametrize("operation", ["blending", "extraction"])
def test_ways_that_can_write_into_kept_memory(operation, monkeypatch):
    """All of them do, each into its own; what a call makes anew counts as extra."""
    seen = []
    monkeypatch.setattr(runner, "extra_bytes", lambda call, device, result_is_new: seen.append(result_is_new) or 0)
    case = tile_cases.TileCase(operation, "tiny", {}, ta.TileLayout((28, 36), 12, 4), 3, kept=True)
    rows = {row["way"]: row for row in runner.run(case, "float32", CPU, 0.0)["rows"]}
    peer = "MultiDiffusion loop" if operation == "blending" else "slices + stack"
    assert {peer, "a copy of the same bytes"} < rows.keys()
    assert not {"MONAI", "TileMerger", "F.fold"} & rows.keys()
    assert all("seconds" in row for row in rows.values())
    assert seen
    assert not any(seen)
    inputs = case.inputs(CPU, torch.float32, 0)
    for way in case.ways(CPU, torch.float32):
        call = way.prepare(inputs)
        assert call() is call()
        assert way.kind == "limit" or case.judge(inputs)(call(), way).passed
    assert case.result(inputs[0]).isnan().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients(dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    case = backward_cases.BackwardCase("gradients", "tiny", {}, LAYOUT, (3, 3), 2, 16, 2)
    rows = {row["way"]: row for row in runner.run(case, dtype, CPU, 0.0)["rows"]}
    assert "seconds" in rows["torch"]
    assert "seconds" in rows["gather + SDPA"]
    inputs = case.inputs(CPU, ways.DTYPES[dtype], 0)
    judge, right = case.judge(inputs), case.ways(CPU, ways.DTYPES[dtype])[0].prepare(inputs)()
    assert judge(right, None).passed
    for number in range(3):
        wrong = [x.clone() for x in right]
        wrong[number][1] *= 1.1
        assert not judge(wrong, None).passed
        wrong = [x.clone() for x in right]
        wrong[number][0, 0, 0, 0, 0] = float("nan")
        assert not judge(wrong, None).passed


def test_rows_by_definition_are_those_of_the_plan():
    for halo in ((3, 0), (16, 5)):
        found = attention_cases.rows_by_definition(LAYOUT, halo, CPU)
        expected = peers.gathered_rows(LAYOUT, halo, CPU)
        assert torch.equal(found.sort(1).values, expected.sort(1).values)


def test_a_case_that_can_not_be_set_up_is_skipped_or_failed(monkeypatch, capsys):
    case = Attention("attention", "tiny", {}, LAYOUT, (3, 3), 2, 16, 1)
    for problem, reason in (
        (ways.NotOfferedError("needs diffusers"), "needs diffusers"),
        (MemoryError("90 GiB"), "no memory: 90 GiB"),
    ):
        monkeypatch.setattr(Attention, "inputs", raising(problem))
        (row,) = runner.run(case, "float32", CPU, 0.0)["rows"]
        assert row == {"way": runner.ALL_WAYS, "kind": "ours", "skipped": reason}
    monkeypatch.setattr(Attention, "inputs", raising(ZeroDivisionError("by zero")))
    (row,) = runner.run(case, "float32", CPU, 0.0)["rows"]
    assert row == {"way": runner.ALL_WAYS, "kind": "ours", "failed": "ZeroDivisionError: by zero"}
    assert "Traceback" in capsys.readouterr().err


def test_only_wanted_ways_are_run():
    case = Attention("attention", "tiny", {}, LAYOUT, (3, 3), 2, 16, 1, (("broken", "ours", raising(OSError())),))
    rows = runner.run(case, "float32", CPU, 0.0, lambda way: way.name == "torch")["rows"]
    assert [row["way"] for row in rows] == ["torch"]


def test_a_judge_that_breaks_gives_no_time(monkeypatch):
    monkeypatch.setattr(attention_cases.AttentionJudge, "verdict", lambda self, found, way: 1 / 0)
    rows, _ = run()
    assert all("ZeroDivisionError" in row["failed"] for row in rows.values())


def test_memory_and_least_bytes_are_kept(monkeypatch):
    monkeypatch.setattr(runner, "extra_bytes", lambda call, device, result_is_new: 12345 if result_is_new else 0)
    rows, entry = run(("limit", "limit", wrong_by(lambda x: x)))
    assert rows["torch"]["extra_bytes"] == 12345
    assert rows["limit"]["extra_bytes"] is None
    assert entry["least_bytes"] >= 0.0


def test_out_of_the_caches(monkeypatch):
    made = []
    monkeypatch.setattr(runner, "ColdCpuClock", lambda: made.append(1) or runner.CpuClock())
    case = Attention("attention", "tiny", {}, LAYOUT, (3, 3), 2, 16, 1)
    runner.run(case, "float32", CPU, 0.0, cold=True)
    assert made == [1]


def estimates_of(monkeypatch, *more):
    """What the runner tells the timing of the ways' calls."""
    seen = {}
    measure = runner.measure

    def noting(*arguments, estimates):
        seen.update(estimates)
        return measure(*arguments)

    monkeypatch.setattr(runner, "measure", noting)
    rows, _ = run(*more)
    return seen, rows


@pytest.mark.parametrize(("seconds", "known"), [(0.0, {}), (0.25, {"slow": 0.25})])
def test_slow_ways_are_not_tried_again(monkeypatch, seconds, known):
    def prepare(inputs):
        call = wrong_by(lambda x: x)(inputs)
        return lambda: time.sleep(seconds) or call()

    seen, _ = estimates_of(monkeypatch, ("slow", "peer", prepare))
    assert seen == pytest.approx(known, rel=0.5)


def test_collecting_garbage_does_not_make_a_call_slow(monkeypatch):
    monkeypatch.setattr(memory.gc, "collect", lambda: time.sleep(0.3))
    seen, rows = estimates_of(monkeypatch)
    assert seen == {}
    assert all(row["samples"] >= 3 for row in rows.values())


def breaking_at(number, problem):
    """A call that is right until it raises a problem at its call of that number."""

    def prepare(inputs):
        right, calls = wrong_by(lambda x: x)(inputs), iter(range(1, 1000))

        def call():
            if next(calls) >= number:
                raise problem
            return right()

        return call

    return prepare


@pytest.mark.parametrize("number", [2, 4, 7], ids=["memory", "estimate", "sample"])
def test_a_way_that_breaks_after_its_check_leaves_the_others(number):
    oops, short = RuntimeError("oops"), torch.OutOfMemoryError("CUDA out of memory")
    rows, entry = run(
        ("ours breaks", "ours", breaking_at(number, oops)),
        ("peer breaks", "peer", breaking_at(number, oops)),
        ("no memory", "ours", breaking_at(number, short)),
    )
    assert rows["ours breaks"] == {"way": "ours breaks", "kind": "ours", "failed": "RuntimeError: oops"}
    assert rows["peer breaks"] == {"way": "peer breaks", "kind": "peer", "skipped": "RuntimeError: oops"}
    assert rows["no memory"]["skipped"] == "no memory: CUDA out of memory"
    assert rows["torch"]["seconds"] > 0
    assert entry["input_sets"] == 1


def test_all_sets_are_tried_before_any_time(monkeypatch):
    class Sets(runner.CpuClock):
        sets = 2

    monkeypatch.setattr(runner, "_clock", lambda *arguments: Sets())
    made = iter(range(9))

    def prepare(inputs):
        return raising(RuntimeError("second set")) if next(made) else wrong_by(lambda x: x)(inputs)

    rows, entry = run(("breaks", "ours", prepare))
    assert rows["breaks"]["failed"] == "RuntimeError: second set"
    assert entry["input_sets"] == 2
