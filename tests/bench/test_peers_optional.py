"""Peers from packages that may be missing: what they give where they are there, and a line where they are not."""

import functools
import importlib.util
import itertools
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from support import attention_inputs

import tiledattn as ta
from tiledattn.bench import attention_cases, attention_judge, peers_optional, tile_cases, ways

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LAYOUT = ta.TileLayout((28, 36), 12, 4)
BLENDING = {"TileMerger": peers_optional.toolbelt_blending, "MONAI": peers_optional.monai_blending}
PACKAGES = {"TileMerger": ("pytorch_toolbelt", "cv2"), "MONAI": ("monai",)}


def forget():
    peers_optional._tile_merger.cache_clear()
    peers_optional._sliding_window_inference.cache_clear()


@pytest.fixture(autouse=True)
def looked_up_anew():
    forget()
    yield
    forget()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BLENDING)
def test_blending_of_packages(name, dtype):
    for package in PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    case = tile_cases.TileCase("blending", "tiny", {}, LAYOUT, 3)
    inputs = case.inputs(CPU, dtype, 0)
    before = inputs[0].clone()
    way = next(w for w in case.ways(CPU, dtype) if w.name == name)
    call, judge = way.prepare(inputs), case.judge(inputs)
    for _ in range(2):
        assert judge(call(), way).passed
    assert torch.equal(inputs[0], before)
    assert not judge(call() * 1.1, way).passed


@pytest.mark.parametrize("name", BLENDING)
@pytest.mark.parametrize("tiles", [torch.zeros(9, 2, 1, 12, 12), torch.zeros(9, 1, 1, 12, 12)], ids=["batch", "wrap"])
def test_what_packages_do_not_blend(name, tiles):
    if importlib.util.find_spec(PACKAGES[name][0]) is None:
        pytest.skip(f"needs {PACKAGES[name][0]}")
    layout = LAYOUT if tiles.shape[1] == 2 else ta.TileLayout((24, 24), 12, 4, True)
    with pytest.raises(ways.NotOfferedError, match="without wrap"):
        BLENDING[name](tiles, layout)


def test_a_missing_package_is_a_line_that_says_what_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tiles = torch.zeros(12, 1, 1, 12, 12)
    for call, package in (
        (lambda: BLENDING["TileMerger"](tiles, LAYOUT), "pytorch_toolbelt"),
        (lambda: BLENDING["MONAI"](tiles, LAYOUT), "monai"),
        (lambda: peers_optional.natten(ta.TileLayout(8, 4), (1,), GPU), "natten"),
        (lambda: peers_optional.flash_attention("flash_attn", GPU, torch.float16), "flash_attn"),
    ):
        with pytest.raises(ways.NotOfferedError, match=f"{package} is not installed: pip install"):
            call()


def test_a_package_that_does_not_import_is_a_line(monkeypatch, tmp_path):
    (tmp_path / "natten").mkdir()
    (tmp_path / "natten/__init__.py").write_text("import no_such_module")
    (tmp_path / "pytorch_toolbelt/inference").mkdir(parents=True)
    (tmp_path / "pytorch_toolbelt/__init__.py").write_text("")
    (tmp_path / "pytorch_toolbelt/inference/tiles.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pytorch_toolbelt", raising=False)
    with pytest.raises(ways.NotOfferedError, match=r"natten can't be imported \(No module named 'no_such_module'\)"):
        peers_optional.natten(ta.TileLayout(8, 4), (1,), GPU)
    with pytest.raises(ways.NotOfferedError, match=r"pytorch_toolbelt can't be imported \(No module"):
        BLENDING["TileMerger"](torch.zeros(12, 1, 1, 12, 12), LAYOUT)
    (tmp_path / "pytorch_toolbelt/inference/tiles.py").unlink()
    with pytest.raises(ways.NotOfferedError, match=r"has no inference/tiles\.py"):
        BLENDING["TileMerger"](torch.zeros(12, 1, 1, 12, 12), LAYOUT)


def strided_windows(q, k, v, kernel_size, stride):
    """What NATTEN's documentation says of strides, position by position: groups share the window of their middle."""
    size = q.shape[1:-2]
    seen = []
    for position in itertools.product(*map(range, size)):
        bounds = []
        for p, n, k_n, s in zip(position, size, kernel_size, stride, strict=True):
            left, right = k_n // 2, k_n // 2 - 1 + k_n % 2
            middle = min(max(min(p // s * s + s // 2, n - 1), left), n - 1 - right)
            bounds.append((middle - left, middle + right))
        seen.append(
            [
                all(b <= p <= e for p, (b, e) in zip(at, bounds, strict=True))
                for at in itertools.product(*map(range, size))
            ]
        )
    q, k, v = (x.flatten(1, len(size)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, torch.tensor(seen))
    return out.transpose(1, 2).reshape(q.shape[0], *size, q.shape[1], q.shape[3])


def package(monkeypatch, name, **functions):
    for part in itertools.accumulate(name.split("."), "{}.{}".format):
        module = types.ModuleType(part)
        module.__spec__ = importlib.util.spec_from_loader(part, None)
        monkeypatch.setitem(sys.modules, part, module)
    for key, function in functions.items():
        setattr(sys.modules[name], key, function)


@pytest.mark.parametrize(
    ("layout", "halo"),
    [
        (ta.TileLayout((12, 20), (4, 5)), (2, 1)),
        (ta.TileLayout((12, 20), (4, 5), 0, True), (1, 2)),
        (ta.TileLayout((6, 3), (2, 3)), (5, 1)),
        (ta.TileLayout((2, 4, 9), (2, 2, 3)), (1, 1, 2)),
        (ta.TileLayout(12, 4), (3,)),
    ],
    ids=str,
)
def test_natten(monkeypatch, layout, halo):
    package(monkeypatch, "natten.functional", **{f"na{len(layout.size)}d": strided_windows})
    inputs = attention_inputs(layout, batch=2, heads=2, dim=8)
    attend = peers_optional.natten(layout, halo, GPU)
    out = attend(*(attention_cases.peers.merged(x, layout) for x in inputs))
    judge = attention_judge.AttentionJudge(layout, halo, inputs)
    way = ways.Way(attention_judge.NATTEN, "bound", lambda inputs: lambda: None)
    assert judge.verdict(out, way).passed
    wrong = out.clone()
    wrong[:, :2] = wrong[:, :2] * 1.01
    assert not judge.verdict(wrong, way).passed


def test_inside_the_canvas_natten_sees_what_a_tile_sees():
    layout, halo = ta.TileLayout((20, 25), (4, 5)), (2, 3)
    tile = 2 * 5 + 2  # in the middle
    judge = attention_judge.AttentionJudge(layout, halo, attention_inputs(layout))
    sequence = [(tile, n) for n in range(20)]
    assert set(judge._seen("halo", tile, sequence)) == set(judge._seen("neighbourhood", tile, sequence))
    assert set(judge._seen("halo", 0, [])) < set(judge._seen("neighbourhood", 0, []))


@pytest.mark.parametrize(
    ("layout", "device", "prefix", "message"),
    [
        (ta.TileLayout(8, 4), CPU, 0, "needs? a CUDA device"),
        (ta.TileLayout(8, 4), GPU, 2, "prefix"),
        (ta.TileLayout(8, 4, 2), GPU, 0, "side by side"),
        (ta.TileLayout(10, 4), GPU, 0, "side by side"),
    ],
)
def test_what_natten_is_not_asked_for(layout, device, prefix, message):
    with pytest.raises(ways.NotOfferedError, match=message):
        peers_optional.natten(layout, (1,), device, prefix)


def heads_last(q, k, v, extra):
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    return (out, None) if extra else out


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_interface"])
def test_flash_attention(monkeypatch, name, prefix):
    package(monkeypatch, name, flash_attn_func=functools.partial(heads_last, extra=name == "flash_attn_interface"))
    offered = peers_optional.flash_attention
    monkeypatch.setattr(peers_optional, "flash_attention", lambda n, device, *rest: offered(n, GPU, *rest))
    layout = ta.TileLayout((12, 8), 4, 0, True)
    case = attention_cases.AttentionCase("attention", "tiny", {}, layout, (1, 2), 2, 8, 2, prefix=prefix)
    inputs = case.inputs(CPU, torch.bfloat16, 0)
    judge = case.judge(inputs)
    for timed in (True, False):
        call = case._flash_call(name, CPU, torch.bfloat16, timed, inputs)
        way = ways.Way("planted", "peer", lambda inputs: lambda: None)
        assert judge(call(), way).passed
        assert not judge(call() * 1.1, way).passed


def test_what_flash_attention_is_not_asked_for():
    with pytest.raises(ways.NotOfferedError, match="needs a CUDA device"):
        peers_optional.flash_attention("flash_attn", CPU, torch.float16)
    with pytest.raises(ways.NotOfferedError, match="float16 and bfloat16, not float32"):
        peers_optional.flash_attention("flash_attn", GPU, torch.float32)
