"""The engines of this package, as arms of the throughput benchmark."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from helios.codec import Codec, PreviewCodec, PreviewConfig, PreviewDecoder
from helios.diffusion import Pyramid
from helios.evaluation.throughput.engine import Arm, PipelineArm
from helios.evaluation.throughput.subject import Subject
from helios.kernels import machine_of, plain, simulated
from helios.model import Fp8Config, HeliosTransformer, lay_out, quantise
from helios.pipeline import EngineConfig, GenerationConfig, Pipeline

__all__ = ["own_arms"]


class _PlainArm(PipelineArm):
    """Without fused kernels."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Only plain forms run."""
        with plain():
            yield


class _WithoutFlash3Arm(PipelineArm):
    """As if FlashAttention-3 were not installed."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """The choice of the next best attention."""
        with simulated(replace(machine_of(self.subject.device), flash3=False)):
            yield


def own_arms(subject: Subject, tune_decoder: int = 0) -> list[Callable[[], Arm]]:
    """Makers of what this package offers on the subject's device, in the order of its exactness.

    Args:
        subject: the weights and inputs.
        tune_decoder: see ``EngineConfig``; the same for all.
    """
    makers = _Makers(subject, tune_decoder)
    exact = [makers.helios]
    if subject.device.type == "cuda":
        exact.append(makers.unfused)
    if machine_of(subject.device).runs_flash3:
        exact.append(makers.without_flash3)
    reused = [makers.history_once_a_scale, makers.history_once_a_chunk]
    if not machine_of(subject.device).runs_fp8:
        return [*exact, *reused]
    approximate = [makers.fp8_history_once_a_chunk, makers.fp8_history_once_a_chunk_preview]
    narrow = [makers.fp8_products, makers.fp8, makers.fp8_text_output]
    return [*exact, *narrow, *reused, *approximate]


class _Makers:
    """One method per arm; its name is what ``--skip`` takes."""

    def __init__(self, subject: Subject, tune_decoder: int) -> None:
        self.subject, self.tune_decoder = subject, tune_decoder
        self._narrow: HeliosTransformer | None = None

    def helios(self) -> Arm:
        """As a user gets it."""
        lay_out(self.subject.transformer)
        return PipelineArm("helios", "exact", self._pipeline(EngineConfig()), self.subject)

    def unfused(self) -> Arm:
        """Plain kernels and no graphs: what fusing is worth."""
        pipeline = self._pipeline(EngineConfig(graphs=False))
        return _PlainArm("helios, transformer unfused", "exact", pipeline, self.subject)

    def without_flash3(self) -> Arm:
        """What FlashAttention-3 is worth."""
        pipeline = self._pipeline(EngineConfig())
        name = "helios, without FlashAttention-3"
        return _WithoutFlash3Arm(name, "exact", pipeline, self.subject)

    def fp8_products(self) -> Arm:
        """Matrix products in e4m3, attention not."""
        transformer = _twin(self._quantised())
        for block in transformer.blocks:
            block.get_submodule("self_attention").e4m3_from = None  # type: ignore[assignment]
        pipeline = self._pipeline(EngineConfig(), transformer)
        return PipelineArm("helios, fp8 products", "rounding", pipeline, self.subject)

    def fp8(self) -> Arm:
        """Matrix products in e4m3, and attention at full size."""
        pipeline = self._pipeline(EngineConfig(), self._quantised())
        return PipelineArm("helios, fp8", "rounding", pipeline, self.subject)

    def fp8_text_output(self) -> Arm:
        """What text attention writes in e4m3 as well, which `Fp8Config` keeps by default."""
        config = Fp8Config(kept_layers=())
        pipeline = self._pipeline(EngineConfig(), quantise(_twin(self.subject.transformer), config))
        return PipelineArm("helios, fp8, text output too", "rounding", pipeline, self.subject)

    def fp8_history_once_a_chunk(self) -> Arm:
        """An approximation on top."""
        pipeline = self._pipeline(EngineConfig(reuse_history="chunk"), self._quantised())
        name = "helios, fp8, history once a chunk"
        return PipelineArm(name, "approximate", pipeline, self.subject)

    def fp8_history_once_a_chunk_preview(self) -> Arm:
        """One more: a preview decoder, random unlike the rest, so that its time alone counts."""
        config = self.subject.codec.config
        torch.manual_seed(0)
        shape = PreviewConfig(
            z_dim=config.z_dim, frames=config.temporal_ratio, pixels=config.spatial_ratio
        )
        codec = PreviewCodec(self.subject.codec, PreviewDecoder(shape))
        engine = EngineConfig(reuse_history="chunk")
        pipeline = self._pipeline(engine, self._quantised(), codec)
        name = "helios, fp8, history once a chunk, preview decoder"
        return PipelineArm(name, "approximate", pipeline, self.subject)

    def _quantised(self) -> HeliosTransformer:
        """The subject's transformer with e4m3 weights, made once."""
        if self._narrow is None:
            self._narrow = quantise(_twin(self.subject.transformer))
        return self._narrow

    def history_once_a_scale(self) -> Arm:
        """An approximation, see ``EngineConfig``."""
        pipeline = self._pipeline(EngineConfig(reuse_history="scale"))
        return PipelineArm("helios, history once a scale", "approximate", pipeline, self.subject)

    def history_once_a_chunk(self) -> Arm:
        """An approximation, see ``EngineConfig``."""
        pipeline = self._pipeline(EngineConfig(reuse_history="chunk"))
        return PipelineArm("helios, history once a chunk", "approximate", pipeline, self.subject)

    def _pipeline(
        self,
        engine: EngineConfig,
        transformer: HeliosTransformer | None = None,
        codec: Codec | None = None,
    ) -> Pipeline:
        subject = self.subject
        defaults = GenerationConfig(
            height=subject.height,
            width=subject.width,
            plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
            guidance=None,
            distilled=True,
        )
        return Pipeline(
            transformer or subject.transformer,
            codec or subject.codec,
            None,
            defaults,
            subject.schedule,
            name=subject.name,
            engine=replace(engine, tune_decoder=self.tune_decoder),
        )


def _twin(transformer: HeliosTransformer) -> HeliosTransformer:
    """Modules of its own over the same tensors."""
    tensors = (*transformer.parameters(), *transformer.buffers())
    return copy.deepcopy(transformer, {id(tensor): tensor for tensor in tensors})
