import pytest
import torch

from helios.diffusion import CFG, CFGZero, combine, guide


def pair(dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 3, 2, 4, 4, generator=generator).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cfg_formula(dtype):
    cond, uncond = pair(dtype)
    guided = combine(cond, uncond, CFG(5.0))
    assert guided.dtype == dtype
    assert torch.equal(guided, uncond + 5.0 * (cond - uncond))


def test_scale_one_is_the_conditional_and_zero_the_unconditional():
    cond, uncond = pair()
    torch.testing.assert_close(combine(cond, uncond, CFG(1.0)), cond)
    assert torch.equal(combine(cond, uncond, CFG(0.0)), uncond)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cfg_zero_formula_per_sample(dtype):
    cond, uncond = pair(dtype)
    guided = combine(cond, uncond, CFGZero(5.0))
    for index in range(len(cond)):
        c, u = cond[index].float().flatten(), uncond[index].float().flatten()
        share = (c.dot(u) / (u.dot(u) + 1e-8)).to(dtype)
        fitted = uncond[index] * share
        expected = fitted + 5.0 * (cond[index] - fitted)
        tolerance = 1e-5 if dtype == torch.float32 else 0.06
        torch.testing.assert_close(guided[index], expected, rtol=0, atol=tolerance)
    assert guided.dtype == dtype


def test_cfg_zero_removes_what_both_share():
    """With a conditional velocity that is a multiple of the other, the fit is perfect."""
    cond, _ = pair()
    torch.testing.assert_close(combine(cond, cond * 0.25, CFGZero(7.0)), cond)


def test_cfg_zero_of_nothing_is_finite():
    cond, _ = pair()
    guided = combine(cond, torch.zeros_like(cond), CFGZero(2.0))
    torch.testing.assert_close(guided, 2.0 * cond)


def test_cfg_zero_takes_views_that_are_not_contiguous():
    cond, uncond = (x.transpose(3, 4) for x in pair())
    expected = combine(cond.contiguous(), uncond.contiguous(), CFGZero(3.0))
    torch.testing.assert_close(combine(cond, uncond, CFGZero(3.0)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cfg_zero_equals_the_oracle(dtype):
    from diffusers.pipelines.helios.pipeline_helios_pyramid import optimized_scale

    cond, uncond = pair(dtype)
    share = optimized_scale(cond.view(2, -1), uncond.view(2, -1)).view(2, 1, 1, 1, 1).to(dtype)
    expected = uncond * share + 5.0 * (cond - uncond * share)
    assert torch.equal(combine(cond, uncond, CFGZero(5.0)), expected)


def test_guide_asks_the_conditional_first_and_once():
    asked = []

    def network(name, factor):
        def denoise(x, timestep):
            asked.append((name, timestep.tolist()))
            return x * factor

        return denoise

    x, _ = pair()
    timestep = torch.tensor([7, 7])
    guided = guide(network("cond", 2.0), network("uncond", 1.0), CFG(3.0))(x, timestep)
    assert asked == [("cond", [7, 7]), ("uncond", [7, 7])]
    torch.testing.assert_close(guided, 4.0 * x)


@pytest.mark.parametrize("guidance", [CFG(5.0), CFGZero(5.0)])
def test_bfloat16_answers_are_combined_in_float32_unless_rounding_is_asked(guidance):
    cond, uncond = pair(torch.bfloat16)
    asked = (lambda *_: cond), (lambda *_: uncond), guidance
    full = guide(*asked)(cond, torch.ones(2))
    assert torch.equal(full, combine(cond.float(), uncond.float(), guidance))
    rounded = guide(*asked, rounding=torch.bfloat16)(cond, torch.ones(2))
    assert torch.equal(rounded, combine(cond, uncond, guidance))


@pytest.mark.parametrize("kind", [CFG, CFGZero])
@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scale_must_be_a_number(kind, scale):
    with pytest.raises(ValueError, match="scale"):
        kind(scale)
