"""A stage of three numbers per sample, so that the trainer can be tested alone."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from helios.distributed import World
from helios.training import OptimizerConfig, RunConfig, TrainingConfig

TRUE = torch.tensor([[1.0, -2.0, 0.5]])


class Points:
    """Inputs of a linear map."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)


class LineStage:
    """Learns a linear map; every rank sees its part of one global batch."""

    def __init__(self, world, *, seed=0, batch=8, jitter=0.01, broken_at=None, stop_at=None):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(world.device)
        self.world, self.size, self.jitter = world, batch, jitter
        self.broken_at, self.stop_at = broken_at, stop_at
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = 0
        self.prepared = False
        self.seen = []

    def prepare(self):
        self.prepared = True

    def batch(self, progress):
        self.drawn += 1
        if self.drawn == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        # One by one, so that two batches hold what one of twice the size would.
        whole = torch.stack([torch.randn(3, generator=self.generator) for _ in range(self.size)])
        part = whole.chunk(self.world.size)[self.world.rank]
        self.seen.append(progress)
        return Points(part)

    def loss(self, batch):
        target = batch.x @ TRUE.T + self.jitter * torch.randn(len(batch), 1)
        error = (self.model(batch.x) - target).square().mean()
        if self.drawn == self.broken_at:
            error = error * float("nan")
        return error, {"twice": 2 * error}

    def state_dict(self):
        return {"generator": self.generator.get_state(), "drawn": torch.tensor([self.drawn])}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.drawn = int(state["drawn"])

    def sample(self, averaged, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.txt").write_text(str(averaged[0].weight))

    def save(self, averaged, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(averaged.state_dict(), folder / "line.pt")

    def measure(self, averaged):
        return {"sum": float(averaged[0].weight.sum())}


def run_config(**changes):
    values = {
        "steps": 10,
        "precision": "fp32",
        "log_every": 5,
        "checkpoint_every": 0,
        "optimizer": OptimizerConfig(lr=0.05, warmup_steps=2),
    }
    return RunConfig(stage=None, trainer=TrainingConfig(**{**values, **changes}))


def alone():
    return World(device=torch.device("cpu"))


def weights_of(trainer):
    """Parameters, averages and moments, as one comparable dictionary."""
    return {name: value.clone() for name, value in trainer._shared().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
