"""The device of these tests: a CUDA or ROCm device, or what TILEDATTN_TEST_DEVICE names (the CPU, for a rehearsal)."""

import contextlib
import os
from unittest import mock

import pytest
import torch
from emulated_attention import emulation

import tiledattn as ta
from tiledattn.backends import cuda, cuda_attention
from tiledattn.bench import variants
from tiledattn.bench.variants import TF32
from tiledattn.bench.ways import our_backends

DEVICE = torch.device(os.environ.get("TILEDATTN_TEST_DEVICE", "cuda"))
MISSING = "no CUDA or ROCm device" if DEVICE.type == "cuda" and not torch.cuda.is_available() else None
ON_GPU = ["triton", "torch"] if torch.version.hip else ["triton", "cuda", "torch"]
BACKENDS = ON_GPU if DEVICE.type == "cuda" else ["cpu", "torch"]  # all of them must run: test_backends.py
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION_DTYPES = [*DTYPES, TF32]
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


@contextlib.contextmanager
def emulated_hopper():
    """The cuda backend takes CPU tensors; where its variable asks for it, the sm_90a kernel runs on the emulator."""

    def asked(device):
        return os.environ.get(cuda_attention.SM90_VARIABLE) == "1"

    with (
        emulation("sm90", seed=0),
        mock.patch.object(cuda_attention, "_asked_for_sm90", asked),
        mock.patch.object(cuda, "probe", return_value=None),
        mock.patch.object(cuda, "rejects", return_value=None),
        mock.patch.object(variants, "missing_for_sm90", return_value=None),
    ):
        yield


@pytest.fixture(params=["cuda-sm90"])
def sm90(request):
    """The cuda backend, all of whose attention in the test is the sm_90a kernel's; in a rehearsal, the emulator's."""
    with emulated_hopper() if DEVICE.type == "cpu" else contextlib.nullcontext():
        reason = variants.missing_for_sm90(DEVICE)
        if reason is not None:
            pytest.skip(reason)
        with variants.sm90_only():
            yield "cuda"


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
