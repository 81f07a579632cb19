import pytest
import torch
import torch.nn.functional as F

from helios.history import HistoryWindow
from helios.model import HeliosTransformer, init_memory_patches, reset_parameters

from .cases import build, inputs, small


@pytest.mark.parametrize(("name", "ratio"), [("short", 1), ("mid", 2), ("long", 4)])
def test_memory_patches_start_as_average_then_patch(name, ratio):
    model = build()
    init_memory_patches(model)
    x = torch.randn(2, 16, 8, 16, 24, generator=torch.Generator().manual_seed(0))
    expected = model.patches.noisy(F.avg_pool3d(x, ratio))
    torch.testing.assert_close(getattr(model.patches, name)(x), expected, rtol=1e-4, atol=1e-5)


def test_the_generator_decides_every_parameter():
    models = []
    for seed, global_seed in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(global_seed)
        model = build(global_seed, is_amplify_history=True)
        reset_parameters(model, torch.Generator().manual_seed(seed))
        models.append(model.state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert not torch.equal(models[0]["patches.noisy.weight"], models[2]["patches.noisy.weight"])


def test_the_network_starts_small_and_neutral():
    model = HeliosTransformer(
        small(num_attention_heads=8, attention_head_dim=32, rope_dim=(8, 12, 12))
    )
    reset_parameters(model, torch.Generator().manual_seed(0))
    width = model.config.width
    assert model.blocks[0].modulation.std().item() == pytest.approx(width**-0.5, rel=0.1)
    # Xavier-uniform has variance 2 / (in + out).
    assert model.head.project.weight.std().item() == pytest.approx(
        0.1 * (2 / (width + 64)) ** 0.5, rel=0.1
    )
    assert model.time.project.weight.std().item() == pytest.approx(
        0.3 * (2 / (7 * width)) ** 0.5, rel=0.1
    )
    assert torch.equal(model.blocks[0].cross_norm.weight, torch.ones(width))
    with torch.no_grad():
        out = model(*inputs(model.config, size=(4, 4)))
    assert 0 < out.std().item() < 0.5


def test_absent_history_does_not_blow_up_gradients():
    model = HeliosTransformer(small())
    reset_parameters(model, torch.Generator().manual_seed(0))
    x, timestep, text, window = inputs(model.config)
    absent = HistoryWindow(torch.zeros_like(window.frames), torch.zeros_like(window.present))
    norms = []
    for history in (window, absent):
        model.zero_grad()
        (model(x, timestep, text, history) - x).square().mean().backward()
        norms.append(max(p.grad.norm().item() for p in model.parameters()))
    assert norms[1] < 5 * norms[0]
