import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helios.codec.norm import ChannelNorm, norm_silu


def formula(x: Tensor, gamma: Tensor) -> Tensor:
    norm = x.square().sum(dim=1, keepdim=True).sqrt()
    u = x / norm * x.shape[1] ** 0.5 * gamma.view(1, -1, 1, 1, 1)
    return u * torch.sigmoid(u)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("past", [0, 2])
def test_value_and_gradients_follow_the_formula(layout: torch.memory_format, past: int) -> None:
    generator = torch.Generator().manual_seed(past)
    shape = (2, 6, 3, 5, 7)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).contiguous(
        memory_format=layout
    )
    gamma = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
    x.requires_grad_(), gamma.requires_grad_()
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    value = norm_silu(x, gamma, past)
    assert value.shape[2] == 3 + past
    assert not value[:, :, :past].any()
    torch.testing.assert_close(value[:, :, past:], formula(x, gamma), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((value[:, :, past:] * weight).sum(), (x, gamma))
    plain = torch.autograd.grad((formula(x, gamma) * weight).sum(), (x, gamma))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_more_pixels_than_one_block() -> None:
    x = torch.randn(1, 3, 2, 70, 80, generator=torch.Generator().manual_seed(0))
    gamma = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(norm_silu(x, gamma), formula(x, gamma))


def test_bfloat16_is_rounded_once() -> None:
    x = torch.randn(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    gamma = torch.linspace(0.5, 2, 8)
    exact = formula(x.float(), gamma.bfloat16().float())
    assert torch.equal(norm_silu(x, gamma.bfloat16()), exact.bfloat16())


def test_zero_pixels_stay_zero() -> None:
    x = torch.zeros(1, 4, 1, 2, 2, requires_grad=True)
    value = norm_silu(x, torch.ones(4))
    assert not value.any()
    assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()


def test_only_the_input_is_kept_for_the_way_back() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(1, 4, 2, 8, 8).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_silu(x, torch.ones(4, requires_grad=True), 2)
    assert sum(t.numel() * t.element_size() for t in kept) == x.numel() * 2 + 4 * 4


def test_without_activation() -> None:
    norm = ChannelNorm(6, dims=2)
    x = torch.randn(2, 6, 3, 5)
    expected = F.normalize(x, dim=1) * 6**0.5
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.gpu
def test_generated_kernel_equals_plain() -> None:
    for channels, pixels in ((6, 35), (32, 999)):
        x = torch.randn(2, channels, 3, 1, pixels, device="cuda", requires_grad=True)
        gamma = torch.rand(channels, device="cuda", requires_grad=True)
        plain, fast = norm_silu(x, gamma, 2), norm_silu(x, gamma, 2, compiled=True)
        torch.testing.assert_close(fast, plain)
        gradients = [torch.autograd.grad(v.square().sum(), (x, gamma)) for v in (plain, fast)]
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
