"""What every test of the codec needs."""

import pytest
from diffusers.models.autoencoders import autoencoder_kl_wan as oracle


@pytest.fixture(autouse=True)
def _oracle_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers' encoder hand its cache to an attention block.

    Its cached encode gives every layer two arguments that its attention block does not take, so
    ``attn_scales`` cannot be encoded with it at all; attention keeps no cache, so they are dropped.
    """
    plain = oracle.WanAttentionBlock.forward
    monkeypatch.setattr(
        oracle.WanAttentionBlock,
        "forward",
        lambda self, x, feat_cache=None, feat_idx=None: plain(self, x),
    )
