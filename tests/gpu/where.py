"""The device of these tests: a CUDA or ROCm device, or what TILEDATTN_TEST_DEVICE names (the CPU, for a rehearsal)."""

import os

import pytest
import torch

import tiledattn as ta
from bench.ways import our_backends

DEVICE = torch.device(os.environ.get("TILEDATTN_TEST_DEVICE", "cuda"))
MISSING = "no CUDA or ROCm device" if DEVICE.type == "cuda" and not torch.cuda.is_available() else None
BACKENDS = ["triton", "cuda", "torch"] if DEVICE.type == "cuda" else ["cpu", "torch"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MARKS = [pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend that is meant for the device; skips with the reason where one can't run."""
    known = ta.backends()
    if request.param not in known:
        pytest.skip(f"there is no backend {request.param!r} in this version")
    if known[request.param] is not None:
        pytest.skip(f"{request.param}: {known[request.param]}")
    assert request.param in our_backends(DEVICE)
    return request.param


def offered(call, *args, **kwargs):
    """The call's result; skips with the reason where the backend refuses it."""
    try:
        return call(*args, **kwargs)
    except ta.BackendUnavailableError as reason:
        pytest.skip(str(reason))


def to_device(x):
    """The same values and strides on the device, NaN in the gaps."""
    if x is None or x.device.type == DEVICE.type:
        return x
    if not x.is_floating_point():
        return x.to(DEVICE)
    length = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    gaps = torch.full((length,), float("nan"), dtype=x.dtype, device=DEVICE)
    return gaps.as_strided(x.shape, x.stride()).copy_(x)


def skip_unless_free(gib):
    """Skips where a GPU has less free memory than that."""
    if DEVICE.type != "cuda":
        return
    free = torch.cuda.mem_get_info()[0] >> 30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free device memory; there are {free}")
