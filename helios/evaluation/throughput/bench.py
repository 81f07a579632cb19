"""How fast a model makes video: several engines on the same weights, taking turns.

The protocol of the specification "performance", section 5. Every engine is an ``Arm``
(``engine.py``). Arms share one set of tensors in one process and are visited in the order A B B A,
so that a warmer or busier machine harms nobody more than the others. A chunk counts from the
arrival of the frames before it on the host to the arrival of its own. In the same run each arm's
velocities and frames are compared with float32, so that no figure stands without its error.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from helios.evaluation.throughput.clock import Spread, timed
from helios.evaluation.throughput.engine import Arm, Visit
from helios.evaluation.throughput.subject import Subject, reference_velocity
from helios.evaluation.throughput.timeline import measure_ceiling
from helios.geometry import CHUNK_FRAMES, latent_size
from helios.pipeline import decode_flops, find_machine, forward_flops

__all__ = ["BenchConfig", "bench"]

_SPAN = 20
"""Chunks at both ends of a long visit that are compared."""
_TIMESTEPS = (385, 742, 998)
"""What the network is told in the first step at full, half and quarter size (section 6.9)."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How much is measured.

    Attributes:
        plans: steps per scale; each is measured by itself.
        warm: chunks before the clock starts, at every visit.
        chunks: chunks timed at every visit.
        rounds: visits to each arm, in alternating order.
        forwards: forward passes and decodings timed per arm.
        budget: seconds after which nothing new is begun; what is left out is named.
        seed: of noise and inputs.
    """

    plans: tuple[tuple[int, ...], ...] = ((1, 1, 1), (2, 2, 2))
    warm: int = 2
    chunks: int = 5
    rounds: int = 2
    forwards: int = 5
    budget: float = 3600.0
    seed: int = 7

    def __post_init__(self) -> None:
        """Refuse a run without a result."""
        for name in ("warm", "chunks", "rounds", "forwards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.plans:
            raise ValueError("plans must name at least one number of steps per scale")


def bench(
    subject: Subject,
    arms: Sequence[Callable[[], Arm]],
    config: BenchConfig,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every arm; see the module.

    Args:
        subject: the weights and inputs.
        arms: makers, called in order once there is time for them, so that one that cannot be made
            here (a missing feature) costs its own figures only.
        config: how much.
        say: called with a line of progress.

    Returns:
        All figures, ready for JSON and for ``report``.
    """
    run = _Run(subject, config, say)
    run.measure_reference()
    ready = [arm for make in arms if (arm := run.prepare(make)) is not None]
    for plan in config.plans:
        run.compare(ready, plan)
    return run.result()


class _Run:
    """The state of one ``bench`` call."""

    def __init__(self, subject: Subject, config: BenchConfig, say: Callable[[str], None]) -> None:
        self.subject, self.config, self.say = subject, config, say
        self.began = time.perf_counter()
        self.arms: dict[str, dict[str, Any]] = {}
        self.left_out: list[str] = []
        self.inputs = [
            (subject.noisy(scale), subject.told(_TIMESTEPS[scale]))
            for scale in reversed(range(len(_TIMESTEPS)))
        ]
        self.expected: list[Tensor] = []
        self.expected_frames = torch.empty(0)

    def note(self, line: str) -> None:
        self.say(f"[{time.perf_counter() - self.began:6.1f} s] {line}")

    def measure_reference(self) -> None:
        """Velocities and frames in float32 by the plain formulas, the same weights widened."""
        self.ceiling = measure_ceiling(self.subject.device, self.subject.dtype)
        self.expected = reference_velocity(self.subject, self.inputs)
        self.expected_frames = self.subject.reference_frames()
        self.note("float32 reference done")

    def prepare(self, make: Callable[[], Arm]) -> Arm | None:
        """One arm made, warmed up, compared with float32 and timed in its parts."""
        if self._late("an arm"):
            return None
        began = time.perf_counter()
        try:
            arm = make()
            with arm.active():
                figures = self._parts(arm, began)
        except (RuntimeError, ValueError, ImportError, torch.OutOfMemoryError) as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            self.left_out.append(f"{getattr(make, '__name__', 'an arm')}: {line}")
            self.note(f"left out: {self.left_out[-1]}")
            return None
        self.arms[arm.name] = figures
        self.note(f"{arm.name}: {_summary(figures)}")
        return arm

    def _parts(self, arm: Arm, began: float) -> dict[str, Any]:
        first = arm.run(self.config.plans[0], 1, self.config.seed)
        ready = time.perf_counter() - began
        repeat, device = self.config.forwards, self.subject.device
        forwards = [timed(partial(arm.velocity, x, t), device, repeat) for x, t in self.inputs]
        latents = self.subject.latents
        calls = [arm.library(self.subject.lengths(x)) for x, _ in self.inputs]
        decoding = timed(lambda: arm.decode(latents), device, repeat)
        return {
            "kind": arm.kind,
            "start_seconds": round(ready, 2),
            "cold_first_chunk_seconds": round(first.first, 3),
            "forward": [spread.to_json() for spread in forwards],
            "library": [one.to_json() for one in calls if one is not None],
            "decode": decoding.to_json(),
            "error": [self._error(arm, i) for i in range(len(self.inputs))],
            "decode_error": _distance(arm.frames(latents).float(), self.expected_frames, psnr=True),
            "weight_bytes": _bytes(arm.modules()),
            "plans": {},
        }

    def _error(self, arm: Arm, scale: int) -> dict[str, float]:
        return _distance(arm.velocity(*self.inputs[scale]).float(), self.expected[scale])

    def compare(self, arms: Sequence[Arm], plan: tuple[int, ...]) -> None:
        """All arms on one plan, in turn and back again."""
        seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        visits: dict[str, list[Visit]] = {arm.name: [] for arm in arms}
        peaks: dict[str, int] = {}
        for turn in range(self.config.rounds):
            for arm in arms if turn % 2 == 0 else reversed(arms):
                if self._late(f"{arm.name} at {plan}, visit {turn + 1}"):
                    continue
                with arm.active():
                    visit, peak = self._visit(arm, plan)
                visits[arm.name].append(visit)
                seconds[arm.name] += visit.seconds[self.config.warm - 1 :]
                peaks[arm.name] = max(peak, peaks.get(arm.name, 0))
                fps = CHUNK_FRAMES / statistics.median(seconds[arm.name])
                self.note(f"{arm.name} at {plan}: {fps:.2f} frames/s")
        # The same seed means the same noise for all, so the first exact arm is a measure for them.
        exact = next((visits[arm.name] for arm in arms if arm.kind == "exact"), [])
        for arm in arms:
            if seconds[arm.name]:
                figures = self._figures(plan, seconds[arm.name], visits[arm.name], peaks[arm.name])
                if exact:
                    figures["latents"] = _distance(visits[arm.name][0].latents, exact[0].latents)
                self.arms[arm.name]["plans"][_name(plan)] = figures

    def _visit(self, arm: Arm, plan: tuple[int, ...]) -> tuple[Visit, int]:
        """One stream and the bytes at its peak: the arm's weights and what it needed beside."""
        gc.collect()
        device, count = self.subject.device, self.config.warm + self.config.chunks
        if device.type != "cuda":
            return arm.run(plan, count, self.config.seed), 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        visit = arm.run(plan, count, self.config.seed)
        beside = torch.cuda.max_memory_allocated(device) - before
        return visit, beside + self.arms[arm.name]["weight_bytes"]

    def _figures(
        self, plan: tuple[int, ...], seconds: list[float], visits: Sequence[Visit], peak: int
    ) -> dict[str, Any]:
        spread = Spread.of(seconds)
        alone = [visit.first_frame for visit in visits if visit.first_frame is not None]
        flops = self._flops(plan)
        most = find_machine(self.subject.device).flops
        return spread.to_json() | {
            "frames_per_second": round(CHUNK_FRAMES / spread.median, 3),
            "first_chunk_seconds": round(min(visit.first for visit in visits), 4),
            "first_frame_seconds": round(min(alone), 4) if alone else None,
            "mfu": None if most is None else round(flops / spread.median / most, 4),
            "peak_bytes": peak,
            "steadiness": self._steadiness(visits[0]),
        }

    def _steadiness(self, visit: Visit) -> dict[str, float] | None:
        """How much later chunks of a long visit take and hold than earlier ones."""
        seconds, memory = visit.seconds[self.config.warm - 1 :], visit.memory[self.config.warm :]
        if len(seconds) < 2 * _SPAN or not memory:
            return None
        early, late = (statistics.mean(part) for part in (seconds[:_SPAN], seconds[-_SPAN:]))
        return {
            "chunks": len(seconds),
            "early_frames_per_second": round(CHUNK_FRAMES / early, 3),
            "late_frames_per_second": round(CHUNK_FRAMES / late, 3),
            "time_ratio": round(late / early, 4),
            "memory_bytes": memory[0],
            "memory_growth_bytes": max(memory) - memory[0],
        }

    def _flops(self, plan: tuple[int, ...]) -> float:
        """Operations of one chunk in the reference algorithm; skipped work is never added."""
        *forwards, decoding = self.part_flops()
        return sum(count * flops for count, flops in zip(plan, forwards)) + decoding

    def part_flops(self) -> list[float]:
        """Operations of a forward pass at each scale, coarsest first, and of decoding a chunk."""
        subject = self.subject
        rows, columns = latent_size(subject.height, subject.width)
        config, text = subject.transformer.config, subject.text.shape[-2]
        scales = [2**halvings for halvings in reversed(range(len(_TIMESTEPS)))]
        forwards = [forward_flops(config, rows, columns, text=text, scale=n) for n in scales]
        return [*forwards, decode_flops(subject.codec.config, rows, columns)]

    def _late(self, what: str) -> bool:
        if time.perf_counter() - self.began < self.config.budget:
            return False
        self.left_out.append(f"{what}: no time left")
        return True

    def result(self) -> dict[str, Any]:
        return {
            "subject": self.subject.describe(),
            "protocol": {
                "plans": [list(plan) for plan in self.config.plans],
                "warm": self.config.warm,
                "chunks": self.config.chunks,
                "rounds": self.config.rounds,
                "forwards": self.config.forwards,
                "seed": self.config.seed,
            },
            "floor": {
                "flops": self.part_flops(),
                "peak_flops_per_second": find_machine(self.subject.device).flops,
                "ceiling": asdict(self.ceiling),
            },
            "arms": self.arms,
            "left_out": self.left_out,
            "seconds": round(time.perf_counter() - self.began, 1),
        }


def _distance(found: Tensor, expected: Tensor, *, psnr: bool = False) -> dict[str, float]:
    """Relative L2 error and cosine; for frames also the PSNR after clamping to [-1, 1]."""
    a, b = found.double().flatten(), expected.to(found.device).double().flatten()
    values = {
        "relative_l2": float((a - b).norm() / b.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(a, b, dim=0)),
    }
    if psnr:
        square = float((a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean())
        values["psnr_db"] = 10 * torch.tensor(4 / max(square, 1e-20)).log10().item()
    return values


def _bytes(modules: Sequence[torch.nn.Module]) -> int:
    """Bytes of all tensors in ``modules``, shared storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


def _name(plan: Sequence[int]) -> str:
    return ",".join(str(count) for count in plan)


def _summary(figures: Mapping[str, Any]) -> str:
    scales = " + ".join(f"{scale['median_ms']:.1f}" for scale in figures["forward"])
    errors = " ".join(f"{scale['relative_l2']:.2e}" for scale in figures["error"])
    return (
        f"forward {scales} ms, decode {figures['decode']['median_ms']:.1f} ms, errors {errors}, "
        f"start {figures['start_seconds']:.1f} s"
    )
