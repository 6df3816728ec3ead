"""What is the PyTorch backend's own: memory."""

import subprocess
import sys

import pytest

MEMORY = """
import torch, tiledattn as ta
layout = ta.TileLayout((64, 64), 32)
inputs = [torch.randn(4, 1, 1024, 2, 16, requires_grad=True) for _ in range(3)]
out, lse = ta.cross_tile_attention(*inputs, layout, "all", backend="torch", return_lse=True)
loss = out.sum() + lse.sum()
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = kilobytes("VmRSS")
torch.autograd.grad(loss, inputs)
print((kilobytes("VmHWM") - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_gradients_of_the_lse_keep_no_logits():
    """128 MB of them in float32, and as much again of weights and slopes, of which 16 MB each are made at a time."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300
