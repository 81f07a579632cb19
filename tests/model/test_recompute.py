import copy

import torch

from helios.model import recompute_blocks

from .cases import build, inputs


def gradients(model):
    x, *rest = inputs(model.config, batch=2)
    kept = []

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(x, *rest)
    out.square().mean().backward()
    return out.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}, sum(kept)


def test_gradients_are_the_same_and_far_less_is_kept():
    plain = build(num_layers=6)
    twice = copy.deepcopy(plain)
    recompute_blocks(twice)
    (a, grads, kept), (b, others, less) = gradients(plain), gradients(twice)
    assert torch.equal(a, b)
    for name, value in grads.items():
        torch.testing.assert_close(others[name], value)
    assert less < 0.3 * kept
    assert list(dict(twice.named_parameters())) == list(dict(plain.named_parameters()))


def test_a_copy_computes_with_its_own_weights():
    model = build()
    recompute_blocks(model)
    other = copy.deepcopy(model)
    x, *rest = inputs(model.config)
    with torch.no_grad():
        before = model(x, *rest)
        for parameter in other.blocks.parameters():
            parameter.zero_()
        assert torch.equal(model(x, *rest), before)
        assert not torch.allclose(other(x, *rest), before)
