import json
import os
import signal
import time

import pytest
import torch

from helios.errors import DivergedError, ResumableError
from helios.training import Trainer, checkpoint

from .toys import LineStage, alone, run_config, same, weights_of


def trained(folder, *, resume=None, stage=None, **changes):
    stage = stage or LineStage(alone())
    trainer = Trainer(stage, run_config(**changes), alone(), folder)
    if resume is not None:
        trainer.resume(resume)
    trainer.run()
    return trainer


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_results(tmp_path):
    trainer = trained(tmp_path, steps=6, sample_every=3)
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert {
        "config.json",
        "log.jsonl",
        "report.json",
        "model/line.pt",
        "samples/step-00000003/weights.txt",
        "samples/final/weights.txt",
        "checkpoints/step-00000006/manifest.json",
    } <= names
    assert any(name.startswith("tensorboard/") for name in names)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["trainer"]["optimizer"]["lr"] == 0.05
    saved = torch.load(tmp_path / "model/line.pt")
    assert torch.equal(saved["0.weight"], trainer.weights["0.weight"])
    steps = [record["step"] for record in records(tmp_path)]
    assert steps == [1, 5, 6]


def test_loss_falls(tmp_path):
    trained(tmp_path, steps=60, log_every=20)
    losses = [r["loss"] for r in records(tmp_path) if "loss" in r]
    assert losses[-1] < 0.2 * losses[0]


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    halves = LineStage(alone(), batch=4, jitter=0.0)
    whole = LineStage(alone(), batch=8, jitter=0.0)
    two = trained(tmp_path / "two", stage=halves, steps=5, accumulate=2)
    one = trained(tmp_path / "one", stage=whole, steps=5)
    for name, value in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], value, atol=1e-5, rtol=1e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    straight = trained(tmp_path / "a")
    stage = LineStage(alone(), stop_at=4)
    with pytest.raises(ResumableError, match="step 4"):
        trained(tmp_path / "b", stage=stage)
    assert (tmp_path / "b/model/line.pt").is_file()
    torch.randn(17)  # whatever happens in between
    found = checkpoint.find(tmp_path / "b/checkpoints", "auto", print)
    assert found is not None
    resumed = trained(tmp_path / "b", resume=found, stage=LineStage(alone(), seed=5))
    assert same(weights_of(straight), weights_of(resumed))
    mine = [(r["step"], r.get("loss")) for r in records(tmp_path / "b") if r["step"] > 5]
    theirs = [(r["step"], r.get("loss")) for r in records(tmp_path / "a") if r["step"] > 5]
    assert mine == theirs


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_moves_nothing(tmp_path, accumulate):
    good = trained(tmp_path / "good", steps=3, accumulate=accumulate)
    stage = LineStage(alone(), broken_at=3 * accumulate + 1)
    trainer = Trainer(stage, run_config(steps=10, accumulate=accumulate), alone(), tmp_path / "bad")
    with pytest.raises(DivergedError, match="step 4"):
        trainer.run()
    # The learning rate of the long run differs, so compare with its own state before the step.
    before = Trainer(
        LineStage(alone(), stop_at=3 * accumulate),
        run_config(steps=10, accumulate=accumulate),
        alone(),
        tmp_path / "before",
    )
    with pytest.raises(ResumableError):
        before.run()
    assert same(weights_of(before), weights_of(trainer))
    assert good.step == 3
    assert not (tmp_path / "bad/model").exists()


def test_time_budget_spreads_the_schedule_and_ends_in_time(tmp_path):
    class Slow(LineStage):
        def batch(self, progress):
            time.sleep(0.01)
            return super().batch(progress)

    stage = Slow(alone())
    begin = time.monotonic()
    trainer = trained(tmp_path, stage=stage, max_seconds=0.6, steps=10**6, log_every=10**6)
    assert 0.5 < time.monotonic() - begin < 5
    assert 3 < trainer.step < 80
    assert stage.seen == sorted(stage.seen)
    assert stage.seen[0] == 0.0
    assert stage.seen[-1] > 0.8


def test_other_settings_are_not_resumed(tmp_path):
    trained(tmp_path, steps=2)
    path = tmp_path / "checkpoints/step-00000002"
    more = trained(tmp_path, resume=path, steps=4)
    assert more.step == 4
    with pytest.raises(ValueError, match=r"trainer\.seed"):
        trained(tmp_path, resume=path, steps=4, seed=1)


def test_a_full_disk_is_survived_twice(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    stage = LineStage(alone())
    trainer = Trainer(stage, run_config(steps=9, checkpoint_every=2), alone(), tmp_path)
    with pytest.raises(OSError, match="No space"):
        trainer.run()
    assert trainer.step == 6
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_echoed_signal_counts_once_and_the_end_is_the_model(tmp_path):
    class Echoed(LineStage):
        def batch(self, progress):
            made = super().batch(progress)
            if self.drawn == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
            return made

    with pytest.raises(ResumableError, match="step 2"):
        trained(tmp_path, stage=Echoed(alone()))
    assert (tmp_path / "model/line.pt").is_file()
    assert (tmp_path / "checkpoints/step-00000002/manifest.json").is_file()


def test_a_signal_at_the_end_leaves_the_model_and_skips_the_rest(tmp_path):
    class Late(LineStage):
        def save(self, averaged, folder):
            os.kill(os.getpid(), signal.SIGTERM)
            super().save(averaged, folder)

    trained(tmp_path, stage=Late(alone()), steps=2)
    assert (tmp_path / "model/line.pt").is_file()
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "samples").exists()
