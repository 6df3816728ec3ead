"""Import in fresh processes: quick, and with nothing optional."""

import subprocess
import sys

import pytest

OPTIONAL = ["diffusers", "transformers", "accelerate", "triton", "matplotlib", "typer", "rich", "tqdm", "PIL"]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_beyond_torch():
    code = """
import time, torch
began = time.perf_counter()
import tiledattn
print(time.perf_counter() - began)
"""
    assert min(float(run(code)) for _ in range(3)) < 0.3


def test_import_brings_nothing_optional():
    code = f"""
import sys, torch
before = set(sys.modules)
import tiledattn
print([m for m in {OPTIONAL} if m in sys.modules and m not in before])
"""
    assert run(code).strip() == "[]"


@pytest.mark.parametrize("missing", ["diffusers", "triton", "matplotlib"])
def test_works_without(missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import torch, tiledattn as ta
layout = ta.TileLayout((4, 4), 2)
canvas = torch.randn(1, 1, 4, 4)
assert torch.equal(ta.blend_tiles(ta.extract_tiles(canvas, layout), layout), canvas)
print(ta.backends())
"""
    run(code)


@pytest.mark.parametrize(
    ("missing", "statement", "extra"),
    [
        ("diffusers", "import tiledattn.diffusers", "tiledattn[diffusers]"),
        ("matplotlib", "import tiledattn; tiledattn.TileLayout(4, 2).plot('x.png')", "tiledattn[cli]"),
    ],
)
def test_a_missing_package_names_its_extra(missing, statement, extra):
    code = f"""
import sys
sys.modules[{missing!r}] = None
try:
    {statement.replace("; ", chr(10) + "    ")}
except ImportError as problem:
    print(problem)
"""
    assert extra in run(code)


def test_backends_do_not_import_one_another():
    code = """
import sys, torch
import tiledattn.backends.pytorch
assert "tiledattn.backends.reference" not in sys.modules
import tiledattn
torch.randn(2)
tiledattn.extract_tiles(torch.randn(1, 1, 4), tiledattn.TileLayout(4, 2))
assert "tiledattn.backends.reference" not in sys.modules
"""
    run(code)


def test_geometry_needs_no_torch():
    code = """
import sys, types
sys.modules["torch"] = None
package = types.ModuleType("tiledattn")
import importlib.util, pathlib
place = pathlib.Path(importlib.util.find_spec("tiledattn").origin).parent
package.__path__ = [str(place)]
sys.modules["tiledattn"] = package
from tiledattn.geometry import TileLayout, attention_plan
print(attention_plan(TileLayout((8, 8), 4), (1, 1)).num_classes)
"""
    assert run(code).strip() == "4"
