"""Scenes to frames: surroundings in closed form, objects and their shadows by sphere tracing.

Only pixels that can matter are traced: each object inside its bounding ball's outline, its shadow
inside the shadow of that ball. Objects are drawn from far to near over the surroundings, with
several rays a pixel; everything else is smooth enough for one.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import tracing
from .motion import Poses, poses
from .scene import Scene
from .settings import ALBEDO, ANIMATED, LIGHTS, SURROUNDINGS, View
from .shapes import BOUND, CONCAVE
from .stage import FOCAL
from .tracing import Surface, Which, encode
from .vector import Vec, dot, normalise, unbind
from .vocabulary import COLOURS, SETTINGS, SHAPES

__all__ = ["render"]

CPU_FRAMES, CPU_PIXELS = 66, 1 << 13
GPU_FRAMES, GPU_PIXELS = 1056, 1 << 19
INFLATE = 1.02
SHADOW_REACH = 0.5
CONTACT_REACH = 0.7
HAZE_FROM, HAZE = 5.0, 0.06
VIGNETTE = 0.16

# Columns of an object's table: one row a frame, vectors in the object's frame.
EYE, VIEW, LAMP, UP = slice(0, 3), slice(3, 12), slice(12, 15), slice(15, 18)
SCALE, HEIGHT, BALL, SHINY, PATTERN, SHAPE = 18, 19, 20, 21, 22, 23
COLOUR, LIGHT_LAMP, LIGHT_SKY, LIGHT_FLOOR = (
    slice(24, 27),
    slice(27, 30),
    slice(30, 33),
    slice(33, 36),
)
CENTRE = slice(36, 39)


@dataclass(frozen=True)
class _Canvas:
    """Size of the picture, rays per pixel side, and how the traced pixels are cut into runs."""

    height: int
    width: int
    side: int
    run: int
    fixed: bool  # every run has the same length, for kernels of fixed shape

    @property
    def focal(self) -> float:
        return FOCAL * self.height


@dataclass(frozen=True)
class _Kernels:
    """The functions that run per ray, compiled or not."""

    begin: Callable[..., Any]
    march: Callable[..., Any]
    self_shadow: Callable[..., Any]
    slope: Callable[..., Any]
    finish: Callable[..., Any]
    shadow_begin: Callable[..., Any]
    shadow: Callable[..., Any]
    shadow_end: Callable[..., Any]


@dataclass(frozen=True)
class _Layer:
    """The k-th farthest object of every frame: its table [F,39], and which frames have one."""

    table: Tensor
    valid: Tensor


def _table(rows: Sequence[tuple[float, ...]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _layers(pose: Poses) -> list[_Layer]:
    """Objects of each frame from far to near, with everything tracing needs about them."""
    device = pose.eye.device
    count, slots, frames = pose.scale.shape
    forward = pose.view[:, None, :, 2]
    depth = ((pose.centre - pose.eye[:, None]) * forward).sum(-1)
    depth = torch.where(pose.present[..., None], depth, torch.full_like(depth, -1.0))
    order = depth.argsort(dim=1, descending=True, stable=True)
    lights = [LIGHTS[setting] for setting in SETTINGS]
    setting = pose.setting[:, None, None].expand(count, slots, frames)
    ball = _table([(BOUND[shape],) for shape in SHAPES], device)
    albedo = _table([ALBEDO[colour] for colour in COLOURS], device)
    rotation, scale = pose.rotation, pose.scale[..., None]
    lamp = _table([light.direction for light in lights], device)[setting]

    def spread(label: Tensor) -> Tensor:
        return label[..., None, None].expand(count, slots, frames, 1).float()

    columns = (
        torch.einsum("botji,botj->boti", rotation, pose.eye[:, None] - pose.centre) / scale,
        torch.einsum("btij,botjk->botik", pose.view, rotation).flatten(-2),
        torch.einsum("botji,botj->boti", rotation, lamp),
        rotation[..., 1, :],
        scale,
        pose.centre[..., 1:2],
        ball[pose.shape][:, :, None].expand(count, slots, frames, 1),
        spread(pose.material),
        spread(pose.pattern),
        spread(pose.shape),
        albedo[pose.colour][:, :, None].expand(count, slots, frames, 3),
        _table([light.lamp for light in lights], device)[setting],
        _table([light.sky for light in lights], device)[setting],
        _table([light.floor for light in lights], device)[setting],
        pose.centre,
    )
    table = torch.cat(columns, -1)
    present = pose.present[..., None].expand(count, slots, frames)
    layers = []
    for k in range(slots):
        index = order[:, k : k + 1]
        rows = table.gather(1, index[..., None].expand(-1, -1, -1, table.shape[-1]))
        valid = present.gather(1, index)
        layers.append(_Layer(rows.flatten(0, 2).contiguous(), valid.flatten()))
    return layers


def _pixels(canvas: _Canvas, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres relative to the picture's middle, x to the right [W], y up [H]."""
    x = torch.arange(canvas.width, device=device) + 0.5 - canvas.width / 2
    y = canvas.height / 2 - 0.5 - torch.arange(canvas.height, device=device)
    return x, y


def _directions(view: Tensor, canvas: _Canvas) -> Vec:
    """Unit directions of all pixels of frames with ``view`` [F,3,3]: three [F,H,W]."""
    x, y = _pixels(canvas, view.device)
    right, up, forward = (tuple(c[:, None, None] for c in unbind(view[:, row])) for row in range(3))
    x, y = x[None, None, :], y[None, :, None]
    return normalise(
        (
            right[0] * x + (up[0] * y + forward[0] * canvas.focal),
            right[1] * x + (up[1] * y + forward[1] * canvas.focal),
            right[2] * x + (up[2] * y + forward[2] * canvas.focal),
        )
    )


def _on_floor(eye: Tensor, direction: Vec) -> Tensor:
    """Distance to the floor along each ray; a large one where the ray does not go down."""
    return eye[:, 1, None, None] / (-direction[1]).clamp(min=0.012)


def _surroundings(
    eye: Tensor, view: Tensor, offset: Tensor, time: Tensor, setting: int, canvas: _Canvas
) -> tuple[Tensor, Tensor]:
    """Picture values of floor and backdrop, lit and in full shadow: two [F,H,W,3]."""
    light = LIGHTS[SETTINGS[setting]]
    d = _directions(view, canvas)
    far = _on_floor(eye, d)
    across = far / canvas.focal
    # Settings with a pool of light or a sun keep it in place; only patterns shift with the scene.
    shift = offset[:, :, None, None] * (SETTINGS[setting] in _SHIFTED)
    seen = View(
        x=eye[:, 0, None, None] + far * d[0] + shift[:, 0],
        z=eye[:, 2, None, None] + far * d[2] + shift[:, 1],
        far=far,
        across=across,
        along=across * far / eye[:, 1, None, None],
        direction=d,
        time=time[:, None, None],
    )
    floor, backdrop = SURROUNDINGS[setting](seen)
    haze = 1 - torch.exp(-HAZE * torch.relu(far - HAZE_FROM))
    ground = (0.5 - d[1] * canvas.focal).clamp(0, 1)
    x, y = _pixels(canvas, eye.device)
    corner = (x[None, :] ** 2 + y[:, None] ** 2) / (x[-1] ** 2 + y[0] ** 2)
    frame = 1 - VIGNETTE * corner * corner
    lit: list[Tensor] = []
    dark: list[Tensor] = []
    for channel in range(3):
        lamp, sky = light.lamp[channel], light.sky[channel]
        shadow = sky / (sky + lamp * light.direction[1])
        near = floor[channel]
        for bucket, level in ((lit, 1.0), (dark, shadow)):
            hazy = near * level + (light.haze[channel] - near * level) * haze
            value = backdrop[channel] + (hazy - backdrop[channel]) * ground
            bucket.append(encode(value * frame))
    return torch.stack(lit, -1), torch.stack(dark, -1)


_SHIFTED = frozenset({"checkered", "grass", "sand", "water", "snow"})


def _background(pose: Poses, canvas: _Canvas) -> tuple[Tensor, Tensor]:
    """Surroundings of all frames [F,H,W,3], lit and dark; what does not change is made once."""
    frames = pose.frame.numel()
    device = pose.eye.device
    moving = torch.tensor([setting in ANIMATED for setting in SETTINGS], device=device)
    still = (pose.steady & ~moving[pose.setting]).tolist()
    settings = pose.setting.tolist()
    shape = (len(settings), frames, canvas.height, canvas.width, 3)
    lit, dark = torch.empty(shape, device=device), torch.empty(shape, device=device)
    for setting, once in sorted(set(zip(settings, still))):
        clips = [b for b, key in enumerate(zip(settings, still)) if key == (setting, once)]
        index = torch.tensor(clips, device=device)
        span = 1 if once else frames
        one, two = _surroundings(
            pose.eye[index, :span].flatten(0, 1),
            pose.view[index, :span].flatten(0, 1),
            pose.offset[index].repeat_interleave(span, 0),
            pose.frame[:span].repeat(len(clips)),
            setting,
            canvas,
        )
        lit[index] = one.unflatten(0, (len(clips), span)).expand(-1, frames, -1, -1, -1)
        dark[index] = two.unflatten(0, (len(clips), span)).expand(-1, frames, -1, -1, -1)
    return lit.flatten(0, 1), dark.flatten(0, 1)


def _by_shape(layer: _Layer, canvas: _Canvas) -> Iterator[tuple[Tensor, int | None]]:
    """Frames [n] to draw, with their shape; or all at once where one kernel serves all shapes."""
    frames = layer.valid.nonzero()[:, 0]
    if canvas.fixed:
        if frames.numel():
            yield frames, None
        return
    shapes = layer.table[frames, SHAPE].long()
    for shape in shapes.unique().tolist():
        yield frames[shapes == shape], shape


def _runs(mask: Tensor, frames: Tensor, canvas: _Canvas) -> Iterator[tuple[Tensor, Tensor]]:
    """(frame, pixel) of every set pixel of ``mask`` [n,H,W], in runs.

    Runs of fixed length repeat their last entry; drawing a pixel twice draws the same.
    """
    found = mask.flatten(1).nonzero()
    frame, pixel = frames[found[:, 0]], found[:, 1]
    for begin in range(0, frame.numel(), canvas.run):
        f, p = frame[begin : begin + canvas.run], pixel[begin : begin + canvas.run]
        missing = canvas.run - f.numel()
        if canvas.fixed and missing:
            f = torch.cat([f, f[-1:].expand(missing)])
            p = torch.cat([p, p[-1:].expand(missing)])
        yield f, p


def _which(rows: Tensor, shape: int | None) -> Which:
    return rows[:, SHAPE, None] if shape is None else shape


def _columns(rows: Tensor, columns: slice) -> Vec:
    """Three columns of per-pixel rows, each [P,1]."""
    a, b, c = rows[:, columns].unbind(1)
    return a[:, None], b[:, None], c[:, None]


def _begin(rows: Tensor, pixel: Tensor, width: int, height: int, side: int) -> tuple[Vec, Tensor]:
    """Rays of pixels [P] with ``side`` x ``side`` samples: directions and entries [P,S]."""
    steps = (torch.arange(side, device=rows.device) + 0.5) / side
    column, row = (pixel % width)[:, None], (pixel // width)[:, None]
    x = column + steps.repeat(side)[None] - width / 2
    y = height / 2 - row - steps.repeat_interleave(side)[None]
    r, u, f = (_columns(rows, slice(VIEW.start + 3 * k, VIEW.start + 3 * k + 3)) for k in range(3))
    focal = FOCAL * height
    direction = normalise(
        (
            r[0] * x + (u[0] * y + f[0] * focal),
            r[1] * x + (u[1] * y + f[1] * focal),
            r[2] * x + (u[2] * y + f[2] * focal),
        )
    )
    entry = tracing.enter(_columns(rows, EYE), direction, rows[:, BALL, None])
    return direction, entry


def _march(rows: Tensor, direction: Vec, t: Tensor, shape: int | None) -> Tensor:
    return tracing.march_step(_columns(rows, EYE), direction, t, _which(rows, shape))


def _surface_point(rows: Tensor, direction: Vec, t: Tensor) -> Vec:
    o = _columns(rows, EYE)
    return o[0] + direction[0] * t, o[1] + direction[1] * t, o[2] + direction[2] * t


def _self_shadow(
    rows: Tensor, direction: Vec, t: Tensor, s: Tensor, lit: Tensor, shape: int | None
) -> tuple[Tensor, Tensor]:
    point = _surface_point(rows, direction, t)
    return tracing.self_shadow_step(point, _columns(rows, LAMP), s, lit, _which(rows, shape))


def _slope(
    rows: Tensor, direction: Vec, t: Tensor, total: Vec, corner: Tensor, shape: int | None
) -> Vec:
    point = _surface_point(rows, direction, t)
    return tracing.slope_step(point, total, corner, _which(rows, shape))


def _finish(
    rows: Tensor,
    direction: Vec,
    t: Tensor,
    lit: Tensor,
    left: Tensor,
    slope: Vec,
    shape: int | None,
    sharp: float,
) -> tuple[Tensor, Tensor]:
    """Mean colour over a pixel's rays, weighted by what they hit: [P,3], and the share [P].

    ``left`` is the distance that the march has not covered, ``slope`` the normal, not yet of unit
    length, ``sharp`` half the width of a ray at unit distance.
    """
    which = _which(rows, shape)
    point = _surface_point(rows, direction, t)
    ball = rows[:, BALL, None]
    inside = dot(point, point) < (1.05 * ball) ** 2
    cover = torch.where(inside, (1.5 - left / (sharp * t)).clamp(0, 1), torch.zeros_like(t))
    look = Surface(
        lamp_direction=_columns(rows, LAMP),
        up=_columns(rows, UP),
        scale=rows[:, SCALE, None],
        height=rows[:, HEIGHT, None],
        albedo=_columns(rows, COLOUR),
        shiny=rows[:, SHINY, None],
        pattern=rows[:, PATTERN, None],
        lamp=_columns(rows, LIGHT_LAMP),
        sky=_columns(rows, LIGHT_SKY),
        floor=_columns(rows, LIGHT_FLOOR),
    )
    light = lit.clamp(0, 1)
    colour = tracing.shade(
        point, normalise(slope), direction, light * light * (3 - 2 * light), look, which
    )
    mean = torch.stack([(c * cover).mean(1) for c in colour], -1)
    return mean, cover.mean(1)


def _shadow_begin(rows: Tensor, point: Tensor) -> tuple[Vec, Tensor, Tensor]:
    """Floor points [P] (their local places [P,3]) to ray starts, first step, and full light."""
    p = (point[:, 0, None], point[:, 1, None], point[:, 2, None])
    start = tracing.enter(p, _columns(rows, LAMP), rows[:, BALL, None] + SHADOW_REACH)
    return p, start.clamp(min=0.03), torch.ones_like(start)


def _shadow(
    rows: Tensor, p: Vec, t: Tensor, light: Tensor, shape: int | None
) -> tuple[Tensor, Tensor]:
    return tracing.shadow_step(p, _columns(rows, LAMP), t, light, _which(rows, shape))


def _shadow_end(rows: Tensor, p: Vec, light: Tensor, shape: int | None) -> tuple[Tensor, Tensor]:
    """Share of lamp light [P] and of open sky [P] left on the floor."""
    light = light.clamp(0, 1)
    distance = tracing.march_step(p, p, torch.zeros_like(light), _which(rows, shape))
    touch = torch.exp(-3.0 * torch.relu(distance))
    reach = rows[:, BALL, None] + CONTACT_REACH - torch.sqrt(dot(p, p))
    fade = reach.clamp(0, 0.6) / 0.6
    return (light * light * (3 - 2 * light))[:, 0], (1 - 0.38 * touch * fade)[:, 0]


@functools.cache
def _kernels(compiled: bool) -> _Kernels:
    functions: list[Callable[..., Any]] = [
        _begin,
        _march,
        _self_shadow,
        _slope,
        _finish,
        _shadow_begin,
        _shadow,
        _shadow_end,
    ]
    if compiled:
        functions = [torch.compile(function, dynamic=False) for function in functions]
    return _Kernels(*functions)


def _outlines(table: Tensor, canvas: _Canvas) -> Tensor:
    """Pixels inside the outline of each frame's bounding ball: bool [n,H,W]."""
    view = table[:, VIEW].unflatten(1, (3, 3))
    d = _directions(view, canvas)
    o = tuple(c[:, None, None] for c in unbind(table[:, EYE]))
    along = dot((o[0], o[1], o[2]), d)
    gap = (o[0] * o[0] + o[1] * o[1] + o[2] * o[2]) - (INFLATE * table[:, BALL, None, None]) ** 2
    return along * along > gap


def _draw(image: Tensor, layer: _Layer, canvas: _Canvas, kernels: _Kernels) -> None:
    """Trace one layer of objects and lay it over ``image`` [F,H*W,3]."""
    sharp = 1.0 / (canvas.focal * canvas.side)
    corners = torch.tensor(tracing.CORNERS, device=image.device).unbind()
    for frames, shape in _by_shape(layer, canvas):
        mask = _outlines(layer.table[frames], canvas)
        bends = shape is None or SHAPES[shape] in CONCAVE
        for frame, pixel in _runs(mask, frames, canvas):
            rows = layer.table[frame]
            size = (canvas.width, canvas.height, canvas.side)
            direction, t = kernels.begin(rows, pixel, *size)
            for _ in range(tracing.MARCH_STEPS):
                t = kernels.march(rows, direction, t, shape)
            lit, s = torch.ones_like(t), torch.full_like(t, 0.08)
            for _ in range(tracing.SELF_STEPS if bends else 0):
                s, lit = kernels.self_shadow(rows, direction, t, s, lit, shape)
            left = kernels.march(rows, direction, t, shape) - t
            slope = (torch.zeros_like(t),) * 3
            for corner in corners:
                slope = kernels.slope(rows, direction, t, slope, corner, shape)
            colour, cover = kernels.finish(rows, direction, t, lit, left, slope, shape, sharp)
            image[frame, pixel] = image[frame, pixel] * (1 - cover[:, None]) + colour


def _cast(
    pose: Poses, layers: Sequence[_Layer], canvas: _Canvas, kernels: _Kernels
) -> tuple[Tensor, Tensor]:
    """Shares of lamp light and open sky left on every floor pixel: two [F,H*W]."""
    eye, view = pose.eye.flatten(0, 1), pose.view.flatten(0, 1)
    size = (eye.shape[0], canvas.height * canvas.width)
    light, sky = torch.ones(size, device=eye.device), torch.ones(size, device=eye.device)
    for layer in layers:
        for frames, shape in _by_shape(layer, canvas):
            table = layer.table[frames]
            # In the object's frame the floor is as flat: rays from its eye, floor distance scaled.
            d = _directions(view[frames], canvas)
            far = _on_floor(eye[frames], d) / table[:, SCALE, None, None]
            d = _directions(table[:, VIEW].unflatten(1, (3, 3)), canvas)
            o = tuple(c[:, None, None] for c in unbind(table[:, EYE]))
            p = (o[0] + far * d[0], o[1] + far * d[1], o[2] + far * d[2])
            lamp = tuple(c[:, None, None] for c in unbind(table[:, LAMP]))
            along = dot(p, (lamp[0], lamp[1], lamp[2]))
            square = dot(p, p)
            ball = table[:, BALL, None, None]
            near = square < (ball + CONTACT_REACH) ** 2
            shaded = (square - along * along < (ball + SHADOW_REACH) ** 2) & (along < 0)
            slots = torch.empty(size[0], dtype=torch.long, device=eye.device)
            slots[frames] = torch.arange(frames.numel(), device=eye.device)
            place = torch.stack([c.flatten(1) for c in p], -1)
            for frame, pixel in _runs((near | shaded) & (far < 60), frames, canvas):
                rows = layer.table[frame]
                start, t, left = kernels.shadow_begin(rows, place[slots[frame], pixel])
                for _ in range(tracing.SHADOW_STEPS):
                    t, left = kernels.shadow(rows, start, t, left, shape)
                lamp_share, sky_share = kernels.shadow_end(rows, start, left, shape)
                light[frame, pixel] = light[frame, pixel] * lamp_share
                sky[frame, pixel] = sky[frame, pixel] * sky_share
    return light, sky


def _frames(pose: Poses, canvas: _Canvas, kernels: _Kernels) -> Tensor:
    """All frames of a few clips: uint8 [B,T,H,W,3]."""
    layers = _layers(pose)
    lit, dark = (image.flatten(1, 2) for image in _background(pose, canvas))
    light, sky = _cast(pose, layers, canvas, kernels)
    image = lit.sub_(dark).mul_(light[..., None]).add_(dark).mul_(sky[..., None])
    for layer in layers:
        _draw(image, layer, canvas, kernels)
    pixels = (image.clamp_(0, 1) * 255 + 0.5).to(torch.uint8)
    return pixels.view(len(pose.setting), -1, canvas.height, canvas.width, 3)


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    *,
    start: int = 0,
    frames: int = 33,
    height: int = 128,
    width: int = 192,
    device: torch.device | str = "cpu",
    supersampling: int = 2,
    compile: bool = False,
) -> Tensor:
    """Draw ``frames`` frames of every scene from frame ``start`` on: uint8 [B,T,H,W,3].

    A clip that starts where another ended is its true continuation. Memory beyond the result does
    not grow with the number of scenes or frames. Objects get ``supersampling`` squared rays a
    pixel. With ``compile`` the ray functions are compiled once for a fixed number of rays.

    Raises:
        ValueError: no scenes, or a number that is not positive.
    """
    if not scenes or min(frames, height, width, supersampling) < 1 or start < 0:
        raise ValueError("render needs scenes, a start from 0 on, and positive sizes")
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    canvas = _Canvas(height, width, supersampling, CPU_PIXELS if on_cpu else GPU_PIXELS, compile)
    limit = CPU_FRAMES if on_cpu else GPU_FRAMES
    span = min(frames, limit)
    group = max(1, limit // span)
    out = torch.empty(len(scenes), frames, height, width, 3, dtype=torch.uint8, device=device)
    for first in range(0, len(scenes), group):
        some = scenes[first : first + group]
        for begin in range(0, frames, span):
            count = min(span, frames - begin)
            pose = poses(some, start=start + begin, frames=count).to(device)
            picture = _frames(pose, canvas, _kernels(compile))
            out[first : first + group, begin : begin + count] = picture
    return out
