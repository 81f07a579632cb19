"""One request, streamed: text and history to latents, latents to frames, chunk after chunk.

The loop of the specification "model and sampling", section 7. What is kept from chunk to chunk is
the history window and the generator, so memory does not grow with the length of the video.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from helios.codec import PreviewCodec, load_preview
from helios.conditioning import TextEncoder, check_prompt, fit, image_start, video_start
from helios.diffusion import Denoiser, ScheduleConfig, guide, steps
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS, LATENT_CHANNELS, latent_size
from helios.history import DriftMonitor, History, remembered
from helios.model import is_quantised
from helios.pipeline.adapters import LoraLoading
from helios.pipeline.coming import Coming, FirstFrame
from helios.pipeline.delivery import Clock, Outlet
from helios.pipeline.engine import Engine, EngineConfig
from helios.pipeline.extend import extend
from helios.pipeline.memory import available_memory
from helios.pipeline.plan import dtype_name
from helios.pipeline.request import Chunk, GenerationConfig, Request, Resolved, Video
from helios.pipeline.session import KEPT_CHUNKS, Session, StreamState, resume
from helios.pipeline.start import read_start, stretch
from helios.pipeline.texts import Texts, warn_about

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helios.codec import Codec
    from helios.history import HistoryWindow
    from helios.model import HeliosTransformer

__all__ = ["Pipeline"]


class Pipeline(LoraLoading):
    """A ready model: makes videos from requests.

    Args:
        transformer: the network, on its device and in its dtype.
        codec: autoencoder on the same device.
        text_encoder: none if texts always come encoded (``prompt_embeds``).
        defaults: what is made when a request does not say.
        schedule: noise schedule the network was trained with.
        name: what the model is called in the settings of a video.
        engine: how forward passes are made.

    Attributes:
        ahead: whether a stream begins a chunk before the one before it is delivered; None: where
            that helps, which is on CUDA.
    """

    ahead: bool | None = None

    def __init__(
        self,
        transformer: HeliosTransformer,
        codec: Codec,
        text_encoder: TextEncoder | None,
        defaults: GenerationConfig,
        schedule: ScheduleConfig,
        *,
        name: str = "",
        engine: EngineConfig | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.codec = codec
        self.text_encoder = text_encoder
        self.defaults = defaults
        self.schedule = schedule
        self.name = name
        self._engine = Engine(transformer, engine)
        self._preview: tuple[object, PreviewCodec] | None = None
        codec.trials = self._engine.config.tune_decoder

    @property
    def device(self) -> torch.device:
        """Where the network is; seeds count there."""
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype the network computes in."""
        return self.transformer.dtype

    @property
    def precision(self) -> str:
        """What the network computes in, by the name that ``helios.load`` takes."""
        return "fp8" if is_quantised(self.transformer) else dtype_name(self.dtype)

    @property
    def engine(self) -> Engine:
        """What makes the forward passes of this pipeline's transformer."""
        if self._engine.transformer is not self.transformer:
            self._engine = Engine(self.transformer, self._engine.config)
        return self._engine

    def accelerate(self, config: EngineConfig) -> None:
        """Make forward passes and frames in another way from the next chunk on.

        Raises:
            CheckpointError: if a preview decoder is named that is not there, or for another codec.
        """
        if config.preview is not None:
            self._previewing(config.preview)
        with self._weights:
            self._engine = Engine(self.transformer, config)
            self.codec.trials = config.tune_decoder

    @property
    def decoder(self) -> Codec:
        """What makes the frames: the codec, or the preview decoder that was asked for."""
        folder = self._engine.config.preview
        return self.codec if folder is None else self._previewing(folder)

    def _previewing(self, folder: Path) -> PreviewCodec:
        """The codec with the preview decoder in ``folder``, where and in what the codec is now."""
        key = (folder, self.codec, self.codec.device, self.codec.dtype)
        if self._preview is None or self._preview[0] != key:
            self._preview = key, PreviewCodec(self.codec, load_preview(folder, self.codec))
        return self._preview[1]

    @property
    def runs_ahead(self) -> bool:
        """Whether streams begin a chunk before the one before it is delivered."""
        if self.ahead is not None:
            return self.ahead
        # Without graphs the host would be busy launching while a chunk waits for it.
        return self.engine.graphed or self.codec.device != self.device

    def decode_on(self, device: torch.device | str) -> None:
        """Move the autoencoder to another device, such as a second GPU: it decodes one chunk there
        while the transformer makes the next.
        """
        self.codec.to(device)

    def __call__(self, prompt: Any = None, **fields: Any) -> Video | list[Video]:
        """Make a whole video, or a list of them if ``num_videos`` is more than one.

        Args:
            prompt: what it shows; see ``Request``.
            fields: the other fields of ``Request``.

        Raises:
            ValueError: for a field that is wrong, or a video whose frames do not fit in memory.
        """
        request = Request.make(prompt=prompt, **fields)
        resolved = self.defaults.resolve(request, self.schedule)
        _check_memory(resolved, request.num_videos)
        seed = _seed(request)
        media = self._prepare(request, resolved)
        videos = [
            self._video(request, resolved, None if seed is None else seed + index, media)
            for index in range(request.num_videos)
        ]
        return videos if request.num_videos > 1 else videos[0]

    def stream(self, request: Request, *, first_frame: FirstFrame | None = None) -> Iterator[Chunk]:
        """Make a video chunk by chunk; each is yielded as soon as it is decoded.

        The request is checked, and its image or video read, before this returns.

        Args:
            request: what to make.
            first_frame: called with the first frame of the video ``uint8 [H, W, 3]``, which is
                decoded alone before the rest of its chunk; it equals the frame in the chunk up to
                rounding.

        Raises:
            ValueError: for a field that is wrong.
        """
        _check_single(request)
        resolved = self.defaults.resolve(request, self.schedule, endless=True)
        media = self._prepare(request, resolved)
        return self._chunks(request, resolved, _seed(request), media, first_frame)

    def session(self, request: Request, *, keep: int = KEPT_CHUNKS) -> Session:
        """A stream with controls between chunks; see ``Session``.

        Args:
            request: what to make, as in ``stream``.
            keep: chunk borders that ``Session.branch`` can go back to.

        Raises:
            ValueError: for a field that is wrong.
        """
        _check_single(request)
        resolved = self.defaults.resolve(request, self.schedule, endless=True)
        media = self._prepare(request, resolved)
        return self._session(request, resolved, _seed(request), media, keep=keep)

    def resume(
        self,
        path: str | Path,
        *,
        num_frames: int | None = None,
        callback: Callable[[Chunk], None] | None = None,
        keep: int = KEPT_CHUNKS,
    ) -> Session:
        """Go on with a saved session: the chunks are those it would have made, bit for bit.

        Args:
            path: what ``Session.save`` wrote.
            num_frames: another length of the whole video, chunks already made included.
            callback: called with each chunk.
            keep: chunk borders that ``Session.branch`` can go back to.

        Raises:
            InputError: if there is no such file.
            CheckpointCorruptError: if it is damaged, or of another schema.
            ValueError: if this model, device, dtype or its settings are not those of the session.
        """
        return resume(self, path, num_frames=num_frames, callback=callback, keep=keep)

    def extend(
        self,
        clip: Video | str | Path | NDArray[np.uint8],
        prompt: Any = None,
        *,
        include_clip: bool = False,
        **fields: Any,
    ) -> Video | list[Video]:
        """Continue a clip: what ``pipe(prompt, video=clip)`` makes, with the clip before it or not.

        Args:
            clip: a video of this library, a video file, or ``uint8 [T, H, W, 3]``.
            prompt: what is to come; if not given, the last prompt in the clip's own settings.
            include_clip: whether the frames of the result begin with those of the clip, in the
                size of the result and, unless ``fps`` is given, at the clip's rate.
            fields: the other fields of ``Request``; ``num_frames`` counts new frames only.

        Returns:
            The video, or a list of them if ``num_videos`` is more than one. Its latents are those
            of the new frames; ``settings["clip_frames"]`` says how many frames are the clip's.

        Raises:
            InputError: if the clip cannot be read, or nobody says what is to come.
            ValueError: for a field that is wrong.
        """
        return extend(self, clip, prompt, include_clip=include_clip, **fields)

    def settings(self, request: Request) -> dict[str, Any]:
        """What ``request`` comes to with this model, ready for JSON: embedded in files."""
        resolved = self.defaults.resolve(request, self.schedule, endless=True)
        return self.describe(request, resolved, request.seed)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the published folder layout, whole or not at all; see ``helios.pipeline.save``.

        A loaded LoRA is no part of the model; ``merge_loras`` makes it one.
        """
        from helios.pipeline.build import save

        return save(self, Path(folder), overwrite=overwrite)

    def describe(self, request: Request, resolved: Resolved, seed: int | None) -> dict[str, Any]:
        """What a resolved request came to, ready for JSON."""
        from helios import __version__

        settings: dict[str, Any] = {"helios": __version__, "model": self.name}
        settings |= resolved.settings()
        settings |= {"seed": seed, "device": self.device.type}
        settings["dtype"] = self.precision
        for field in ("image", "video"):
            value = getattr(request, field)
            if isinstance(value, str | Path):
                settings[field] = Path(value).name
            elif value is not None:
                settings[field] = "array"
        if self.loras:
            settings["lora"] = self.loras
        if self.engine.config.approximations:
            settings["approximations"] = self.engine.config.approximations
        return settings

    def _video(
        self, request: Request, resolved: Resolved, seed: int | None, media: Tensor | None
    ) -> Video:
        if resolved.num_frames is None or resolved.chunks is None:
            raise ValueError("num_frames is missing")
        shape = (resolved.num_frames, resolved.height, resolved.width, 3)
        frames = np.empty(shape, np.uint8)
        latents = []
        for chunk in self._chunks(request, resolved, seed, media):
            start = chunk.index * CHUNK_FRAMES
            frames[start : start + len(chunk.frames)] = chunk.frames
            latents.append(chunk.latents)
        return Video(
            frames=frames,
            latents=torch.cat(latents, dim=1),
            fps=resolved.fps,
            settings=self.describe(request, resolved, seed),
        )

    def _prepare(self, request: Request, resolved: Resolved) -> Tensor | None:
        """Check what depends on the parts, and read the start image or video."""
        if (resolved.height, resolved.width) != (self.defaults.height, self.defaults.width):
            warnings.warn(
                f"this checkpoint was trained at {self.defaults.width}x{self.defaults.height}; "
                f"{resolved.width}x{resolved.height} may look worse",
                stacklevel=3,
            )
        if self.text_encoder is None:
            self._check_embeds(request, resolved)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            value = getattr(request, name)
            width = self.transformer.config.text_dim
            if value is not None and value.shape[-1] != width:
                raise ValueError(
                    f"{name} has {value.shape[-1]} columns, this checkpoint reads {width}"
                )
        for text in () if resolved.track is None else resolved.track.prompts:
            warn_about(text, self.text_encoder)
        if request.generator is not None and request.generator.device.type != self.device.type:
            raise ValueError(
                f"generator is on {request.generator.device}, the pipeline on {self.device}: "
                f'make it with torch.Generator("{self.device}")'
            )
        request = read_start(request)
        if request.image is None and request.video is None:
            return None
        frames = request.video if request.image is None else np.asarray(request.image)[None]
        if resolved.compat is not None:
            frames = stretch(np.asarray(frames), resolved.height, resolved.width)
        return fit(np.asarray(frames), resolved.height, resolved.width)

    def texts(self, request: Request, resolved: Resolved) -> Texts:
        """The texts of one stream, encoded when they are needed."""
        return Texts(self, request, resolved)

    def check_words(self, text: str) -> None:
        """Warn about what of ``text`` this model cannot read."""
        warn_about(check_prompt(text), self.text_encoder)

    def _check_embeds(self, request: Request, resolved: Resolved) -> None:
        if request.prompt is not None:
            raise ValueError(
                "prompt: this checkpoint has no text encoder; give prompt_embeds instead"
            )
        if resolved.guidance is not None and request.negative_prompt_embeds is None:
            raise ValueError(
                "negative_prompt_embeds is missing: this checkpoint has no text encoder and "
                "guidance needs it; give it, or guidance_scale=1"
            )

    def _chunks(
        self,
        request: Request,
        resolved: Resolved,
        seed: int | None,
        media: Tensor | None,
        first_frame: FirstFrame | None = None,
    ) -> Iterator[Chunk]:
        """A stream without controls: while one chunk is decoded and fetched, the next is begun.

        The first chunk is not held up by the second.
        """
        generator, state = self._opening(request, resolved, seed, media)
        texts = self.texts(request, resolved)
        ahead = self.runs_ahead
        waiting: Coming | None = None
        with Outlet(self.decoder, beside=ahead) as outlet:
            while resolved.chunks is None or state.index < resolved.chunks:
                alone = first_frame if state.index == 0 else None
                try:
                    coming, state = self._begin(
                        resolved, state, generator, texts, outlet, first=alone is not None
                    )
                except Exception:
                    # What was complete before the failure is delivered before it.
                    if waiting is not None:
                        yield waiting.chunk(request.callback)
                    raise
                if alone is not None:
                    alone(coming.delivery.first())
                if waiting is not None:
                    yield waiting.chunk(request.callback)
                waiting = coming
                if not ahead or coming.index == 0:
                    yield coming.chunk(request.callback)
                    waiting = None
            if waiting is not None:
                yield waiting.chunk(request.callback)

    def _session(
        self,
        request: Request,
        resolved: Resolved,
        seed: int | None,
        media: Tensor | None,
        *,
        keep: int,
    ) -> Session:
        generator, state = self._opening(request, resolved, seed, media)
        settings = self.describe(request, resolved, seed)
        return Session(self, request, resolved, state, generator, settings=settings, keep=keep)

    def _opening(
        self, request: Request, resolved: Resolved, seed: int | None, media: Tensor | None
    ) -> tuple[torch.Generator, StreamState]:
        """Where a stream starts: its generator, and what it has to go on."""
        generator = request.generator
        if generator is None:
            generator = torch.Generator(self.device).manual_seed(seed or 0)
        history = self._start(request, resolved, generator, media)
        return generator, StreamState(
            index=0,
            history=history,
            random=generator.get_state(),
            track=resolved.track,
            drift=None if resolved.anti_drift is None else DriftMonitor(resolved.anti_drift),
        )

    def advance(
        self, resolved: Resolved, state: StreamState, generator: torch.Generator, texts: Texts
    ) -> tuple[Chunk, StreamState]:
        """One chunk, and what the stream carries on from it.

        Raises:
            FloatingPointError: if the model gives values that are not finite.
        """
        with Outlet(self.decoder, beside=False) as outlet:
            coming, after = self._begin(resolved, state, generator, texts, outlet)
            return coming.chunk(), after

    def _begin(
        self,
        resolved: Resolved,
        state: StreamState,
        generator: torch.Generator,
        texts: Texts,
        outlet: Outlet,
        *,
        first: bool = False,
    ) -> tuple[Coming, StreamState]:
        """Sample one chunk and send it; on CUDA this returns before the device is done."""
        index, track, history, drift = state.index, state.track, state.history, state.drift
        clock = Clock(self.device)
        text = texts.at(index, track)
        latents = self.sample(index, resolved, [generator], history.window(), text, texts.negative)
        clock.stop()
        delivery = outlet.send(latents, resolved.frames_of(index), first=first)
        kept, measured = latents, {}
        if drift is not None:
            drift, reading = drift.observe(latents.float().cpu())
            kept = remembered(latents, reading, generator)
            measured = {f"drift_{key}": value for key, value in vars(reading).items()}
        history = history.append(kept)
        if resolved.moves_anchor and index == 1:
            history = history.moved_anchor(latents[:, :, :1])
        prompt = None if track is None else track.at(index)
        after = StreamState(
            index=index + 1,
            history=history,
            random=generator.get_state(),
            track=track,
            drift=drift,
        )
        return Coming(index, prompt, clock, delivery, measured), after

    @torch.no_grad()
    def _start(
        self,
        request: Request,
        resolved: Resolved,
        generator: torch.Generator,
        media: Tensor | None,
    ) -> History:
        if media is None:
            rows, columns = latent_size(resolved.height, resolved.width)
            return History.empty(1, LATENT_CHANNELS, rows, columns, device=self.device)
        start = image_start if request.image is not None else video_start
        history = start(
            self.codec,
            media.to(self.device),
            generator,
            image_noise=resolved.image_noise,
            video_noise=resolved.video_noise,
        )
        return history.to(self.device)

    @torch.no_grad()
    def sample(
        self,
        chunk: int,
        resolved: Resolved,
        generators: Sequence[torch.Generator],
        window: HistoryWindow,
        text: Tensor,
        negative: Tensor | None,
    ) -> Tensor:
        """The nine clean latents of one chunk of each of B videos.

        Args:
            chunk: its number, on which the plan may depend.
            resolved: the request.
            generators: one per video.
            window: their pasts.
            text: ``[B, L, D]`` prompts.
            negative: likewise, what guidance moves away from; none: no guidance.

        Returns:
            ``[B, 16, 9, h, w]``.
        """
        shape = (1, LATENT_CHANNELS, CHUNK_LATENTS, *window.frames.shape[-2:])
        noise = torch.cat([torch.randn(shape, generator=g, device=self.device) for g in generators])
        rounding = self.dtype if resolved.compat is not None else None
        x = noise
        with self._weights:
            denoiser = self.denoiser(text, window)
            if resolved.guidance is not None and negative is not None:
                against = self.engine.bind(negative, window)
                denoiser = guide(denoiser, against, resolved.guidance, rounding)
            for state in steps(
                denoiser, resolved.plan_of(chunk), noise, resolved.schedule, generators, rounding
            ):
                self.engine.at(state.timestep)
                x = state.x
        return x

    def denoiser(self, text: Tensor, window: HistoryWindow) -> Denoiser:
        """The transformer over texts ``[B, L, D]`` and windows, for a chunk of their own."""
        self.engine.begin()
        return self.engine.bind(text, window)


def _check_single(request: Request) -> None:
    if request.num_videos != 1:
        raise ValueError(
            f"num_videos={request.num_videos}: a stream is one video; stream once per seed"
        )


def _seed(request: Request) -> int | None:
    """The seed of the first video: the one asked for, else a new one; none with a generator."""
    if request.generator is not None:
        return None
    return secrets.randbelow(2**32) if request.seed is None else request.seed


def _check_memory(resolved: Resolved, videos: int) -> None:
    if resolved.num_frames is None:
        return
    need = videos * resolved.num_frames * resolved.height * resolved.width * 3
    left = available_memory()
    if left is not None and need > 0.8 * left:
        raise ValueError(
            f"num_frames={resolved.num_frames} needs {need / 2**30:.1f} GiB for its frames and "
            f"{left / 2**30:.1f} GiB are free; use pipe.stream, or helios generate, which write "
            "as they go"
        )
