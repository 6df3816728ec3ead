"""What the backend says about itself, in a process that need not be able to run it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tiledattn.backends import triton as backend
from tiledattn.backends.triton.config import arithmetic, attention_config, backward_configs, capability_family

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def fresh(code, **environment):
    """Standard output of a new interpreter."""
    environment = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_leaves_the_triton_package_alone():
    code = """
import sys, torch
before = "triton" in sys.modules
from tiledattn.backends import triton
assert ("triton" in sys.modules) == before
assert "tiledattn.backends.triton.attention_kernel" not in sys.modules
print(triton.NAME)
"""
    assert fresh(code) == "triton"


def test_probe_without_the_package():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
from tiledattn.backends import triton
print(triton.probe())
"""
    assert fresh(code) == "the triton package is not installed"


def test_probe_of_an_old_package(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text('__version__ = "3.5.1"\n')
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from tiledattn.backends import triton
print(triton.probe())
"""
    assert fresh(code, TRITON_INTERPRET="1") == "triton 3.5.1 is older than 3.6"


def test_probe_of_a_broken_package(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text('raise RuntimeError("no driver")\n')
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from tiledattn.backends import triton
print(triton.probe())
"""
    assert fresh(code, TRITON_INTERPRET="1") == "triton cannot be imported (RuntimeError: no driver)"


@pytest.mark.parametrize(("interpret", "works"), [("1", True), ("0", torch.cuda.is_available()), (None, None)])
def test_probe(interpret, works):
    found = fresh("from tiledattn.backends import triton; print(triton.probe())", TRITON_INTERPRET=interpret)
    works = torch.cuda.is_available() if works is None else works
    assert found == ("None" if works else "no CUDA, ROCm or XPU device")


def test_rejects(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.rejects("cross_tile_attention", CPU, torch.float16, 64) is None
    assert backend.rejects("extract_tiles", CPU, torch.bfloat16, 0) is None
    assert "not offered" in backend.rejects("group_norm_tiles", CPU, torch.float32, 0)
    assert "float64" in backend.rejects("blend_tiles", CPU, torch.float64, 0)
    assert "head dim 264" in backend.rejects("cross_tile_attention", CPU, torch.float32, 264)
    for op in ("cross_tile_attention", "cross_tile_attention_backward"):
        assert "bfloat16" in backend.rejects(op, CPU, torch.bfloat16, 64)
    assert "TRITON_INTERPRET" in backend.rejects("pad_tiles", CUDA, torch.float32, 0)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "tensors on cpu" in backend.rejects("pad_tiles", CPU, torch.float32, 0)
    assert "tensors on mps" in backend.rejects("pad_tiles", torch.device("mps"), torch.float32, 0)


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_rejects_old_devices(monkeypatch, capability, taken):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = backend.rejects("cross_tile_attention", CUDA, torch.bfloat16, 64)
    assert reason is None if taken else "7.5" in reason


FAMILIES = ["sm_80", "sm_86", "sm_90", "sm_100", "hip", "xpu", "interpreter"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_configurations(family):
    kinds = ("half", "ieee", "tf32") if family.startswith("sm_") else ("half", "ieee")
    for kind in kinds:
        for head_dim in range(1, 257):
            for rows in (1, 64, 65, 4096):
                for config in (
                    attention_config(family, kind, head_dim, rows),
                    *backward_configs(family, kind, head_dim),
                ):
                    assert config.block_m >= 16
                    assert config.block_n >= 16


def test_families():
    known = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_86", (9, 0): "sm_90", (10, 0): "sm_100"}
    known |= {(10, 3): "sm_100", (12, 0): "sm_86", (12, 1): "sm_86"}
    for capability, family in known.items():
        assert capability_family(*capability) == family


def test_float32_products_follow_torch(monkeypatch):
    for setting, kind in (("none", "ieee"), ("ieee", "ieee"), ("tf32", "tf32")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        assert arithmetic("sm_90", torch.float32) == kind
        assert arithmetic("hip", torch.float32) == "ieee"
        assert arithmetic("sm_90", torch.float16) == "half"
