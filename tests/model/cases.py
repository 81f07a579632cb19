"""Small transformers and inputs for the tests of this room, and the oracle's way of calling."""

import torch

from helios.history import HistoryWindow
from helios.model import HeliosTransformer, TransformerConfig

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "num_layers": 2,
    "text_dim": 20,
    "freq_dim": 32,
    "rope_dim": (4, 4, 4),
}


def small(**changes):
    return TransformerConfig(**{**SMALL, **changes})


def perturb(model, seed=0, scale=0.1):
    """Noise on all parameters, so that norms, tables and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((scale * noise).to(parameter.dtype))
    return model


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return perturb(HeliosTransformer(small(**changes)), seed)


def inputs(config, *, batch=1, size=(4, 6), history=None, rows=7, dtype=torch.float32, seed=0):
    """``x, timestep, text, window`` of the given latent sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    x = draw(batch, config.in_channels, 9, *size)
    frames = draw(batch, config.in_channels, 20, *(history or size))
    window = HistoryWindow(frames, torch.ones(batch, 20, dtype=torch.bool))
    timestep = 1000 * torch.rand(batch, generator=generator)
    return x, timestep, draw(batch, rows, config.text_dim), window


def ask_oracle(model, x, timestep, text, window):
    """The same forward pass in the library's argument names."""
    return model(
        x,
        timestep,
        text,
        indices_hidden_states=torch.arange(20, 29)[None],
        indices_latents_history_short=torch.tensor([[0, 19]]),
        indices_latents_history_mid=torch.tensor([[17, 18]]),
        indices_latents_history_long=torch.arange(1, 17)[None],
        latents_history_short=window.short,
        latents_history_mid=window.mid,
        latents_history_long=window.long,
        return_dict=False,
    )[0]
