"""What chunks of the published size hold on a GPU, counted, against what `helios plan` says."""

from __future__ import annotations

import pytest
import torch

from helios.codec import AutoencoderConfig, Codec, WanAutoencoder
from helios.history import HISTORY_FRAMES, HistoryWindow
from helios.model import Fp8Config, TransformerConfig, cast, empty_transformer, quantise
from helios.model.quantised import lay_out
from helios.pipeline import chunk_memory
from helios.pipeline.plan import transformer_activations
from helios.presets import models

from .live_bytes import LiveBytes, pretend_hopper

GIB = 2**30
META = torch.device("meta")


@pytest.mark.parametrize("fp8", [False, True])
@torch.no_grad()
def test_a_pass_holds_what_is_planned(monkeypatch: pytest.MonkeyPatch, fp8: bool) -> None:
    pretend_hopper(monkeypatch)
    config = TransformerConfig(num_layers=2)
    with LiveBytes() as live:
        model = cast(empty_transformer(config), torch.bfloat16).eval()
        weights = live.now
        if fp8:
            quantise(model, Fp8Config())
            assert live.now < 0.75 * weights
        else:
            lay_out(model)
            assert live.now == pytest.approx(weights, rel=1e-3)
        text = torch.empty(1, 512, config.text_dim, dtype=torch.bfloat16, device=META)
        before = live.now
        memory = model.read(text)
        assert live.now - before == 2 * 2 * 512 * config.width * 2
        window = HistoryWindow(
            frames=torch.empty(1, 16, HISTORY_FRAMES, 48, 80, dtype=torch.bfloat16, device=META),
            present=torch.ones(1, HISTORY_FRAMES, dtype=torch.bool, device=META),
        )
        noisy = torch.empty(1, 16, 9, 48, 80, dtype=torch.bfloat16, device=META)
        steps = model.modulate(torch.empty(1, device=META))
        peak = live.above(lambda: model(noisy, steps, memory, window))
    planned = transformer_activations(config, 48, 80, torch.bfloat16)
    assert 0.7 * planned < peak < planned


@pytest.mark.parametrize(("group", "gib"), [(0, 6.0), (1, 2.1)])
@torch.no_grad()
def test_a_decoding_holds_what_is_planned(
    monkeypatch: pytest.MonkeyPatch, group: int, gib: float
) -> None:
    """An H200 took 6.0 and 2.0 GiB (docs/results/decoder-h200.json.gz)."""
    pretend_hopper(monkeypatch)
    config = AutoencoderConfig()
    with LiveBytes() as live:
        with META:
            codec = Codec(WanAutoencoder(config).bfloat16())
        codec.group = group
        latents = torch.empty(1, 16, 9, 48, 80, device=META)
        peak = live.above(lambda: codec.decode_uint8(latents))
    assert peak / GIB == pytest.approx(gib, rel=0.1)
    # Beside so small a transformer the decoder is nearly all.
    sizes = (models.tiny_transformer(), config, 384, 640, torch.bfloat16)
    planned = chunk_memory(*sizes, overlapped=True, low_memory=group == 1)
    assert peak < planned < 1.2 * peak
