import logging
import subprocess
import sys
import types

import pytest
import torch

import tiledattn as ta
from tiledattn import dispatch, selfcheck
from tiledattn.backends import pytorch

CPU, LAYOUT = torch.device("cpu"), ta.TileLayout((4, 4), 2)


@pytest.fixture
def canvas():
    return torch.randn(1, 1, 4, 4)


@pytest.fixture
def broken(monkeypatch):
    """A backend called "broken" in front of the others that says it can do everything and computes nonsense."""
    module = types.ModuleType("broken")
    module.NAME, module.probe, module.rejects = "broken", lambda: None, lambda *_: None
    module.extract_tiles = lambda canvas, layout: pytorch.extract_tiles(canvas, layout=layout) * 1.01
    module.pad_tiles = pytorch.pad_tiles
    module.cross_tile_attention = lambda *a, **k: 1 / 0
    find = dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: module if name == "broken" else find(name))
    monkeypatch.setattr(dispatch, "_MODULES", {"broken": "", **dispatch._MODULES})
    monkeypatch.setattr(dispatch, "_AUTOMATIC", ("broken", *dispatch._AUTOMATIC))
    dispatch._log_once.cache_clear()
    selfcheck._checked.cache_clear()
    yield module
    selfcheck._checked.cache_clear()


def test_backends_answer_none_or_a_reason():
    found = ta.backends()
    assert list(found) == ["triton", "cuda", "cpu", "torch", "reference"]
    assert found["torch"] is None
    assert found["reference"] is None
    for name in ("triton", "cuda", "cpu"):
        assert found[name] is None or len(found[name].split()) > 2


def without(name, op, head_dim=0):
    """What "auto" takes on a CPU when `name` is not considered."""
    reasons = dispatch.explain(op, CPU, torch.float32, head_dim)
    return next(other for other, reason in reasons.items() if reason is None and other != name)


@pytest.mark.parametrize("op", dispatch.OPERATIONS)
def test_auto_on_a_cpu_is_the_native_library_if_it_can(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    native = dispatch._module("cpu")
    takes = native.probe() is None and native.rejects(op, CPU, torch.float32, 64) is None
    assert dispatch.select(op, "auto", CPU, torch.float32, 64) is (native if takes else pytorch)


def test_an_explicit_backend_never_falls_back(canvas, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ta.BackendUnavailableError, match=r"backend 'triton' can't run extract_tiles on cpu.*: .+"):
        ta.extract_tiles(canvas, LAYOUT, backend="triton")


def test_a_context_or_the_environment_chooses(canvas, monkeypatch):
    calls = []
    reference = dispatch._module("reference")
    extract = reference.extract_tiles
    monkeypatch.setattr(reference, "extract_tiles", lambda *a, **k: calls.append(1) or extract(*a, **k))
    with ta.use_backend("reference"):
        ta.extract_tiles(canvas, LAYOUT)
        ta.extract_tiles(canvas, LAYOUT, backend="torch")
        with ta.use_backend("auto"):
            ta.extract_tiles(canvas, LAYOUT)
    ta.extract_tiles(canvas, LAYOUT)
    assert len(calls) == 1
    monkeypatch.setenv("TILEDATTN_BACKEND", "reference")
    ta.extract_tiles(canvas, LAYOUT)
    assert len(calls) == 2
    monkeypatch.setenv("TILEDATTN_BACKEND", "cuda9")
    with pytest.raises(ValueError, match="TILEDATTN_BACKEND: got 'cuda9'"):
        ta.extract_tiles(canvas, LAYOUT)
    monkeypatch.setenv("TILEDATTN_BACKEND", "")
    ta.extract_tiles(canvas, LAYOUT)
    assert len(calls) == 2


def test_a_context_leaves_operations_that_a_backend_lacks(monkeypatch):
    with ta.use_backend("triton"):
        found = dispatch.select("group_norm_tiles", "auto", CPU, torch.float32)
    assert found is dispatch.select("group_norm_tiles", "auto", CPU, torch.float32)


def test_unknown_names_are_refused():
    with (
        pytest.raises(ValueError, match="backend: got 'cuda9'; known are auto, triton, cuda, cpu, torch, reference"),
        ta.use_backend("cuda9"),
    ):
        pass


def test_a_wrong_kernel_is_passed_over_and_logged_once(broken, canvas, caplog):
    with caplog.at_level(logging.INFO, logger="tiledattn"):
        for _ in range(3):
            assert torch.equal(ta.extract_tiles(canvas, LAYOUT), pytorch.extract_tiles(canvas, layout=LAYOUT))
    told = [r.message for r in caplog.records if "passed over" in r.message and "'broken'" in r.message]
    assert len(told) == 1
    assert "erred by 1.00e-02" in told[0]
    assert "erred" in dispatch.explain("extract_tiles", CPU, torch.float32)["broken"]


def test_a_kernel_that_raises_is_passed_over(broken):
    taken = dispatch.select("cross_tile_attention", "auto", CPU, torch.float32, 16)
    assert without("broken", "cross_tile_attention", 16) == taken.NAME
    assert "ZeroDivisionError" in dispatch.explain("cross_tile_attention", CPU, torch.float32, 16)["broken"]


def test_a_right_kernel_is_taken(broken):
    assert dispatch.select("pad_tiles", "auto", CPU, torch.float32).NAME == "broken"
    assert dispatch.explain("pad_tiles", CPU, torch.float32)["broken"] is None


def rounded(op, dtype):
    """An operation of the PyTorch backend, its results rounded to a shorter mantissa."""

    def run(*tensors, **options):
        return [x.to(dtype).to(x.dtype) for x in getattr(pytorch, op)(*tensors, **options)]

    return run


@pytest.mark.parametrize("op", ["cross_tile_attention", "cross_tile_attention_backward"])
def test_tfloat32_is_measured_by_float16_where_it_is_allowed(broken, monkeypatch, op):
    broken.cross_tile_attention = pytorch.cross_tile_attention

    def check(dtype):
        setattr(broken, op, rounded(op, dtype))
        selfcheck._checked.cache_clear()
        return selfcheck.failed_self_check(broken, pytorch, op, CPU, torch.float32, 64)

    assert "erred by" in check(torch.float16)
    monkeypatch.setattr(selfcheck, "_as_tfloat32", lambda op, device, dtype: True)
    assert check(torch.float16) is None
    assert "erred by" in check(torch.bfloat16)


@pytest.mark.parametrize(
    ("op", "device", "dtype", "setting", "expected"),
    [
        ("cross_tile_attention", "cuda", torch.float32, "tf32", True),
        ("cross_tile_attention_backward", "cuda", torch.float32, "tf32", True),
        ("cross_tile_attention", "cuda", torch.float32, "ieee", False),
        ("cross_tile_attention", "cuda", torch.float32, "none", False),
        ("cross_tile_attention", "cuda", torch.bfloat16, "tf32", False),
        ("cross_tile_attention", "cpu", torch.float32, "tf32", False),
        ("blend_tiles", "cuda", torch.float32, "tf32", False),
    ],
)
def test_what_may_be_multiplied_as_tfloat32(monkeypatch, op, device, dtype, setting, expected):
    monkeypatch.setattr(torch.backends.cuda, "matmul", types.SimpleNamespace(fp32_precision=setting))
    assert selfcheck._as_tfloat32(op, torch.device(device), dtype) is expected


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("full"), RuntimeError("pad_tiles_cuda: out of memory")])
def test_a_check_without_memory_is_made_again(broken, problem):
    def full(*args, **kwargs):
        raise problem

    broken.pad_tiles = full
    assert "ran out of memory" in dispatch.explain("pad_tiles", CPU, torch.float32)["broken"]
    broken.pad_tiles = pytorch.pad_tiles
    assert dispatch.explain("pad_tiles", CPU, torch.float32)["broken"] is None


def test_an_operation_that_a_backend_lacks_is_passed_over(broken):
    assert without("broken", "blend_tiles") == dispatch.select("blend_tiles", "auto", CPU, torch.float32).NAME
    with pytest.raises(ta.BackendUnavailableError, match="it has no blend_tiles"):
        dispatch.select("blend_tiles", "broken", CPU, torch.float32)


def test_nothing_is_checked_while_a_graph_is_captured(broken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda")
    reason = selfcheck.failed_self_check(broken, pytorch, "pad_tiles", device, torch.float32, 0)
    assert "before capturing" in reason


def test_a_refusal_says_where_the_name_came_from(monkeypatch):
    canvas, layout = torch.zeros(1, 1, 4, 4), ta.TileLayout((4, 4), 2)
    if ta.backends()["cuda"] is None:
        pytest.skip("the cuda backend can run here")
    with pytest.raises(ta.BackendUnavailableError, match="use backend='auto'"):
        ta.extract_tiles(canvas, layout, backend="cuda")
    with ta.use_backend("cuda"), pytest.raises(ta.BackendUnavailableError, match=r"named by use_backend\('cuda'\)"):
        ta.extract_tiles(canvas, layout)
    monkeypatch.setenv("TILEDATTN_BACKEND", "cuda")
    with pytest.raises(ta.BackendUnavailableError, match="named by the environment variable TILEDATTN_BACKEND"):
        ta.extract_tiles(canvas, layout)


def test_a_first_backward_in_a_batch_of_them_is_checked_like_any():
    code = """
import torch, tiledattn as ta
from tiledattn import dispatch
q = torch.randn(4, 1, 9, 2, 8, requires_grad=True)
out = ta.cross_tile_attention(q, q, q, ta.TileLayout((6, 6), 3), 2)
torch.autograd.grad(out, q, torch.ones(2, *out.shape), is_grads_batched=True)
reasons = dispatch.explain("cross_tile_attention_backward", torch.device("cpu"), torch.float32, 8)
print(reasons["cpu"] or "taken")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "self-check" not in done.stdout
