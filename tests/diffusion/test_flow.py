import pytest
import torch

from helios.diffusion import mix, to_clean, to_noise, velocity


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 2, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_velocity_and_ends_are_inverse(ends, sigma):
    clean, noise = ends
    x, v = mix(clean, noise, sigma), velocity(clean, noise)
    torch.testing.assert_close(to_clean(x, v, sigma), clean, rtol=0, atol=1e-14)
    torch.testing.assert_close(to_noise(x, v, sigma), noise, rtol=0, atol=1e-14)


def test_ends_of_the_path_are_exact(ends):
    clean, noise = ends
    assert torch.equal(mix(clean, noise, 0.0), clean)
    assert torch.equal(mix(clean, noise, 1.0), noise)


def test_velocity_is_the_derivative(ends):
    clean, noise = (end.requires_grad_(False) for end in ends)
    sigma = torch.tensor(0.4, dtype=torch.float64)
    _, slope = torch.func.jvp(
        lambda level: mix(clean, noise, level), (sigma,), (torch.ones_like(sigma),)
    )
    torch.testing.assert_close(slope, velocity(clean, noise))


def test_one_level_per_sample(ends):
    clean, noise = ends
    sigma = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x, v = mix(clean, noise, sigma), velocity(clean, noise)
    for index, level in enumerate(sigma.tolist()):
        assert torch.equal(x[index], mix(clean[index], noise[index], level))
    torch.testing.assert_close(to_clean(x, v, sigma), clean, rtol=0, atol=1e-14)
    torch.testing.assert_close(to_noise(x, v, sigma), noise, rtol=0, atol=1e-14)


def test_one_level_per_frame(ends):
    clean, noise = ends
    sigma = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1, 1)
    x = mix(clean, noise, sigma)
    assert torch.equal(x[:, :, 0], clean[:, :, 0])
    assert torch.equal(x[:, :, 1], noise[:, :, 1])
