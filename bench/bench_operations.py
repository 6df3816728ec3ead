"""The quick cases by each of our backends, as pytest-benchmark has it: for comparing two checkouts.

python -m pytest bench/bench_operations.py --benchmark-only --benchmark-save before
python -m pytest bench/bench_operations.py --benchmark-only --benchmark-compare
"""

from __future__ import annotations

import pytest
import torch

from tiledattn.bench import registry
from tiledattn.bench.variants import yardstick
from tiledattn.bench.ways import DTYPES, our_backends

CPU = torch.device("cpu")
PAIRS = registry.chosen(CPU, quick=True)


@pytest.mark.parametrize("backend", our_backends(CPU))
@pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=[registry.label(*pair) for pair in PAIRS])
@torch.no_grad()
def test_operation(benchmark, case, dtype, backend):
    precision = DTYPES[dtype]
    inputs = case.inputs(CPU, precision, 0)
    (way,) = (way for way in case.ways(CPU, precision) if way.name == backend)
    call = way.prepare(inputs)
    assert case.judge(inputs, yardstick(dtype))(call(), way).passed
    benchmark.group = registry.label(case, dtype)
    benchmark(call)
