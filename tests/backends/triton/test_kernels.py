"""Runs the case files in processes of their own.

Whether kernels are interpreted is settled when triton is first imported, by whoever imports it; a process of its own
is the only way that holds for a whole test run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
triton = pytest.importorskip("triton")
# Triton 3.6 turns arrays of one element into ints, which NumPy no longer does: its interpreter has no dynamic loops
OLD_INTERPRETER = triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
# case file: how many cases it has at least
CASES = {
    "cases_attention.py": 60,
    "cases_attention_backward.py": 55,
    "cases_tiles.py": 40,
    "cases_laws.py": 5,
    "cases_rotary.py": 10,
}


def run_cases(file, **environment):
    """Outcome of a case file in a fresh pytest: (exit status, number of tests that passed, output)."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=HERE.parents[2], capture_output=True, text=True, check=False
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    return done.returncode, int(passed[1]) if passed else 0, done.stdout + done.stderr


@pytest.mark.skipif(OLD_INTERPRETER, reason="the interpreter of Triton 3.6 needs NumPy below 2.4")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", CASES)
def test_in_the_interpreter(file):
    status, passed, output = run_cases(HERE / file, TRITON_INTERPRET="1")
    assert status == 0, output
    assert passed >= CASES[file]


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")
@pytest.mark.parametrize("file", CASES)
def test_on_the_gpu(file):
    status, passed, output = run_cases(HERE / file, TRITON_INTERPRET="0")
    assert status == 0, output
    assert passed >= CASES[file]


def test_a_failing_case_is_noticed(tmp_path):
    (tmp_path / "cases_wrong.py").write_text("def test_right():\n    pass\n\ndef test_wrong():\n    assert 1 == 2\n")
    status, passed, output = run_cases(tmp_path / "cases_wrong.py", TRITON_INTERPRET="1")
    assert status == 1
    assert passed == 1
    assert "1 == 2" in output
