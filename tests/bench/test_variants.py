"""Kernels that are asked for beside a backend's name: they are used, or it is said why not; settings come back."""

import contextlib
import os

import pytest
import torch
from gpu.where import emulated_hopper

import tiledattn as ta
from bench.gpu import sanitize
from tiledattn.backends import cuda_attention
from tiledattn.bench import attention_cases, runner, variants, ways

CPU = torch.device("cpu")
BOXES = ta.TileLayout(24, 8, 0, True)


def settings():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        os.environ.get(cuda_attention.SM90_VARIABLE),
    )


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_tfloat32_is_allowed_inside_only(before):
    setting, found = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        torch.set_float32_matmul_precision("high" if before == "tf32" else "highest")
        setting.fp32_precision = before
        untouched = settings()
        with contextlib.suppress(ZeroDivisionError), variants.products("tf32"):
            assert setting.fp32_precision == "tf32"
            assert torch.get_float32_matmul_precision() == "high"
            raise ZeroDivisionError
        assert settings() == untouched
        with variants.products("float32"):
            assert settings() == untouched
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = setting.fp32_precision = found


def test_inputs_that_tfloat32_holds():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    (rounded,) = variants.held((x,), "tf32")
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded.half().float(), rounded)
    assert not torch.equal(rounded, x)
    assert variants.held((x,), "float32")[0] is x


def test_a_case_in_tfloat32_is_judged_by_float16(monkeypatch):
    case = attention_cases.AttentionCase("attention", "tiny", {}, ta.TileLayout((16, 16), 8, 0, True), (3, 3), 2, 16, 1)
    seen = []
    judge = attention_cases.AttentionJudge.verdict

    def verdict(self, found, way):
        seen.append((torch.backends.cuda.matmul.fp32_precision, judge(self, found, way)))
        return seen[-1][1]

    monkeypatch.setattr(attention_cases.AttentionJudge, "verdict", verdict)
    entry = runner.run(case, "tf32", CPU, 0.0)
    assert entry["dtype"] == "tf32"
    assert {precision for precision, _ in seen} == {"tf32"}
    assert all(1e-5 < of.allowed < 4e-3 for _, of in seen)  # float16 errs by about 1e-4, its worst row by 1e-3
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    inputs = variants.held(case.inputs(CPU, torch.float32, 0), "tf32")
    right = case.ours(CPU)[0].prepare(inputs)()
    way = ways.Way("planted", "ours", lambda inputs: None)
    assert case.judge(inputs, torch.float16)(right, way).passed
    assert not case.judge(inputs, torch.float16)(right * 1.002, way).passed


@pytest.fixture
def hopper():
    with emulated_hopper():
        yield


def attend(layout=BOXES, halo=8, backend="cuda", dtype=torch.float16):
    x = torch.randn(layout.num_tiles, 1, layout.tile_positions, 1, 16).to(dtype)
    return ta.cross_tile_attention(x, x, x, layout, halo, backend=backend)


def test_another_kernel_than_that_of_sm90_is_noticed(hopper):
    before = settings()
    with variants.sm90_only():
        attend()
    for wrong in ({"halo": 3}, {"dtype": torch.float32}):
        with pytest.raises(ways.NotOfferedError, match="does not take"), variants.sm90_only():
            attend(**wrong)
    with pytest.raises(ways.NotOfferedError, match="not launched"), variants.sm90_only():
        attend(backend="torch")
    assert settings() == before


@pytest.mark.parametrize("found", [None, "0", "1"])
def test_the_variable_comes_back(monkeypatch, found):
    monkeypatch.delenv(cuda_attention.SM90_VARIABLE, raising=False)
    if found is not None:
        monkeypatch.setenv(cuda_attention.SM90_VARIABLE, found)
    with variants.sm90_allowed():
        assert os.environ[cuda_attention.SM90_VARIABLE] == "1"
    assert os.environ.get(cuda_attention.SM90_VARIABLE) == found


@pytest.mark.parametrize(("halo", "outcome"), [((8,), "seconds"), ((3,), "skipped")])
def test_the_kernel_of_sm90_as_a_way(hopper, monkeypatch, halo, outcome):
    case = attention_cases.AttentionCase("attention", "tiny", {}, BOXES, halo, 1, 16, 1)
    monkeypatch.setattr(attention_cases, "our_backends", lambda device: ["torch", "cuda"])
    monkeypatch.setattr(attention_cases.AttentionCase, "ways", lambda self, device, dtype: self.ours(device))
    monkeypatch.setattr(runner, "measure", lambda clock, calls, seconds, estimates: runner_times(calls))
    rows = {row["way"]: row for row in runner.run(case, "float16", CPU, 0.0)["rows"]}
    assert list(rows) == ["torch", "cuda", variants.SM90]
    assert outcome in rows[variants.SM90], rows


def runner_times(calls):
    """One call of each."""
    from tiledattn.bench.timing import summary

    for of_sets in calls.values():
        of_sets[0]()
    return {name: summary([1.0]) for name in calls}


@pytest.mark.parametrize("number", range(2))
def test_the_sanitizers_reach_the_kernel_of_sm90(hopper, number):
    name, call = list(sanitize.calls_for_sm90())[number]
    assert sanitize.check(name, call, CPU, variants.SM90, "bfloat16") is None


def test_why_the_kernel_of_sm90_can_not_run(monkeypatch):
    assert "needs a CUDA device, not cpu" in variants.missing_for_sm90(CPU)
    gpu, state = torch.device("cuda", 0), {"capability": (8, 6), "built": ["sm_80"], "reason": "no nvcc"}
    monkeypatch.setattr(ta, "backends", lambda: {"cuda": state["reason"]})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: state["capability"])
    monkeypatch.setattr(variants.native_library, "build_report", lambda: {"cuda_architectures": state["built"]})
    assert variants.missing_for_sm90(gpu) == "no nvcc"
    state["reason"] = None
    assert "needs compute capability 9.0, not 8.6" in variants.missing_for_sm90(gpu)
    state["capability"] = (9, 0)
    assert "without sm_90a" in variants.missing_for_sm90(gpu)
    state["built"] = ["sm_80", "sm_90a", "compute_80"]
    assert variants.missing_for_sm90(gpu) is None
