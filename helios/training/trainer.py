"""The loop: batch, loss, clip, optimizer, average, log, sample, checkpoint.

One trainer for every stage. What learns and what a step computes belong to the stage; everything
that is delicate to write twice (accumulation, agreement of ranks, exact resume, refusing values
that are not finite) is here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from helios.distributed import World
from helios.errors import CheckpointError, DivergedError, ResumableError
from helios.storage import write_json
from helios.training import checkpoint
from helios.training.config import FREE_TO_CHANGE, RunConfig, differences, to_json
from helios.training.learner import Learner
from helios.training.optim import averaged_copy
from helios.training.stage import Alternating, Player, Stage, nested, under
from helios.training.tracking import Averages, Tracker

__all__ = ["Trainer"]

MODEL = "model"
"""Where the result goes in the run's folder."""
WARM_STEPS = 3
"""Steps that compile and tune; a schedule by the clock starts counting after them."""
AGREE_EVERY = 8
"""Steps between moments at which ranks agree how far the run is and whether to stop: the hosts
need not keep in step, only their devices."""
SIGNAL_ECHO = 3.0
"""Seconds in which a repeated signal counts as the same: `timeout` sends it to the process and to
its group."""
SAVE_ATTEMPTS = 3
"""Checkpoints in a row that may fail to be written before the run gives up."""


class Trainer:
    """Trains a stage in the folder ``out``.

    Args:
        stage: what learns, built on the device of ``world``.
        config: the whole configuration; written beside the results and into every checkpoint.
        world: this rank among its peers.
        out: folder for checkpoints, log, samples and the resulting model.
    """

    def __init__(self, stage: Stage, config: RunConfig, world: World, out: Path) -> None:
        self.stage = stage
        self.config = config.trainer
        self.world = world
        self.out = out
        self.step = 0
        self._description = to_json(config)
        self._learners = {
            name: Learner(player, self.config.ema_decay, world, parked=self.config.moments_on_host)
            for name, player in self._players().items()
        }
        # The step whose loss or gradient was the first not to be finite, plus one; 0 if none. It
        # stays on the device: the optimizer reads it there, the host only now and then.
        self._broken = torch.zeros((), device=world.device)
        self._averages = Averages()
        self._elapsed = 0.0
        self._clock_start: float | None = None
        self._samples = 0
        self._asked_at: float | None = None
        self._stop = 0.0
        self._agreed: float | None = None
        self._failed_saves = 0

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The averaged parameters."""
        held = self._learners.values()
        return {n: w for one in held if one.ema is not None for n, w in one.ema.weights.items()}

    def _players(self) -> Mapping[str, Player]:
        """Who learns: several in turn, or the one model."""
        stage, optimizer = self.stage, self.config.optimizer
        if isinstance(stage, Alternating):
            return stage.players(optimizer)
        return {"": Player(module=stage.model, loss=stage.loss, optimizer=optimizer)}

    def resume(self, path: Path) -> None:
        """Go back to the moment of a checkpoint.

        Raises:
            CheckpointError: if it does not fit this model or number of ranks.
            ValueError: if it belongs to a run with other settings.
        """
        snapshot = checkpoint.load(path, self.world)
        changed = differences(snapshot.info["config"], self._description)
        refused = [name for name in changed if name not in FREE_TO_CHANGE]
        if refused:
            raise ValueError(
                f"{path} belongs to a run with other settings: {', '.join(refused)}; "
                "give the same settings, or another --out"
            )
        try:
            self._restore(snapshot.shared)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not fit this model ({error})") from None
        own = snapshot.own
        self.stage.load_state_dict(under("stage", own))
        self.step = snapshot.step
        for name, learner in self._learners.items():
            learner.updates = snapshot.info["updates"][name]
        self._elapsed = snapshot.info["elapsed"]
        self._clock_start = snapshot.info["clock_start"]
        checkpoint.set_random_state(under("random", own), self.world.device)

    def run(self) -> dict[str, float]:
        """Train to the end and write ``out/model``; returns what the stage measured.

        Raises:
            DivergedError: if a loss or gradient is not finite; nothing was updated with it.
            ResumableError: after SIGTERM or SIGUSR1, once a checkpoint is written.
        """
        begin = time.monotonic() - self._elapsed
        with (
            Tracker(self.out, active=self.world.is_main, resumed_at=self.step) as tracker,
            self._signals(),
        ):
            if self.world.is_main:
                write_json(self.out / "config.json", self._description)
            self._introduce(tracker)
            self.stage.prepare()
            tracker.say(f"data ready after {time.monotonic() - begin:.1f} s")
            self._mark = (self.step, time.monotonic())
            while (progress := self._progress(begin)) < 1.0:
                self._one_step(progress)
                self.step += 1
                if self._is_time(self.config.log_every) or self.world.device.type == "cpu":
                    self._check_finite()
                if self._is_time(self.config.log_every) or self.step == 1:
                    self._log(tracker, progress)
                if self._is_time(self.config.sample_every):
                    self._sample(f"step-{self.step:08d}")
                stopping = self._stopping
                if stopping or self._is_time(self.config.checkpoint_every):
                    self._save(tracker)
                if stopping:
                    self._write_model()
                    raise ResumableError(
                        f"stopped after step {self.step}; the model as it is now is in "
                        f"{self.out / MODEL}; go on with --resume auto"
                    )
            self._check_finite()
            if self.config.final_checkpoint:
                self._save(tracker)
            return self._finish(tracker)

    def _introduce(self, tracker: Tracker) -> None:
        held = self._learners.values()
        millions = sum(p.numel() for one in held for p in one.learning.values()) / 1e6
        length = f"{self.config.steps} steps"
        if self.config.max_seconds is not None:
            length = f"{self.config.max_seconds:g} s"
        tracker.say(
            f"{millions:.2f} M parameters, {length}, {self.world.size} x {self.world.device.type}, "
            f"{self.config.precision}, from step {self.step}"
        )

    def _progress(self, begin: float) -> float:
        """Share of the run that is over, the same on every rank; also whether to stop."""
        limit = self.config.max_seconds
        self._elapsed = time.monotonic() - begin
        if self._clock_start is None and self.step >= WARM_STEPS:
            self._clock_start = self._elapsed
        if limit is None:
            share = self.step / self.config.steps
        elif self._elapsed >= limit:
            share = 1.0
        else:
            start = self._elapsed if self._clock_start is None else self._clock_start
            share = (self._elapsed - start) / max(limit - start, 1e-9)
        if self._agreed is None or self.world.size == 1 or self.step % AGREE_EVERY == 0:
            wish = float(self._asked_at is not None)
            self._agreed, self._stop = self.world.agree(share, wish)
        # Steps are the same everywhere, clocks are not.
        return share if limit is None else self._agreed

    @property
    def _stopping(self) -> bool:
        """Whether to stop now: alone at once, among others when all know it."""
        return self._stop > 0 or (self.world.size == 1 and self._asked_at is not None)

    def _is_time(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _one_step(self, progress: float) -> None:
        turns = self.stage.turns(self.step) if isinstance(self.stage, Alternating) else ("",)
        for name in turns:
            learner = self._learners[name]
            loss = self._gradients(progress, name)
            norm = learner.clip()
            learner.step(progress, self._note_broken(loss, norm))
            self._averages.add(_of(name, {"loss": loss, "grad_norm": norm}))

    def _gradients(self, progress: float, name: str) -> Tensor:
        """Gradients of one optimizer step, over its batches and over all ranks; the mean loss."""
        device, count = self.world.device, self.config.accumulate
        objective = self._learners[name].objective
        total = torch.zeros((), device=device)
        for index in range(count):
            batch = self.stage.batch(progress)
            self._samples += len(batch)
            last = index + 1 == count
            quiet = nullcontext() if last or self.world.size == 1 else objective.no_sync()  # type: ignore[operator]
            with quiet:
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
                ):
                    loss, scalars = objective(batch)
                (loss / count).backward()
            total += loss.detach() / count
            self._averages.add(_of(name, scalars))
        return total

    def _note_broken(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 if this or an earlier step was not finite on any rank, else 0; on the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        now = self.world.maximum((~finite).float())
        self._broken = torch.where(self._broken > 0, self._broken, now * (self.step + 1))
        return (self._broken > 0).float()

    def _check_finite(self) -> None:
        """Stop if a step was not finite; since then nothing has been updated."""
        broken = int(self._broken.item())
        if broken:
            raise DivergedError(
                f"the loss or its gradient is not finite at step {broken}; parameters are those "
                "before it; lower trainer.optimizer.lr or resume from the last checkpoint"
            )

    def _log(self, tracker: Tracker, progress: float) -> None:
        values = self._averages.read()
        step, since = self._mark
        now = time.monotonic()
        rate = self._samples * self.world.size / max(now - since, 1e-9)
        values |= {"progress": progress, "samples_per_second": rate}
        for name, learner in self._learners.items():
            values |= _of(name, {"lr": learner.rate})
        values["seconds"] = self._elapsed
        values["step_ms"] = 1e3 * (now - since) / max(self.step - step, 1)
        if self.world.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated(self.world.device) / 2**30
        self._mark, self._samples = (self.step, now), 0
        tracker.record(self.step, values)

    def _sample(self, name: str) -> None:
        if self.world.is_main:
            self.stage.sample(self._averaged(), self.out / "samples" / name)
        self.world.barrier()

    def _save(self, tracker: Tracker) -> None:
        """A checkpoint; a full disk is survived, but not three times in a row."""
        self._check_finite()
        info = {
            "config": self._description,
            "updates": {name: learner.updates for name, learner in self._learners.items()},
            "elapsed": self._elapsed,
            "clock_start": self._clock_start,
        }
        own = nested("stage", self.stage.state_dict())
        own |= nested("random", checkpoint.random_state(self.world.device))
        snapshot = checkpoint.Snapshot(step=self.step, shared=self._shared(), own=own, info=info)
        try:
            checkpoint.save(
                self.out / "checkpoints", snapshot, self.world, self.config.keep_checkpoints
            )
        except OSError as error:
            self._failed_saves += 1
            if self._failed_saves >= SAVE_ATTEMPTS or self._stopping:
                raise
            tracker.say(f"checkpoint at step {self.step} could not be written ({error})")
        else:
            self._failed_saves = 0

    def _averaged(self) -> nn.Module:
        """A copy of the model, not compiled, in evaluation mode, with what is averaged."""
        averages = [one.ema for one in self._learners.values() if one.ema is not None]
        return averaged_copy(self.stage.model, averages)

    def _write_model(self) -> nn.Module | None:
        """Write the averaged weights as they are now; rank 0 gets them too."""
        averaged = None
        if self.world.is_main:
            averaged = self._averaged()
            self.stage.save(averaged, self.out / MODEL)
        self.world.barrier()
        return averaged

    def _finish(self, tracker: Tracker) -> dict[str, float]:
        """The model first: what comes after it may be cut short."""
        averaged = self._write_model()
        tracker.say(f"{self.step} steps in {self._elapsed:.0f} s; model in {self.out / MODEL}")
        report: dict[str, float] = {}
        if averaged is not None and self._asked_at is None:
            report = self.stage.measure(averaged)
            if report:
                tracker.record(self.step, report)
                write_json(self.out / "report.json", report)
        if averaged is not None and self._asked_at is None:
            self.stage.sample(averaged, self.out / "samples" / "final")
        self.world.barrier()
        return report

    def _shared(self) -> dict[str, Tensor]:
        """Everything that is learnt, the same on all ranks, by name."""
        held = self._learners.items()
        return {k: v for name, one in held for k, v in _of(name, one.tensors(), "/").items()}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, learner in self._learners.items():
            start = f"{name}/" if name else ""
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            learner.restore(own)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGUSR1 mean: finish the step, write checkpoint and model, stop."""

        def ask(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self._asked_at is None:
                self._asked_at = now
            elif now - self._asked_at > SIGNAL_ECHO:
                raise SystemExit(128 + number)

        wanted = (signal.SIGTERM, signal.SIGUSR1)
        try:
            before = {number: signal.signal(number, ask) for number in wanted}
        except ValueError:  # not the main thread: signals are someone else's business
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _of(name: str, values: Mapping[str, Any], joint: str = "_") -> dict[str, Any]:
    """``values`` of one of several learners, its name before theirs."""
    return {f"{name}{joint}{key}" if name else key: value for key, value in values.items()}
