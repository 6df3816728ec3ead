"""A layer is trained through the public function."""

import pytest
import torch
from small_layer import (
    assert_gradients_are_right,
    attention,
    attention_by_hand,
    gradients,
    losses,
    make_layer,
    make_task,
)
from support import BACKENDS


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_layer_learns(backend):
    found = losses(make_layer(attention(backend)), 60)
    assert found[-1] < found[0] / 5
    by_hand = losses(make_layer(attention_by_hand), 60)
    assert found[-1] == pytest.approx(by_hand[-1], rel=0.05)  # rounding differs, and training amplifies it


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_layer_has_the_right_gradients(backend):
    assert_gradients_are_right(attention(backend))


def test_wrong_gradients_of_a_layer_are_noticed():
    right = attention("torch")
    with pytest.raises(AssertionError, match="over the budget"):
        assert_gradients_are_right(lambda q, k, v: right(q, k.detach(), v))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_compiled_layer_has_the_same_gradients(backend):
    torch._dynamo.reset()
    task = make_task()
    layer = make_layer(attention(backend))
    expected = gradients(layer, *task)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, *task), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("needed", ["q", "k", "v"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_needs_a_gradient(backend, needed):
    q, k, v = (torch.randn(6, 1, 14, 2, 6, generator=torch.Generator().manual_seed(i)) for i in range(3))
    attend = attention(backend)
    everything = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = dict(zip("qkv", torch.autograd.grad(attend(*everything).sin().sum(), everything), strict=True))
    tensors = {"q": q, "k": k, "v": v}
    tensors[needed] = tensors[needed].clone().requires_grad_()
    (found,) = torch.autograd.grad(attend(*tensors.values()).sin().sum(), tensors[needed])
    assert torch.equal(found, expected[needed])
