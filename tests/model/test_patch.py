import pytest
import torch
import torch.nn.functional as F

from helios.history import HistoryWindow
from helios.model.patch import Patch, Patches, unpatch

from .cases import small


@pytest.mark.parametrize("kernel", [(1, 2, 2), (2, 4, 4), (4, 8, 8)])
@pytest.mark.parametrize("size", [(4, 8, 16), (5, 9, 13), (1, 2, 6)])
def test_a_patch_is_a_convolution_over_the_padded_latents(kernel, size):
    torch.manual_seed(0)
    patch, x = Patch(3, 10, kernel), torch.randn(2, 3, *size)
    missing = [-n % k for n, k in zip(size, kernel)]
    padded = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
    expected = F.conv3d(padded, patch.weight, patch.bias, kernel).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patch(x), expected)


def test_streams_are_in_order_and_counted():
    patches = Patches(small())
    with torch.no_grad():
        for value, patch in enumerate((patches.long, patches.mid, patches.short, patches.noisy)):
            patch.weight.zero_()
            patch.bias.fill_(value)
    window = HistoryWindow(torch.randn(1, 16, 20, 18, 26), torch.ones(1, 20, dtype=torch.bool))
    tokens, split = patches(torch.randn(1, 16, 9, 18, 26), window)
    counts = [48, 35, 234, 1053]  # the odd case worked out in the specification
    assert tokens.shape == (1, sum(counts), 24)
    assert split == sum(counts[:3])
    expected = torch.repeat_interleave(torch.arange(4.0), torch.tensor(counts))
    assert torch.equal(tokens[0, :, 0], expected)


def test_unpatching_undoes_patching():
    x = torch.randn(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    patch = Patch(5, 20, (1, 2, 2))
    with torch.no_grad():
        # Output channel (y, x, c) copies input (c, y, x).
        patch.weight.copy_(
            torch.eye(20).view(5, 2, 2, 20).permute(1, 2, 0, 3).reshape(20, 5, 1, 2, 2)
        )
        patch.bias.zero_()
    assert torch.equal(unpatch(patch(x), 3, 2, 3), x)
