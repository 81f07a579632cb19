import torch

from helios.kernels import attention


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_the_formula():
    q, k, v = draw(2, 5, 3, 8, seed=0), draw(2, 7, 3, 8, seed=1), draw(2, 7, 3, 8, seed=2)
    logits = torch.einsum("blhd,bmhd->bhlm", q, k) / 8**0.5
    expected = torch.einsum("bhlm,bmhd->blhd", logits.softmax(-1), v)
    torch.testing.assert_close(attention(q, k, v), expected)


def test_equal_keys_give_the_mean_value():
    q, v = draw(1, 4, 2, 6, seed=0), draw(1, 5, 2, 6, seed=1)
    out = attention(q, torch.ones(1, 5, 2, 6), v)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand(1, 4, 2, 6))


def test_order_of_keys_does_not_matter():
    q, k, v = draw(1, 4, 2, 6, seed=0), draw(1, 9, 2, 6, seed=1), draw(1, 9, 2, 6, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(attention(q, k[:, order], v[:, order]), attention(q, k, v))
