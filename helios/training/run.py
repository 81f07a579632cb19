"""One training run from its configuration: what the command line calls."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from helios.distributed import join
from helios.training import checkpoint
from helios.training.config import RunConfig
from helios.training.lock import only_trainer
from helios.training.trainer import Trainer

__all__ = ["train"]


def train(
    config: RunConfig, out: Path, *, resume: str | None = None, device: str = "auto"
) -> dict[str, float]:
    """Train in ``out``, alone or as one rank under ``torchrun``.

    Args:
        config: stage and trainer.
        out: folder of the run.
        resume: "auto" goes on from the newest whole checkpoint of ``out``, if there is one; else
            a checkpoint's folder.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        What the stage measured of its result.

    Raises:
        FileExistsError: if ``out`` holds a run and ``resume`` is not given, or if another process
            trains there.
        CheckpointError: if there is nothing whole to resume from.
        DivergedError: if a loss or gradient is not finite.
        ResumableError: after SIGTERM.
        PeerError: if another rank is gone.
    """
    folder = out / "checkpoints"
    if resume is None and any(folder.glob("step-*")):
        raise FileExistsError(
            f"{out} holds a run already: go on with --resume auto, or choose another --out"
        )
    with join(device) as world:

        def say(line: str) -> None:
            if world.is_main:
                print(line, file=sys.stderr, flush=True)

        found = None if resume is None else checkpoint.find(folder, resume, say)
        if resume is not None:
            say(
                f"no checkpoint in {folder} yet: starting fresh"
                if found is None
                else f"going on from {found}"
            )
        compiled = config.trainer.compile and world.device.type == "cuda"
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        stage = config.stage.build(world, seed=config.trainer.seed, compiled=compiled)
        trainer = Trainer(stage, config, world, out)
        if found is not None:
            trainer.resume(found)
        with only_trainer(out, world):
            return trainer.run()
