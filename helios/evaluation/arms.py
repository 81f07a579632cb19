"""The engines of this package, as arms of the throughput benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from helios.diffusion import Pyramid
from helios.evaluation.subject import Subject
from helios.evaluation.throughput import Arm, PipelineArm
from helios.kernels import plain
from helios.pipeline import EngineConfig, GenerationConfig, Pipeline

__all__ = ["own_arms"]


class _PlainArm(PipelineArm):
    """Without fused kernels."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Only plain forms run."""
        with plain():
            yield


def own_arms(subject: Subject) -> list[Callable[[], Arm]]:
    """Makers of what this package offers on the subject's device, in the order of its exactness."""
    makers = _Makers(subject)
    fused = [makers.unfused] if subject.device.type == "cuda" else []
    return [makers.helios, *fused, makers.history_once_a_scale, makers.history_once_a_chunk]


class _Makers:
    """One method per arm; its name is what ``--skip`` takes."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def helios(self) -> Arm:
        """As a user gets it."""
        return PipelineArm("helios", "exact", self._pipeline(EngineConfig()), self.subject)

    def unfused(self) -> Arm:
        """Plain kernels and no graphs: what fusing is worth."""
        pipeline = self._pipeline(EngineConfig(graphs=False))
        return _PlainArm("helios, plain kernels", "exact", pipeline, self.subject)

    def history_once_a_scale(self) -> Arm:
        """An approximation, see ``EngineConfig``."""
        pipeline = self._pipeline(EngineConfig(reuse_history="scale"))
        return PipelineArm("helios, history once a scale", "approximate", pipeline, self.subject)

    def history_once_a_chunk(self) -> Arm:
        """An approximation, see ``EngineConfig``."""
        pipeline = self._pipeline(EngineConfig(reuse_history="chunk"))
        return PipelineArm("helios, history once a chunk", "approximate", pipeline, self.subject)

    def _pipeline(self, engine: EngineConfig) -> Pipeline:
        subject = self.subject
        defaults = GenerationConfig(
            height=subject.height,
            width=subject.width,
            plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
            guidance=None,
            distilled=True,
        )
        return Pipeline(
            subject.transformer,
            subject.codec,
            None,
            defaults,
            subject.schedule,
            name=subject.name,
            engine=engine,
        )
