"""The judge of scenes: a small network that reads attributes off the pixels of one chunk.

Pixels, never latents: a judge of latents reads cues that no person sees (specification "tiny
model", section 4, "By eye"). No two objects of a scene share a colour, so the judge asks of each
colour: is it there, and which shape, size and material has it? For that every colour gathers its
own features with a spatial attention map per frame; the heads are shared between the colours.

    frames ─ 2-D trunk with temporal shifts ─┬─ per colour: attend, mix in time ─ object, motion
                                             └─ whole frame: mix in time ─ setting, camera
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from helios.errors import CheckpointCorruptError, CheckpointError
from helios.evaluation.reading import ObjectReading, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["JudgeConfig", "Opinion", "SceneJudge", "channels_last", "to_input"]

STRIDE = 2
"""Every second frame is looked at: the fastest motion of a scene takes some twenty frames."""

GRID = (2, 3)
"""Rows and columns of the coarse map from which setting and camera are read."""


LAG = 8
"""Looked-at frames between two that are compared for the camera: half a chunk, within which it
moves the scene by five to twenty pixels."""

REACH = (1, 4)
"""Rows and columns, of 1/4 resolution, within which a place is looked for again."""

SHARPNESS = 12.0
"""Factor on the cosine of two places' features before the softmax over displacements."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Names of the classes and widths of the layers.

    Attributes:
        colours, shapes, sizes, materials, motions, settings, cameras: class names, in the order
            of the heads.
        widths: channels at 1/2, 1/4 and 1/8 of the resolution.
        hidden: channels of the temporal layers.
    """

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    sizes: tuple[str, ...]
    materials: tuple[str, ...]
    motions: tuple[str, ...]
    settings: tuple[str, ...]
    cameras: tuple[str, ...]
    widths: tuple[int, int, int] = (32, 64, 128)
    hidden: int = 128

    def __post_init__(self) -> None:
        """Refuse empty or repeated class names and widths the temporal shift cannot divide."""
        for name in ("colours", "shapes", "sizes", "materials", "motions", "settings", "cameras"):
            classes = getattr(self, name)
            if not classes or len(set(classes)) != len(classes):
                raise ValueError(f"{name} must be distinct and not empty, got {classes}")
        if len(self.widths) != 3 or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"widths must be three multiples of 8, got {self.widths}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be positive, got {self.hidden}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JudgeConfig:
        """The inverse of :meth:`to_json`; unknown or missing names are refused.

        Raises:
            CheckpointError: naming what does not fit.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise CheckpointError(f"the judge's configuration has unknown fields: {unknown}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        try:
            return cls(**plain)
        except (TypeError, ValueError) as error:
            raise CheckpointCorruptError(f"the judge's configuration: {error}") from None


@dataclass(frozen=True)
class Opinion:
    """The judge's logits for a batch; ``N`` counts classes, ``K`` colours.

    Attributes:
        present: ``[B, K]``, above zero where the colour is there.
        shape, size, material: ``[B, K, N]``, meaningful where the colour is there.
        main: ``[B, K]``, highest at the object that moves.
        motion, setting, camera: ``[B, N]``.
    """

    present: Tensor
    shape: Tensor
    size: Tensor
    material: Tensor
    main: Tensor
    motion: Tensor
    setting: Tensor
    camera: Tensor

    @staticmethod
    def mean(opinions: list[Opinion]) -> Opinion:
        """The average of several looks at the same videos."""
        return Opinion(
            *(
                torch.stack([getattr(opinion, field.name) for opinion in opinions]).mean(0)
                for field in fields(Opinion)
            )
        )


class SceneJudge(nn.Module):
    """Frames in, :class:`Opinion` or :class:`Reading` out."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        half, quarter, eighth = config.widths
        hidden, colours = config.hidden, len(config.colours)
        # Blocks of 2x2 pixels, and where in the frame they are.
        self.stem = Convolution(3 * 4 + 4, half)
        self.at_half = Residual(half, shift=False)
        self.to_quarter = Convolution(half, quarter, stride=2)
        self.at_quarter = Residual(quarter)
        self.to_eighth = Convolution(quarter, eighth, stride=2)
        self.at_eighth = nn.Sequential(Residual(eighth), Residual(eighth, dilation=2))
        self.look = nn.Conv2d(eighth, colours, 1)
        self.colour = nn.Parameter(torch.randn(colours, hidden) * 0.5)
        self.object_in = nn.Linear(eighth + 5 + quarter, hidden)
        self.displacement = Displacement(quarter, hidden)
        self.scene_in = nn.Linear(eighth * GRID[0] * GRID[1], hidden)
        self.object_mix = nn.Sequential(*(TimeMix(hidden, d) for d in (1, 2, 4)))
        self.scene_mix = nn.Sequential(*(TimeMix(hidden, d) for d in (1, 3)))
        self.scene_to_object = nn.Linear(hidden, hidden)
        self.object_heads = Heads(
            2 * hidden,
            {
                "present": 1,
                "shape": len(config.shapes),
                "size": len(config.sizes),
                "material": len(config.materials),
                "main": 1,
                "motion": len(config.motions),
            },
        )
        self.scene_heads = Heads(
            2 * hidden, {"setting": len(config.settings), "camera": len(config.cameras)}
        )
        channels_last(self)

    def forward(self, frames: Tensor) -> Opinion:
        """Logits of a batch of short clips, seen as given.

        Args:
            frames: float ``[B, T, 3, H, W]`` in [-1, 1]; height and width multiples of 8.

        Raises:
            ValueError: on another shape.
        """
        looks, objects, scene = self._encode(frames)
        batch, colours = objects.shape[:2]
        per_object = self.object_heads(_pool(objects.flatten(0, 1)).unflatten(0, (batch, colours)))
        per_scene = self.scene_heads(_pool(scene))
        main = per_object["main"].squeeze(-1)
        # Motion is that of whichever object is thought to move; the softmax lets both learn.
        weight = main.softmax(dim=1).unsqueeze(-1)
        # The brightest spot of a colour's map speaks for the colour directly; this is what teaches
        # the map where the object is.
        brightest = looks.amax(dim=-1).unflatten(0, (batch, -1)).mean(dim=1)
        return Opinion(
            present=per_object["present"].squeeze(-1) + brightest,
            shape=per_object["shape"],
            size=per_object["size"],
            material=per_object["material"],
            main=main,
            motion=(weight * per_object["motion"]).sum(dim=1),
            setting=per_scene["setting"],
            camera=per_scene["camera"],
        )

    def opinion(self, frames: Tensor) -> Opinion:
        """Logits for whole chunks: the mean over the even and the odd frames.

        Args:
            frames: uint8 ``[B, T, H, W, 3]`` with T of at least 2, usually 33.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] < STRIDE:
            raise ValueError(
                f"frames must be uint8 [B, T, H, W, 3] with T >= {STRIDE}, "
                f"got {frames.dtype} {tuple(frames.shape)}"
            )
        length = frames.shape[1] // STRIDE * STRIDE
        looks = [frames[:, start:length:STRIDE] for start in range(STRIDE)]
        return Opinion.mean([self(to_input(look)) for look in looks])

    @torch.no_grad()
    def features(self, frames: Tensor, batch_size: int = 32) -> Tensor:
        """What the judge sees in chunks before it decides: means over time, float32 ``[B, F]``.

        The scene's features beside the objects', each colour by how surely it is there; the heads
        that name attributes read the same numbers.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, any device.
            batch_size: chunks looked at at once.
        """
        if self.training:
            raise RuntimeError("the judge must be in evaluation mode to measure")
        device = self.colour.device
        parts = []
        for part in frames.split(batch_size):
            even = to_input(part[:, : part.shape[1] // STRIDE * STRIDE : STRIDE].to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                looks, objects, scene = self._encode(even)
            brightest = looks.amax(dim=-1).unflatten(0, (len(part), -1)).mean(dim=1)
            weight = brightest.float().sigmoid()[:, :, None]
            seen = (weight * objects.float().mean(dim=-1)).sum(dim=1)
            parts.append(torch.cat((scene.float().mean(dim=-1), seen), dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def read(self, frames: Tensor, batch_size: int = 32) -> list[Reading]:
        """What is seen in each of the chunks ``frames``, uint8 ``[B, T, H, W, 3]``, any device."""
        if self.training:
            raise RuntimeError("the judge must be in evaluation mode to read")
        device = self.colour.device
        readings: list[Reading] = []
        for part in frames.split(batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                opinion = self.opinion(part.to(device))
            readings += self._readings(opinion)
        return readings

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of colours, objects over time ``[B, K, hidden, T]``, scene ``[B, hidden, T]``."""
        if frames.ndim != 5 or frames.shape[2] != 3 or any(n % 8 for n in frames.shape[3:]):
            raise ValueError(f"frames must be [B, T, 3, 8m, 8n], got {tuple(frames.shape)}")
        batch, time = frames.shape[:2]
        fine, features = self._trunk(frames.flatten(0, 1), time)
        whole = F.adaptive_avg_pool2d(features, GRID).flatten(1)
        seen = self.scene_in(whole).unflatten(0, (batch, time)) + self.displacement(fine, time)
        scene = self.scene_mix(seen.transpose(1, 2))
        looks = self.look(features).float().flatten(2)
        objects = self._objects(looks, features, fine, batch, scene)
        return looks, objects, scene

    def _trunk(self, frames: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """Features at 1/4 and at 1/8 of the resolution."""
        images = F.pixel_unshuffle(frames, 2)
        rows, columns = images.shape[-2:]
        y = torch.linspace(-1, 1, rows, device=images.device, dtype=images.dtype)
        x = torch.linspace(-1, 1, columns, device=images.device, dtype=images.dtype)
        place = torch.stack(torch.meshgrid(y, x, indexing="ij"))
        # With the squares there are sixteen channels, which matrix units like.
        place = torch.cat((place, place.square())).expand(len(images), -1, -1, -1)
        features = torch.cat((images, place), dim=1).contiguous(memory_format=torch.channels_last)
        features = self.to_quarter(self.at_half(self.stem(features), time))
        fine = self.at_quarter(features, time)
        features = self.to_eighth(fine)
        for block in self.at_eighth:
            features = block(features, time)
        return fine, features

    def _objects(
        self, looks: Tensor, features: Tensor, fine: Tensor, batch: int, scene: Tensor
    ) -> Tensor:
        """Each colour's features over time, ``[B, K, hidden, T]``; ``looks`` are its maps."""
        rows, columns = features.shape[-2:]
        attention = looks.softmax(dim=-1)
        y = torch.linspace(-1, 1, rows, device=features.device)
        x = torch.linspace(-1, 1, columns, device=features.device)
        place = torch.stack(torch.meshgrid(y, x, indexing="ij")).flatten(1).T
        # Sums, not products of matrices: those would run in bf16, too coarse for places.
        weight = attention.unsqueeze(-1)
        centre = (weight * place).sum(dim=-2)
        spread = (weight * (place - centre.unsqueeze(-2)).square()).sum(dim=-2)
        spread = spread.clamp_min(1e-6).sqrt()
        seen = attention.to(features.dtype) @ features.flatten(2).transpose(1, 2)
        peak = looks.amax(dim=-1, keepdim=True) / 8
        maps = looks.unflatten(-1, (rows, columns))
        maps = F.interpolate(maps, fine.shape[-2:], mode="bilinear").flatten(2).softmax(dim=-1)
        near = maps.to(fine.dtype) @ fine.flatten(2).transpose(1, 2)
        parts = (seen.float(), centre, spread, peak, near.float())
        values = torch.cat(parts, dim=-1).to(features.dtype)
        hidden = self.object_in(values).unflatten(0, (batch, -1)).permute(0, 2, 3, 1)
        hidden = hidden + self.colour.to(hidden.dtype)[:, :, None]
        around = self.scene_to_object(scene.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + around[:, None]
        return self.object_mix(hidden.flatten(0, 1)).unflatten(0, (batch, -1))

    def _readings(self, opinion: Opinion) -> list[Reading]:
        config = self.config
        present = (opinion.present > 0).tolist()
        shape, size = opinion.shape.argmax(-1).tolist(), opinion.size.argmax(-1).tolist()
        material, main = opinion.material.argmax(-1).tolist(), opinion.main.argmax(-1).tolist()
        motion, setting = opinion.motion.argmax(-1).tolist(), opinion.setting.argmax(-1).tolist()
        camera = opinion.camera.argmax(-1).tolist()
        return [
            Reading(
                objects={
                    colour: ObjectReading(
                        config.shapes[shape[b][k]],
                        config.sizes[size[b][k]],
                        config.materials[material[b][k]],
                    )
                    for k, colour in enumerate(config.colours)
                    if present[b][k]
                },
                main=config.colours[main[b]],
                motion=config.motions[motion[b]],
                setting=config.settings[setting[b]],
                camera=config.cameras[camera[b]],
            )
            for b in range(len(main))
        ]


class Convolution(nn.Module):
    """3x3 convolution, batch norm, ReLU. At use the norm is an affine map of each channel."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.weight = nn.Conv2d(
            inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, h, w]`` to ``[N, outputs, h/stride, w/stride]``."""
        return F.relu(self.norm(self.weight(x)), inplace=True)


class Residual(nn.Module):
    """Two convolutions around a shortcut; some channels come from the frames before and after."""

    def __init__(self, channels: int, *, shift: bool = True, dilation: int = 1) -> None:
        super().__init__()
        self.shift = shift
        self.first = Convolution(channels, channels)
        self.second = Convolution(channels, channels, dilation=dilation)

    def forward(self, x: Tensor, time: int) -> Tensor:
        """``[B*time, channels, h, w]`` to the same shape."""
        inner = _shift(x, time) if self.shift else x
        return x + self.second(self.first(inner))


class TimeMix(nn.Module):
    """A residual convolution over three frames ``dilation`` apart, ``[N, channels, T]``."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.weight = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + F.silu(self.weight(self.norm(x)))


class Displacement(nn.Module):
    """How far the places of a frame have moved some frames later, as shares per region.

    A moving camera shifts everything by less than a pixel per frame, which features that only see
    neighbouring frames, averaged over regions, do not show.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        shifts = (2 * REACH[0] + 1) * (2 * REACH[1] + 1)
        self.project = nn.Conv2d(inputs, 16, 1)
        self.weight = nn.Linear(shifts * GRID[0] * GRID[1], outputs)

    def forward(self, x: Tensor, time: int) -> Tensor:
        """``[B*time, inputs, h, w]`` to ``[B, time, outputs]``, zero at the last ``LAG`` frames."""
        height, width = x.shape[-2:]
        lag = min(LAG, time - 1)
        places = F.normalize(self.project(x).float(), dim=1).unflatten(0, (-1, time))
        now = places[:, : time - lag]
        later = F.pad(places[:, lag:], (REACH[1], REACH[1], REACH[0], REACH[0]))
        alike = [
            (now * later[..., row : row + height, column : column + width]).sum(dim=2)
            for row in range(2 * REACH[0] + 1)
            for column in range(2 * REACH[1] + 1)
        ]
        shares = (SHARPNESS * torch.stack(alike, dim=2)).softmax(dim=2)
        regions = F.adaptive_avg_pool2d(shares.flatten(0, 1), GRID).flatten(1)
        moved = self.weight(regions).unflatten(0, (-1, time - lag))
        return F.pad(moved, (0, 0, 0, lag))


class Heads(nn.Module):
    """One linear map per named attribute, computed as one product."""

    def __init__(self, inputs: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Linear(inputs, sum(sizes.values()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``[..., inputs]`` to fp32 logits ``[..., size]`` by name."""
        parts = self.weight(x).float().split(list(self.sizes.values()), dim=-1)
        return dict(zip(self.sizes, parts, strict=True))


def to_input(frames: Tensor) -> Tensor:
    """Bytes ``[B, T, H, W, 3]`` to the network's float ``[B, T, 3, H, W]`` in [-1, 1]."""
    return frames.movedim(-1, 2).float() / 127.5 - 1


def _shift(x: Tensor, time: int) -> Tensor:
    """An eighth of the channels from the next frame, an eighth from the last; zeros at the ends."""
    eighth = x.shape[1] // 8
    clips = x.unflatten(0, (-1, time))
    moved = torch.zeros_like(clips)
    moved[:, :-1, :eighth] = clips[:, 1:, :eighth]
    moved[:, 1:, eighth : 2 * eighth] = clips[:, :-1, eighth : 2 * eighth]
    moved[:, :, 2 * eighth :] = clips[:, :, 2 * eighth :]
    return moved.flatten(0, 1)


def _pool(x: Tensor) -> Tensor:
    """Mean and maximum over time, ``[N, C, T]`` to ``[N, 2C]``."""
    return torch.cat((x.mean(dim=-1), x.amax(dim=-1)), dim=-1)


def channels_last(judge: SceneJudge) -> None:
    """Lay the 2-D weights out as the features are: the fast order on CPU and GPU."""
    for parameter in judge.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
