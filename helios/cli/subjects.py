"""The weights that ``helios bench`` measures, by the name they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from helios.evaluation import Subject

__all__ = ["subject_of"]

RANDOM = "random-"
"""What the names of random weights begin with."""


def subject_of(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    size: str | None,
    layers: int | None,
    seed: int,
) -> Subject:
    """The weights to measure, at their own size unless told otherwise."""
    from dataclasses import replace

    from helios.evaluation import Subject, random_codec, random_transformer
    from helios.pipeline import load
    from helios.presets import generation, models

    if model.startswith(RANDOM):
        shapes = {
            "tiny": (models.tiny_transformer, models.tiny_autoencoder, generation.tiny, 64),
            "14b": (models.helios_14b, models.wan_autoencoder, generation.distilled, 512),
        }
        shape = model.removeprefix(RANDOM)
        if shape not in shapes:
            raise ValueError(f"model must be random-{' or random-'.join(shapes)}, got {model!r}")
        of_transformer, of_codec, of_generation, rows = shapes[shape]
        network = of_transformer()
        if layers is not None:
            network = replace(network, num_layers=layers)
        transformer = random_transformer(network, device, dtype, seed)
        codec = random_codec(of_codec(), device, dtype, seed)
        defaults = of_generation()
    else:
        if layers is not None:
            raise ValueError("layers changes random weights only: give random-tiny or random-14b")
        pipe = load(model, device=device, dtype=dtype)
        transformer, codec, defaults = pipe.transformer, pipe.codec, pipe.defaults
        rows = 512 if pipe.text_encoder is None else pipe.text_encoder.max_length
    width, height = (defaults.width, defaults.height) if size is None else _size(size)
    return Subject.make(
        transformer,
        codec,
        generation.published_schedule(distilled=True),
        height=height,
        width=width,
        tokens=rows,
        name=model,
        seed=seed,
    )


def _size(text: str) -> tuple[int, int]:
    from helios.geometry import check_size

    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"size must be WIDTHxHEIGHT, such as 640x384, got {text!r}") from None
    check_size(height, width, 3)
    return width, height
