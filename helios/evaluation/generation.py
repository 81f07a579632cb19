"""Many prompts at once, for measuring.

The pipeline makes one video at a time, because that is what a person waits for. A judge waits for
a thousand, so here the same rooms run on a batch. Every video has its own generator and its own
history, hence row ``i`` is what the pipeline makes of prompt ``i`` with seed ``seed + i``, up to
the rounding of larger matrix products.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from helios.conditioning import fit, image_start, video_start
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS, LATENT_CHANNELS, latent_size
from helios.history import History, HistoryWindow
from helios.model import HeliosTransformer, reset_parameters
from helios.pipeline import Pipeline, Request, Resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

__all__ = ["chunk_latents", "generate_batch", "stream_batch", "untrained"]


def generate_batch(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    num_chunks: int,
    seed: int = 0,
    batch_size: int = 128,
    steps: int | tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
    images: Tensor | None = None,
    videos: Tensor | None = None,
) -> Tensor:
    """Clean latents of one video per prompt.

    Args:
        pipe: the model.
        prompts: N texts.
        num_chunks: chunks of each video.
        seed: video ``i`` uses ``seed + i``.
        batch_size: videos made at once.
        steps: denoising steps; the checkpoint's own if not given.
        guidance_scale: strength of the prompt; the checkpoint's own if not given.
        images: uint8 ``[N, H, W, 3]``, to start from.
        videos: uint8 ``[N, T, H, W, 3]`` with T of at least 33, to continue.

    Returns:
        float32 ``[N, 16, 9 * num_chunks, h, w]`` on the model's device.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if images is not None and videos is not None:
        raise ValueError("give either images or videos, not both")
    for name, media in (("images", images), ("videos", videos)):
        if media is not None and len(media) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many {name}, got {len(media)}")
    parts = []
    for first in range(0, len(prompts), batch_size):
        chosen = slice(first, first + batch_size)
        chunks = stream_batch(
            pipe,
            prompts[chosen],
            range(seed + first, seed + first + len(prompts[chosen])),
            num_chunks=num_chunks,
            steps=steps,
            guidance_scale=guidance_scale,
            images=None if images is None else images[chosen],
            videos=None if videos is None else videos[chosen],
        )
        parts.append(torch.cat(list(chunks), dim=2))
    return torch.cat(parts)


def stream_batch(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_chunks: int,
    steps: int | tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
    images: Tensor | None = None,
    videos: Tensor | None = None,
    retouch: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Chunk after chunk of one batch: memory does not grow with the length.

    Args:
        pipe: the model.
        prompts: B texts.
        seeds: one per text.
        num_chunks: chunks of each video.
        steps: denoising steps; the checkpoint's own if not given.
        guidance_scale: strength of the prompt; the checkpoint's own if not given.
        images: uint8 ``[B, H, W, 3]``, to start from.
        videos: uint8 ``[B, T, H, W, 3]`` with T of at least 33, to continue.
        retouch: makes of the number and the latents of a chunk what is shown and remembered.

    Yields:
        float32 ``[B, 16, 9, h, w]`` on the model's device.
    """
    if pipe.text_encoder is None:
        raise ValueError("this checkpoint has no text encoder, so captions cannot be judged")
    if num_chunks < 1:
        raise ValueError(f"num_chunks must be at least 1, got {num_chunks}")
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    request = Request(
        prompt=prompts[0],
        num_frames=num_chunks * CHUNK_FRAMES,
        steps=steps,
        guidance_scale=guidance_scale,
    )
    resolved = pipe.defaults.resolve(request, pipe.schedule)
    return _chunks(pipe, resolved, prompts, seeds, num_chunks, images, videos, retouch)


def chunk_latents(latents: Tensor, chunk: int) -> Tensor:
    """The nine latents of one chunk of each video."""
    return latents[:, :, chunk * CHUNK_LATENTS : (chunk + 1) * CHUNK_LATENTS]


def untrained(pipe: Pipeline, seed: int = 0) -> Pipeline:
    """The same pipeline with a transformer whose weights are drawn, not learned."""
    model: HeliosTransformer = copy.deepcopy(pipe.transformer)
    reset_parameters(model, torch.Generator(pipe.device).manual_seed(seed))
    return Pipeline(
        model.eval(), pipe.codec, pipe.text_encoder, pipe.defaults, pipe.schedule, name="untrained"
    )


def _chunks(
    pipe: Pipeline,
    resolved: Resolved,
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_chunks: int,
    images: Tensor | None,
    videos: Tensor | None,
    retouch: Callable[[int, Tensor], Tensor] | None,
) -> Iterator[Tensor]:
    generators = [torch.Generator(pipe.device).manual_seed(seed) for seed in seeds]
    start = None if images is None else images[:, None]
    with torch.no_grad():
        histories = _starts(pipe, resolved, generators, start, videos)
        text, without = _texts(pipe, resolved, prompts)
    for chunk in range(num_chunks):
        # The gradient mode belongs to whoever runs between two chunks, so it is set chunk by chunk.
        with torch.no_grad():
            window = HistoryWindow.stack([history.window() for history in histories])
            clean = pipe.sample(chunk, resolved, generators, window, text, without)
            if retouch is not None:
                clean = retouch(chunk, clean)
            parts = clean.split(1)
            histories = [h.append(part) for h, part in zip(histories, parts, strict=True)]
        yield clean.float()


def _texts(pipe: Pipeline, resolved: Resolved, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The prompts and, as often, what guidance moves away from: both ``[B, L, D]``."""
    if pipe.text_encoder is None:
        raise ValueError("this checkpoint has no text encoder, so captions cannot be judged")
    text = pipe.text_encoder.encode(prompts).to(pipe.device, pipe.dtype)
    negative = pipe.text_encoder.encode([resolved.negative_prompt])
    return text, negative.to(pipe.device, pipe.dtype).expand_as(text)


def _starts(
    pipe: Pipeline,
    resolved: Resolved,
    generators: list[torch.Generator],
    images: Tensor | None,
    videos: Tensor | None,
) -> list[History]:
    """One history per video, prepared as the pipeline prepares it."""
    media = videos if images is None else images
    if media is None:
        rows, columns = latent_size(resolved.height, resolved.width)
        empty = History.empty(1, LATENT_CHANNELS, rows, columns, device=pipe.device)
        return [empty for _ in generators]
    begin = video_start if images is None else image_start
    return [
        begin(
            pipe.codec,
            fit(frames.cpu().numpy(), resolved.height, resolved.width).to(pipe.device),
            generator,
            image_noise=resolved.image_noise,
            video_noise=resolved.video_noise,
        )
        for frames, generator in zip(media, generators, strict=True)
    ]
