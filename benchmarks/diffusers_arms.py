"""diffusers as the engine to beat: its pipeline on the very tensors of the subject.

``helios bench --against diffusers`` finds this file in a checkout; the package itself never imports
diffusers. The transformers of all arms share one storage. What an arm hands over is the cheapest
form its user could want: frames are made bytes on the device and copied to the host once per chunk,
right after they are decoded; diffusers' own conversion of the whole video to float32 at the end is
not charged to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan, HeliosDMDScheduler, HeliosPyramidPipeline
from diffusers import HeliosTransformer3DModel as Transformer
from diffusers.models import attention_dispatch
from torch import Tensor, nn

from helios.diffusion import pyramid
from helios.evaluation import Arm, Subject, Visit, visit_of
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS
from helios.history import CHUNK_POSITIONS, LONG_POSITIONS, MID_POSITIONS, SHORT_POSITIONS
from helios.kernels import attention, machine_of
from helios.model import HeliosTransformer, published_name

__all__ = ["arms"]

logging.getLogger("diffusers").setLevel(logging.ERROR)


class DiffusersArm(Arm):
    """diffusers' pyramid pipeline with its few-step scheduler.

    Args:
        name: as it is printed.
        subject: weights and inputs.
        transformer: over the tensors of ``subject``.
        vae: a copy of the subject's autoencoder.
        tuned: let cuDNN measure its algorithms, as the fast scripts do.
    """

    kind = "baseline"

    def __init__(
        self, name: str, subject: Subject, transformer: Any, vae: Any, *, tuned: bool
    ) -> None:
        self.name, self.subject, self.tuned = name, subject, tuned
        self.transformer, self.vae = transformer, vae
        scheduler = HeliosDMDScheduler.from_config(subject.schedule.to_json("renoise"))
        self.pipeline = HeliosPyramidPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=vae,
            scheduler=scheduler,
            transformer=transformer,
            is_distilled=True,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=self.tuned, deterministic=False, allow_tf32=True
        ):
            yield

    @torch.no_grad()
    def run(self, steps: tuple[int, ...], chunks: int, seed: int) -> Visit:
        arrivals: list[float] = []
        generator = torch.Generator(self.subject.device).manual_seed(seed)
        with lent_factor(self.subject), self._delivering(arrivals):
            arrivals.append(time.perf_counter())
            latents = self.pipeline(
                prompt_embeds=self.subject.text,
                height=self.subject.height,
                width=self.subject.width,
                num_frames=chunks * CHUNK_FRAMES,
                guidance_scale=1.0,
                generator=generator,
                pyramid_num_inference_steps_list=list(steps),
                output_type="latent",
            ).frames
        return visit_of(arrivals, latents[0, :, :CHUNK_LATENTS].float().cpu())

    @contextmanager
    def _delivering(self, arrivals: list[float]) -> Iterator[None]:
        """Take every chunk to the host as soon as it is decoded, and note when it arrived."""
        decode = self.vae.decode

        def deliver(*args: Any, **kwargs: Any) -> Any:
            answer = decode(*args, **kwargs)
            as_bytes(answer[0]).cpu().numpy()
            arrivals.append(time.perf_counter())
            return answer

        self.vae.decode = deliver
        try:
            yield
        finally:
            self.vae.decode = decode

    @torch.no_grad()
    def velocity(self, x: Tensor, timestep: Tensor) -> Tensor:
        window, device = self.subject.window.to(dtype=self.subject.dtype), self.subject.device

        def places(frames: Sequence[int]) -> Tensor:
            return torch.tensor([frames], device=device)

        return self.transformer(
            hidden_states=x.to(self.subject.dtype),
            timestep=timestep,
            encoder_hidden_states=self.subject.text,
            indices_hidden_states=places(CHUNK_POSITIONS),
            indices_latents_history_short=places(SHORT_POSITIONS),
            indices_latents_history_mid=places(MID_POSITIONS),
            indices_latents_history_long=places(LONG_POSITIONS),
            latents_history_short=window.short,
            latents_history_mid=window.mid,
            latents_history_long=window.long,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def frames(self, latents: Tensor) -> Tensor:
        config, dtype = self.subject.codec.config, self.vae.dtype
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(config.latents_mean, device=latents.device, dtype=dtype).view(shape)
        scale = 1 / torch.tensor(config.latents_std, device=latents.device, dtype=dtype).view(shape)
        return self.vae.decode(latents.to(dtype) / scale + mean, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return as_bytes(self.frames(latents))

    def modules(self) -> Sequence[nn.Module]:
        return (self.transformer, self.vae)


def as_bytes(frames: Tensor) -> Tensor:
    """``[B, 3, T, H, W]`` in [-1, 1] as ``uint8 [B, T, H, W, 3]``."""
    levels = frames.mul(127.5).add_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).movedim(1, -1).contiguous()


@contextmanager
def lent_factor(subject: Subject) -> Iterator[None]:
    """Our factor of the block noise's covariance.

    It is singular, and whether a float32 factorisation succeeds depends on the machine; where it
    does, it gives this.
    """
    own = torch.linalg.cholesky
    factor = pyramid._block_factor(subject.schedule.gamma).to(subject.device)
    torch.linalg.cholesky = lambda _: factor
    try:
        yield
    finally:
        torch.linalg.cholesky = own


def shared_transformer(transformer: HeliosTransformer) -> Any:
    """Diffusers' class over the storage of our parameters."""
    config = {k: v for k, v in transformer.config.to_json().items() if k[0] != "_"}
    config.pop("restrict_self_attn", None)
    with torch.device("meta"):
        model = Transformer(**config)
    tensors = {
        published_name(name): value.detach() for name, value in transformer.named_parameters()
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    # The frequencies of the rotation are no parameters; they are made anew on the device.
    with transformer.device:
        model.rope = type(model.rope)(rope_dim=config["rope_dim"], theta=config["rope_theta"])
    return model.eval().requires_grad_(False)


def copied_vae(subject: Subject, dtype: torch.dtype) -> Any:
    """Diffusers' autoencoder with the subject's weights in ``dtype``."""
    config = {k: v for k, v in subject.codec.config.to_json().items() if k[0] != "_"}
    with subject.device:
        vae = AutoencoderKLWan(**config)
    vae.load_state_dict(subject.codec.network.state_dict(), strict=True)
    return vae.to(dtype=dtype).eval().requires_grad_(False)


def arms(subject: Subject) -> list[Callable[[], Arm]]:
    """Makers of every baseline that makes sense on the subject's device, the best ones first."""
    makers = _Makers(subject)
    if subject.device.type != "cuda":
        narrow = [makers.eager_narrow] if subject.dtype != torch.float32 else []
        return [makers.eager, *narrow]
    return [
        makers.compiled_narrow,
        makers.flash3,
        makers.flash3_compiled_decoder,
        makers.compiled_decoder,
        makers.compiled,
        makers.eager,
    ]


class _Makers:
    """The arms, each made when its turn comes; what is compiled is made once."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._fast: dict[str, Any] = {}
        self._vae: Any = None

    def eager(self) -> Arm:
        return self._eager("diffusers eager", torch.float32)

    def eager_narrow(self) -> Arm:
        dtype = self.subject.dtype
        return self._eager(f"diffusers eager, {_short(dtype)} decoder", dtype)

    def _eager(self, name: str, dtype: torch.dtype) -> Arm:
        transformer = shared_transformer(self.subject.transformer)
        # A backend set on any model becomes the default of all that name none.
        transformer.set_attention_backend("native")
        vae = copied_vae(self.subject, dtype)
        return DiffusersArm(name, self.subject, transformer, vae, tuned=False)

    def compiled(self) -> Arm:
        return self._compiled("cuDNN", "fp32 decoder", copied_vae(self.subject, torch.float32))

    def compiled_narrow(self) -> Arm:
        return self._narrow_decoder("cuDNN")

    def compiled_decoder(self) -> Arm:
        return self._compiled("cuDNN", "compiled decoder", self._compiled_vae())

    def flash3(self) -> Arm:
        plug_flash3(self.subject.device)
        return tried(self._narrow_decoder("FA3"))

    def flash3_compiled_decoder(self) -> Arm:
        plug_flash3(self.subject.device)
        return tried(self._compiled("FA3", "compiled decoder", self._compiled_vae()))

    def _narrow_decoder(self, attention: str) -> DiffusersArm:
        dtype = self.subject.dtype
        vae = copied_vae(self.subject, dtype)
        return self._compiled(attention, f"{_short(dtype)} decoder", vae)

    def _compiled_vae(self) -> Any:
        if self._vae is None:
            self._vae = copied_vae(self.subject, self.subject.dtype)
            self._vae.decoder.compile()
        return self._vae

    def _compiled(self, attention: str, decoder: str, vae: Any) -> DiffusersArm:
        if attention not in self._fast:
            # Three sizes with each kind of attention: more than the compiler keeps unasked, and
            # what it does not keep it runs uncompiled.
            torch._dynamo.config.recompile_limit = 64
            transformer = shared_transformer(self.subject.transformer)
            transformer.set_attention_backend(_BACKENDS[attention])
            transformer.compile_repeated_blocks(dynamic=False)
            self._fast[attention] = transformer
        name = f"diffusers compiled, {attention}, {decoder}"
        return DiffusersArm(name, self.subject, self._fast[attention], vae, tuned=True)


_BACKENDS = {"cuDNN": "_native_cudnn", "FA3": "_flash_3"}


def plug_flash3(device: torch.device) -> None:
    """Give diffusers the FlashAttention-3 that is installed, by whichever of its names.

    diffusers looks for the build from source only.

    Raises:
        RuntimeError: where there is none that runs on ``device``.
    """
    if not machine_of(device).runs_flash3:
        raise RuntimeError("FlashAttention-3 needs a Hopper GPU and the package fa3-fwd")

    def call(**inputs: Any) -> tuple[Tensor, Tensor]:
        query = inputs["q"]
        out = attention(query, inputs["k"], inputs["v"], backend="flash3")
        # The log-sum-exp, which nobody reads: laid out as the operator declares it.
        return out, out.new_empty(*query.shape[:3]).transpose(1, 2)

    attention_dispatch._CAN_USE_FLASH_ATTN_3 = True
    attention_dispatch.flash_attn_3_func = call


def tried(arm: DiffusersArm) -> DiffusersArm:
    """The arm, once it has made a forward pass.

    Raises:
        RuntimeError: with one line, whatever went wrong inside compiler or kernel.
    """
    subject = arm.subject
    try:
        with arm.active():
            arm.velocity(subject.noisy(0), subject.told(0))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        line = f"does not run with diffusers ({type(error).__name__}: {reason})"
        raise RuntimeError(f"{arm.name} {line}") from error
    return arm


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(dtype, str(dtype))
