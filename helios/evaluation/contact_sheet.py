"""A picture of several videos: one row of frames over time per prompt, with the prompt above it.

    python -m helios.evaluation.contact_sheet --model tiny --out docs/contact-sheet.webp
        [--prompt TEXT]... [--captions 8] [--chunks 2] [--columns 8] [--ground-truth]

Without prompts the captions are held-out ones, the first of an endless list and not selected.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from helios.evaluation.prompts import scene_prompts
from helios.geometry import CHUNK_FRAMES, FPS
from helios.storage import atomic_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["contact_sheet", "save_contact_sheet"]

GAP = 4
MARGIN = 16
TEXT_SIZE = 15
WIDEST = 960
QUALITY = 75
LINE = 20
BACKGROUND, INK, FAINT = (252, 252, 250), (25, 25, 25), (130, 130, 130)


def contact_sheet(
    videos: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    *,
    columns: int = 8,
    fps: int = FPS,
) -> Image:
    """Rows of evenly spaced frames.

    Args:
        videos: uint8 ``[T, H, W, 3]``, all of one shape.
        captions: one per video.
        columns: frames per row, the first and the last one included.
        fps: playback rate, for the times above the first row.

    Raises:
        ValueError: if there is no video, the shapes differ, or the numbers do not match.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not videos or len(videos) != len(captions):
        raise ValueError(f"{len(videos)} videos need as many captions, got {len(captions)}")
    if len({video.shape for video in videos}) != 1 or videos[0].ndim != 4:
        raise ValueError(f"videos must share one shape, got {[video.shape for video in videos]}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    length, height, width = videos[0].shape[:3]
    chosen = np.linspace(0, length - 1, min(columns, length)).round().astype(int)
    across = len(chosen) * (width + GAP) - GAP
    font = ImageFont.load_default(TEXT_SIZE)
    # About half the size per letter in the default font.
    lines = [textwrap.wrap(text, max(20, int(across / (TEXT_SIZE * 0.52)))) for text in captions]
    heights = [LINE * max(1, len(part)) + GAP + height + MARGIN for part in lines]
    size = (across + 2 * MARGIN, LINE + MARGIN // 2 + sum(heights))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    left = [MARGIN + column * (width + GAP) for column in range(len(chosen))]
    for x, frame in zip(left, chosen, strict=True):
        draw.text((x, MARGIN // 2), f"{frame / fps:.2f} s", FAINT, font)
    y = LINE + MARGIN // 2
    for video, part, space in zip(videos, lines, heights, strict=True):
        for number, line in enumerate(part):
            draw.text((MARGIN, y + number * LINE), line, INK, font)
        top = y + space - MARGIN - height
        for x, frame in zip(left, chosen, strict=True):
            sheet.paste(Image.fromarray(np.ascontiguousarray(video[frame])), (x, top))
        y += space
    return sheet


def save_contact_sheet(
    path: Path, videos: Sequence[NDArray[np.uint8]], captions: Sequence[str], *, columns: int = 8
) -> None:
    """Write the sheet as WebP, whole or not at all; folders on the way are made.

    It is at most `WIDEST` pixels wide.
    """
    sheet = contact_sheet(videos, captions, columns=columns)
    if sheet.width > WIDEST:
        sheet = sheet.resize((WIDEST, round(sheet.height * WIDEST / sheet.width)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="WEBP", quality=QUALITY, method=6)


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate (or render) and write the sheet."""
    from helios.evaluation.clips import decode, film
    from helios.evaluation.generation import chunk_latents, generate_batch
    from helios.pipeline import load

    options = _parser().parse_args(arguments)
    held_out = scene_prompts(options.captions, options.seed)
    prompts = options.prompt or [prompt.text for prompt in held_out]
    device = torch.device(options.device)
    if options.ground_truth:
        if options.prompt:
            raise ValueError("a prompt has no ground truth: leave out --prompt")
        parts = [
            film(
                [prompt.scene for prompt in held_out if prompt.scene is not None],
                start=CHUNK_FRAMES * chunk,
                device=device,
            )
            for chunk in range(options.chunks)
        ]
    else:
        pipe = load(options.model, device=device)
        latents = generate_batch(
            pipe,
            prompts,
            num_chunks=options.chunks,
            seed=options.seed,
            steps=options.steps,
            guidance_scale=options.guidance,
        )
        parts = [
            decode(pipe.codec, chunk_latents(latents, chunk)) for chunk in range(options.chunks)
        ]
    videos = list(torch.cat(parts, dim=1).cpu().numpy())
    save_contact_sheet(options.out, videos, prompts, columns=options.columns)
    print(f"wrote {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Frames over time for several prompts, as WebP.")
    parser.add_argument("--model", default="tiny", help="folder or name of a model")
    parser.add_argument("--out", type=Path, required=True, help="the WebP picture")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--captions", type=int, default=8, help="held-out ones, without --prompt")
    parser.add_argument("--ground-truth", action="store_true", help="renders instead of a model")
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    main()
