"""Two processes over gloo make what one makes with the same global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helios.distributed import join, pick_device
from helios.errors import DivergedError
from helios.training import Trainer

from .toys import LineStage, alone, run_config, weights_of

WORKER = """
import sys, torch
from pathlib import Path
from helios.distributed import join
from helios.errors import DivergedError
from helios.training import Trainer
from training.toys import LineStage, run_config

out = Path(sys.argv[1])
with join("cpu") as world:
    for mode in ("straight", "resumed", "broken"):
        broken = 3 if mode == "broken" and world.rank == 1 else None
        stage = LineStage(world, jitter=0.0, broken_at=broken)
        config = run_config(steps=6, accumulate=2, checkpoint_every=3)
        trainer = Trainer(stage, config, world, out / mode)
        if mode == "resumed":
            trainer.resume(out / "straight" / "checkpoints" / "step-00000003")
        try:
            trainer.run()
        except DivergedError as error:
            (out / f"diverged-{world.rank}").write_text(str(error))
        torch.save(trainer._shared(), out / f"{mode}-{world.rank}.pt")
"""


def launch(code, folder):
    """Two processes that run ``code``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tests = Path(__file__).parents[1]
    common = {
        **os.environ,
        "PYTHONPATH": f"{tests}:{tests.parent}",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes made of three runs: one, its second half again, one that broke."""
    folder = tmp_path_factory.mktemp("two")
    for worker in launch(WORKER, folder):
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
    return folder


DYING = """
import os, sys
from pathlib import Path
from helios.cli.errors import exit_code, explain
from helios.distributed import join
from helios.training import Trainer
from training.toys import LineStage, run_config

class Dying(LineStage):
    def batch(self, progress):
        if self.world.rank == 1 and self.drawn == 3:
            os._exit(1)
        return super().batch(progress)

try:
    with join("cpu") as world:
        Trainer(Dying(world), run_config(steps=50), world, Path(sys.argv[1])).run()
except Exception as error:
    print(explain(error), file=sys.stderr)
    sys.stderr.flush()
    os._exit(exit_code(error))
"""


def test_when_a_peer_dies_the_other_says_so_and_ends(tmp_path):
    left, dead = launch(DYING, tmp_path)
    _, errors = left.communicate(timeout=120)
    dead.communicate(timeout=120)
    assert (left.returncode, dead.returncode) == (9, 1), errors
    assert "another process of this run has ended" in errors.splitlines()[-1]


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from helios.distributed import join
from helios.errors import ResumableError
from helios.training import Trainer
from training.toys import LineStage, run_config

out = Path(sys.argv[1])
with join("cpu") as world:
    stage = LineStage(world, stop_at=3 if world.rank == 1 else None)
    try:
        Trainer(stage, run_config(steps=40), world, out).run()
    except ResumableError as error:
        (out / f"stopped-{world.rank}").write_text(str(error))
"""


def test_a_signal_to_one_rank_stops_both_at_one_step(tmp_path):
    for worker in launch(STOPPED, tmp_path):
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    first, second = ((tmp_path / f"stopped-{rank}").read_text() for rank in range(2))
    assert first == second
    assert (tmp_path / "model/line.pt").is_file()


def states(folder, mode):
    return [torch.load(folder / f"{mode}-{rank}.pt") for rank in range(2)]


def test_two_processes_equal_one(together, tmp_path):
    first, second = states(together, "straight")
    stage = LineStage(alone(), jitter=0.0)
    single = Trainer(stage, run_config(steps=6, accumulate=2), alone(), tmp_path)
    single.run()
    for name, value in weights_of(single).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5)


def test_two_resumed_processes_equal_uninterrupted_ones(together):
    for straight, resumed in zip(states(together, "straight"), states(together, "resumed")):
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_one_broken_rank_stops_both_before_anything_moves(together, tmp_path):
    said = [(together / f"diverged-{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "step 2" in said[0]
    stage = LineStage(alone(), jitter=0.0, broken_at=3)
    single = Trainer(stage, run_config(steps=6, accumulate=2), alone(), tmp_path)
    with pytest.raises(DivergedError, match="step 2"):
        single.run()
    for state in states(together, "broken"):
        for name, value in weights_of(single).items():
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-5)


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.agree(1.5, 2.0) == (1.5, 2.0)
        assert world.mean(torch.tensor(3.0)) == 3
        world.barrier()


@pytest.mark.parametrize("name", ["cudda", "meta", "cuda:99"])
def test_impossible_devices_are_refused(name):
    with pytest.raises(ValueError, match=r"device|CUDA"):
        pick_device(name)
