"""``helios precompute``: work done once before training, by one process or by many."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["precompute"]

precompute = typer.Typer(
    help="Encode clips, or record a teacher's videos, before training.", no_args_is_help=True
)


@precompute.command()
def latents(
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    clips: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of videos, each with its caption in a .txt of its name, or JSON Lines: "
            '{"video": PATH, "caption": TEXT, "start": 0}; scenes if not given.'
        ),
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes, without clips.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of scenes and captions.")] = 0,
    model: Annotated[
        str, typer.Option(help="Whose autoencoder and text encoder: tiny, a folder, or a hub id.")
    ] = "tiny",
    size: Annotated[str, typer.Option(help="Width x height of the encoded clips.")] = "640x384",
    sections: Annotated[int, typer.Option(min=1, help="Of 33 frames in each clip.")] = 5,
    shard: Annotated[int, typer.Option(min=1, help="Clips in a file.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Encode clips and captions; the same command goes on where it was stopped.

    Every section of 33 frames is encoded on its own. Starts under torchrun unchanged.
    """
    from helios.cli.generate import parse_size
    from helios.codec import load_codec
    from helios.conditioning import load_text_encoder
    from helios.data import ClipConfig, read_clips, write_latents, write_scene_latents
    from helios.distributed import join
    from helios.pipeline import inspect_model, pick_dtype

    width, height = parse_size(size)
    config = ClipConfig(height=height, width=width, sections=sections, shard=shard)
    found = None if clips is None else read_clips(clips)
    folder = inspect_model(model)
    if not folder.has_text_encoder:
        raise ValueError(f"--model {model} has no text encoder, so captions cannot be encoded")
    with join(device) as world:
        precision = pick_dtype(dtype, world.device)
        codec = load_codec(
            folder.folder / "vae", device=world.device, dtype=precision, encoder_dtype=precision
        )
        text = load_text_encoder(folder.folder, device=world.device, dtype=precision)
        if found is None:
            write_scene_latents(codec, text, scenes, config, out, world, _say, seed=seed)
        else:
            write_latents(codec, text, found, config, out, world, _say)


@precompute.command()
def trajectories(
    model: Annotated[str, typer.Argument(help="The teacher: a folder of stage 2, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    captions: Annotated[
        Path | None, typer.Option(help="One caption per line; captions of scenes if not given.")
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="How many captions of scenes.")] = 4096,
    sections: Annotated[int, typer.Option(min=1, help="Of 33 frames in each video.")] = 3,
    steps: Annotated[str, typer.Option(help="Of the teacher on each scale.")] = "20,20,20",
    points: Annotated[
        int, typer.Option(min=1, help="Levels kept of each scale; twice as many at first.")
    ] = 2,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of the prompt; the teacher's own if not given.")
    ] = None,
    shift: Annotated[
        str, typer.Option(help="Law of the student's noise levels: linear or exponential.")
    ] = "linear",
    shard: Annotated[int, typer.Option(min=1, help="Captions in a file, made together.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of captions and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Record what a teacher passes through; the same command goes on where it was stopped.

    Each caption has noise of its own, and the levels at which a few-step student stands are visited
    exactly. Starts under torchrun unchanged.
    """
    from dataclasses import replace

    from helios.cli.generate import parse_steps
    from helios.data import Teacher, TrajectoryConfig, write_trajectories
    from helios.distributed import join
    from helios.pipeline import load

    if shift not in ("linear", "exponential"):
        raise ValueError(f"--shift must be linear or exponential, got {shift!r}")
    counts = parse_steps(steps)
    texts = _read_captions(captions) if captions is not None else _scene_captions(scenes, seed)
    with join(device) as world:
        pipe = load(model, device=world.device, dtype=dtype)
        schedule = replace(pipe.schedule, lag=False)
        if schedule.dynamic is not None:
            schedule = replace(schedule, dynamic=replace(schedule.dynamic, kind=shift))  # type: ignore[arg-type]
        if pipe.text_encoder is None:
            raise ValueError(f"{model} has no text encoder, so captions cannot be read")
        if isinstance(counts, int) or len(counts) != schedule.stages or schedule.stages == 1:
            raise ValueError(
                f"--steps {steps} does not fit: {model} samples {schedule.stages} scales, and a "
                "teacher needs several (stage 2)"
            )
        own = pipe.defaults.guidance
        config = TrajectoryConfig(
            height=pipe.defaults.height,
            width=pipe.defaults.width,
            sections=sections,
            steps=counts,
            points=points,
            guidance=(1.0 if own is None else own.scale)
            if guidance_scale is None
            else guidance_scale,
            negative_prompt=pipe.defaults.negative_prompt,
            seed=seed,
            shard=shard,
        )
        teacher = Teacher(
            name=pipe.name, transformer=pipe.transformer, text=pipe.text_encoder, schedule=schedule
        )
        write_trajectories(teacher, texts, config, out, world, _say)


def _read_captions(path: Path) -> list[str]:
    from helios.conditioning import clean_prompt
    from helios.errors import InputError

    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    texts = [text for line in lines if (text := clean_prompt(line))]
    if not texts:
        raise InputError(f"{path} holds no captions; write one per line")
    return texts


def _scene_captions(count: int, seed: int) -> list[str]:
    """Captions of scenes that training may show."""
    import random

    from helios.data.scenes import caption, sample_scenes

    rng = random.Random(seed)
    return [caption(scene, rng) for scene in sample_scenes(count, seed)]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
