"""Attention and its gradients on the device, judged by float64 on the CPU."""

import pytest
import torch
from gpu.where import DEVICE, DTYPES, TF32, offered, to_device
from support import assert_within_budget, attention_inputs, oracle, plain_attention, plain_lse

import tiledattn as ta
from tiledattn.bench.variants import held, products, yardstick
from tiledattn.dispatch import saves_lse


def inputs(layout, dtype, **arguments):
    """As `attention_inputs`, by the name of a dtype; "tf32" gives what tfloat32 and float16 hold exactly."""
    return held(attention_inputs(layout, dtype=torch.float32 if dtype == TF32 else DTYPES[dtype], **arguments), dtype)


def plainly(tensors, dtype):
    """The same values in the precision whose plain results set the budget."""
    wanted = [x.to(yardstick(dtype) or x.dtype) for x in tensors]
    assert all(torch.equal(x.to(y.dtype), y) for x, y in zip(wanted, tensors, strict=True))
    return wanted


def skip_plain(backend, dtype):
    if backend == "torch" and dtype == TF32:
        pytest.skip("plain PyTorch: its tfloat32 is not ours")


def check(backend, q, k, v, layout, halo, *, dtype="", prefix=0, mask=None, weight=1.0, scale=None):
    """Output and lse within the budgets, float32 through tfloat32 where `dtype` is "tf32"; returns the output."""
    skip_plain(backend, dtype)
    arguments = {"num_prefix_tokens": prefix, "halo_weight": weight, "scale": scale}
    with products(dtype):
        out, lse = offered(
            ta.cross_tile_attention,
            *(to_device(x) for x in (q, k, v)),
            layout,
            halo,
            prefix_mask=to_device(mask),
            return_lse=True,
            backend=backend,
            **arguments,
        )
    assert out.device.type == DEVICE.type
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    arguments["prefix_mask"] = mask
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    plain = plain_attention(*plainly((q, k, v), dtype), layout, halo, **arguments)
    assert_within_budget(out.cpu(), plain, exact)
    assert_within_budget(lse.cpu(), plain_lse(q, k, layout, halo, **arguments), exact_lse)
    return out


def gradients(attend, tensors, weights):
    """Of q, k and v, on the CPU."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    return [x.cpu() for x in torch.autograd.grad(attend(*leaves), leaves, weights)]


def fused_backward(backend, dtype):
    """Whether gradients are a kernel's and hence the same to the bit in every run; PyTorch's index_add_ is not."""
    return saves_lse(backend, DEVICE.type, dtype)


def check_gradients(backend, layout, halo, dtype, *, prefix=0):
    """Gradients of q, k and v within the budgets; two runs of a fused backward agree to the bit."""
    skip_plain(backend, dtype)
    tensors = inputs(layout, dtype, prefix=prefix, heads=4, kv_heads=2, dim=64, seed=3)
    (weights,) = inputs(layout, dtype, prefix=prefix, heads=4, dim=64, seed=4)[:1]

    def by_hand(*tensors):
        return plain_attention(*tensors, layout, halo, num_prefix_tokens=prefix)

    def ours(*tensors):
        return offered(ta.cross_tile_attention, *tensors, layout, halo, num_prefix_tokens=prefix, backend=backend)

    exact = gradients(by_hand, [x.double() for x in tensors], weights.double())
    plain = gradients(by_hand, plainly(tensors, dtype), *plainly([weights], dtype))
    with products(dtype):
        runs = [gradients(ours, [x.to(DEVICE) for x in tensors], weights.to(DEVICE)) for _ in range(2)]
        fused = fused_backward(backend, weights.dtype)
    for found, again, p, e in zip(*runs, plain, exact, strict=True):
        assert_within_budget(found, p, e)
        if fused:
            assert torch.equal(found, again)
