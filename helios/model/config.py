"""The transformer's configuration, in the field names of the published ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from helios.errors import CheckpointError

__all__ = ["TransformerConfig"]

CLASS_NAME = "HeliosTransformer3DModel"
"""How published files call this network."""
OUR_OPTIONS = ("restrict_self_attn", "absolute_positions", "without_anchor", "aligned_scales")
"""Switches that the published release class does not have; a strict reader refuses them when on."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Every number of a transformer (specification "model and sampling", sections 1.2 and 11).

    The defaults are the published 14B model. Some published fields can only have one value here;
    they are kept so that a file can be read, compared and written back.

    Attributes:
        patch_size: frames, rows and columns of latents per token; always (1, 2, 2).
        num_attention_heads: heads of every attention.
        attention_head_dim: channels per head.
        in_channels: latent channels read.
        out_channels: latent channels predicted.
        text_dim: width of the text embeddings.
        freq_dim: width of the sinusoid that encodes the timestep; even.
        ffn_dim: hidden width of the feed-forward network.
        num_layers: number of blocks.
        cross_attn_norm: layer norm before cross-attention.
        qk_norm: always "rms_norm_across_heads".
        eps: of every norm.
        added_kv_proj_dim: always None.
        rope_dim: channels per head for time, rows and columns; even, adding up to a head.
        rope_theta: base of the rotary frequencies.
        guidance_cross_attn: only noisy tokens attend to the text.
        zero_history_timestep: history tokens are modulated as clean (timestep 0).
        has_multi_term_memory_patch: always True.
        is_amplify_history: scale the keys of history tokens by a learnt factor.
        history_scale_mode: one such factor per head, or one for all ("scalar").
        restrict_self_attn: history queries attend to history only.
        absolute_positions: every latent frame sits at its own time in the video, the anchor at 0,
            instead of at its place in the window; the window must then know what has elapsed.
        without_anchor: the first frame of the video is not remembered: the anchor is absent from
            every window, while all else keeps its place.
        aligned_scales: noisy tokens of a coarse scale sit at the middle of the cells they cover on
            the grid of history, instead of at whole places of their own grid (training.md, F14).

    The last four are not fields of the published release class; written to JSON only when on.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    added_kv_proj_dim: None = None
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    has_multi_term_memory_patch: bool = True
    is_amplify_history: bool = False
    history_scale_mode: Literal["per_head", "scalar"] = "per_head"
    restrict_self_attn: bool = False
    absolute_positions: bool = False
    without_anchor: bool = False
    aligned_scales: bool = False

    def __post_init__(self) -> None:
        """Refuse what this transformer cannot be."""
        sizes = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels")
        for name in (*sizes, "text_dim", "freq_dim", "ffn_dim", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        fixed: dict[str, Any] = {
            "patch_size": (1, 2, 2),
            "qk_norm": "rms_norm_across_heads",
            "added_kv_proj_dim": None,
            "has_multi_term_memory_patch": True,
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must be {value!r}, got {getattr(self, name)!r}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
        if sum(self.rope_dim) != self.attention_head_dim or any(d % 2 for d in self.rope_dim):
            raise ValueError(
                f"rope_dim must be three even numbers adding up to attention_head_dim "
                f"({self.attention_head_dim}), got {self.rope_dim}"
            )
        if self.history_scale_mode not in ("per_head", "scalar"):
            raise ValueError(
                f"history_scale_mode must be per_head or scalar, got {self.history_scale_mode!r}"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """The configuration in a published ``config.json``.

        Fields that are not known are ignored unless they switch something on (``true``): those
        belong to other variants of the network, and settings of a switch that is off say nothing.

        Raises:
            CheckpointError: if the file describes another class or a network this is not.
        """
        if values.get("_class_name", CLASS_NAME) != CLASS_NAME:
            raise CheckpointError(f"expected a {CLASS_NAME}, got a {values['_class_name']}")
        known = {field.name for field in fields(cls)}
        switched_on = sorted(key for key in values.keys() - known if values[key] is True)
        if switched_on:
            raise CheckpointError(f"the transformer uses unknown options: {', '.join(switched_on)}")
        chosen = {key: values[key] for key in values.keys() & known}
        if chosen.get("out_channels", 0) is None:
            chosen["out_channels"] = chosen.get("in_channels", cls.in_channels)
        try:
            for key in chosen.keys() & {"patch_size", "rope_dim"}:
                chosen[key] = tuple(chosen[key])
            return cls(**chosen)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the transformer's config.json cannot be used: {error}"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The content of ``config.json`` as published."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        for name in OUR_OPTIONS:
            if not values[name]:
                del values[name]
        return {"_class_name": CLASS_NAME, **values}
