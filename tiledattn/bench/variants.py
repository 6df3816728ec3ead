"""Kernels that a backend's name alone does not choose: float32 through tfloat32, and attention for sm_90a."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

import tiledattn as ta
from tiledattn.backends import cuda_attention, native_library

from .ways import Call, Inputs, NotOfferedError, Way

TF32 = "tf32"  # the name of float32 multiplied as tfloat32, beside those of dtypes
SM90 = "cuda, sm_90a"
CAPABILITY = (9, 0)


@contextmanager
def products(dtype: str) -> Iterator[None]:
    """Inside, float32 is multiplied as tfloat32 on a GPU if `dtype` is "tf32", else as the settings say."""
    if dtype != TF32:
        yield
        return
    backends: Any = torch.backends  # its types lack what sets a product's precision
    of_cpu, of_gpu = backends.mkldnn.matmul, backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), of_cpu.fp32_precision, of_gpu.fp32_precision
    # the older setting too: torch.compile reads it and refuses one that contradicts the newer
    torch.set_float32_matmul_precision("high")
    of_cpu.fp32_precision = before[1]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        of_cpu.fp32_precision, of_gpu.fp32_precision = before[1:]


def held(inputs: Inputs, dtype: str) -> Inputs:
    """The inputs; for "tf32" rounded to what float16, and so tfloat32, holds exactly."""
    return tuple(x.half().to(x.dtype) for x in inputs) if dtype == TF32 else inputs


def yardstick(dtype: str) -> torch.dtype | None:
    """The precision in which plain PyTorch sets the budget, None for the inputs' own.

    For "tf32" float16: its mantissa is as long, while PyTorch's own tfloat32 may or may not be used.
    """
    return torch.float16 if dtype == TF32 else None


def missing_for_sm90(device: torch.device) -> str | None:
    """Why the sm_90a kernel can't run on a device, or None."""
    if device.type != "cuda":
        return f"the sm_90a kernel needs a CUDA device, not {device}"
    reason = ta.backends()["cuda"]
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return f"the sm_90a kernel needs compute capability 9.0, not {capability[0]}.{capability[1]}"
    built = native_library.build_report().get("cuda_architectures")
    if not isinstance(built, list) or "sm_90a" not in built:
        return f"the native library was built for {built}, without sm_90a"
    return None


@contextmanager
def sm90_allowed() -> Iterator[None]:
    """Inside, the cuda backend's attention takes its sm_90a kernel where device, tensors and halo are such."""
    before = os.environ.get(cuda_attention.SM90_VARIABLE)
    os.environ[cuda_attention.SM90_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[cuda_attention.SM90_VARIABLE]
        else:
            os.environ[cuda_attention.SM90_VARIABLE] = before


@contextmanager
def sm90_only() -> Iterator[None]:
    """As `sm90_allowed`, and every launch inside is the sm_90a kernel's, at least one.

    Raises:
        NotOfferedError: otherwise, after the call that took another kernel, or at the end.
    """
    count = 0

    def noting(*arguments: object) -> None:
        nonlocal count
        count += 1
        launch(*arguments)

    def refuse(*arguments: object) -> None:
        raise NotOfferedError("the sm_90a kernel does not take this halo or these tensors")

    launch = cuda_attention._launch_boxes
    with (
        sm90_allowed(),
        mock.patch.object(cuda_attention, "_launch_boxes", noting),
        mock.patch.object(cuda_attention, "_launch", refuse),
    ):
        yield
    if count == 0:
        raise NotOfferedError("the sm_90a kernel was not launched")


def sm90_way(attend: Callable[..., Any], device: torch.device) -> Way:
    """The sm_90a kernel as a way of its own; `attend` takes the inputs and `backend`."""

    def call(*inputs: torch.Tensor) -> Any:
        with sm90_allowed():
            return attend(*inputs, backend="cuda")

    def prepare(inputs: Inputs) -> Call:
        reason = missing_for_sm90(device)
        if reason is not None:
            raise NotOfferedError(reason)
        with sm90_only():
            attend(*inputs, backend="cuda")
        return lambda: call(*inputs)

    return Way(SM90, "ours", prepare)
