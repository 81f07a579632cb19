"""Pictures: shape and type, the same again, true continuations, and everything that should show."""

import pytest
import torch

from helios.data.scenes import (
    COLOURS,
    MATERIALS,
    MOTIONS,
    SETTINGS,
    SHAPES,
    Scene,
    SceneObject,
    boxes,
    poses,
    render,
    sample_scenes,
)


def scene(colour="red", shape="cube", motion="spins", setting="studio", **fields) -> Scene:
    fields = {"size": "medium", "material": "matte", "camera": "still", "seed": 5} | fields
    main = SceneObject(
        colour=colour, shape=shape, size=fields.pop("size"), material=fields.pop("material")
    )
    return Scene(objects=(main,), motion=motion, setting=setting, **fields)


def draw(*scenes: Scene, **fields) -> torch.Tensor:
    return render(scenes, **({"frames": 1, "supersampling": 1} | fields))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one level in very few pixels: other run lengths may round a sine differently."""
    apart = (a.int() - b.int()).abs()
    return apart.max() <= 1 and (apart > 0).float().mean() < 1e-3


def test_shape_type_and_repetition():
    scenes = sample_scenes(3, seed=1)
    one = render(scenes, frames=3, height=64, width=96)
    assert one.shape == (3, 3, 64, 96, 3)
    assert one.dtype == torch.uint8
    assert torch.equal(one, render(scenes, frames=3, height=64, width=96))
    alone = render(scenes[1:2], frames=3, height=64, width=96)
    assert close(one[1:2], alone)


def test_a_clip_that_starts_later_is_the_true_continuation():
    scenes = sample_scenes(2, seed=9)
    size = {"height": 64, "width": 96}
    whole = render(scenes, frames=66, **size)
    parts = [render(scenes, start=start, frames=33, **size) for start in (0, 33)]
    assert close(whole, torch.cat(parts, 1))
    far = render(scenes[:1], start=33 * 300, frames=2, supersampling=1)
    assert far.float().std() > 5


def test_more_frames_than_fit_at_once_are_the_same_frames():
    scenes = sample_scenes(1, seed=2)
    long = render(scenes, frames=150, height=32, width=48, supersampling=1)
    end = render(scenes, start=140, frames=10, height=32, width=48, supersampling=1)
    assert close(long[:, 140:], end)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_seen_in_every_shape(motion):
    scenes = [scene(shape=shape, motion=motion, seed=seed) for seed, shape in enumerate(SHAPES)]
    clips = torch.cat([draw(*scenes, start=start) for start in (0, 7, 15)], 1).float()
    moving = ((clips[:, 1:] - clips[:, :-1]).abs().amax(-1) > 12).float().mean((2, 3))
    # A window holds rests and returns to the same place, but never only those.
    assert moving.amax(1).min() > 0.01


def test_nothing_but_the_object_moves_when_the_camera_rests():
    for setting in SETTINGS:
        item = scene(setting=setting, motion="spins", shape="star")
        clip = draw(item, frames=9)[0].float()
        corner = (clip[8, 100:, :30] - clip[0, 100:, :30]).abs().max()
        assert (corner > 3) == (setting == "water"), setting


def dominant(picture: torch.Tensor, item: Scene) -> torch.Tensor:
    """Mean colour of the middle of the object's box."""
    left, top, right, bottom = boxes(poses([item], start=0, frames=1))[0, 0, 0].tolist()
    x, y = (left + right) / 2, (top + bottom) / 2
    return picture[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5].float().mean((0, 1))


def test_colours_are_told_apart_in_every_setting():
    for setting in SETTINGS:
        scenes = [scene(colour=c, motion="orbits", setting=setting) for c in COLOURS]
        pictures = draw(*scenes)[:, 0]
        seen = torch.stack([dominant(p, s) for p, s in zip(pictures, scenes, strict=True)])
        apart = torch.cdist(seen, seen) + 1000 * torch.eye(len(COLOURS))
        assert apart.min() > 40, (setting, apart.min())


def test_colours_are_what_they_are_called():
    scenes = {c: scene(colour=c, motion="orbits") for c in COLOURS}
    seen = {c: dominant(draw(s)[0, 0], s).tolist() for c, s in scenes.items()}
    for name, index in (("red", 0), ("green", 1), ("blue", 2)):
        others = [value for k, value in enumerate(seen[name]) if k != index]
        assert seen[name][index] > 1.8 * max(others)
    assert min(seen["white"]) > 190
    assert seen["yellow"][0] > 180
    assert seen["yellow"][1] > 150
    assert seen["yellow"][2] < 110


def test_settings_are_told_apart():
    pictures = draw(*(scene(setting=setting) for setting in SETTINGS))[:, 0].float()
    means = torch.cat([pictures[:, :20].mean((1, 2)), pictures[:, 100:].mean((1, 2))], -1)
    apart = torch.cdist(means, means) + 1000 * torch.eye(len(SETTINGS))
    assert apart.min() > 30


def test_shiny_has_a_highlight_and_matte_has_none():
    matte, shiny = (
        draw(scene(shape="sphere", motion="orbits", colour="blue", material=material))[0, 0]
        for material in MATERIALS
    )
    left, top, right, bottom = (
        boxes(poses([scene(shape="sphere", motion="orbits")], start=0, frames=1))[0, 0, 0]
        .int()
        .tolist()
    )
    object_only = (slice(top + 6, bottom - 12), slice(left + 12, right - 12))
    assert (shiny[object_only].min(-1).values > 190).sum() > 5
    assert (matte[object_only].min(-1).values > 190).sum() == 0
    changed = (shiny.int() - matte.int()).amax(-1)
    assert (changed > 60).sum() > 15


def test_objects_cast_shadows_and_darken_the_floor_they_touch():
    with_object = draw(scene(shape="sphere", motion="orbits", size="large"))[0, 0].float()
    left, _, right, bottom = (
        boxes(poses([scene(shape="sphere", motion="orbits", size="large")], start=0, frames=1))[
            0, 0, 0
        ]
        .int()
        .tolist()
    )
    row = with_object[bottom - 8, :, 0]
    assert row[min(right + 4, 191)] < row[max(left - 20, 0)] - 25


def test_edges_are_smooth():
    """More rays a pixel change only the outline, and bring it nearer to very many."""
    item = scene(shape="cube", colour="white", setting="night")
    reference = draw(item, supersampling=5)[0, 0].float()
    one, two = (draw(item, supersampling=n)[0, 0].float() for n in (1, 2))
    error = [(image - reference).square().mean() for image in (one, two)]
    assert error[1] < 0.6 * error[0]
    assert (two - reference).abs().mean() < 0.5


def test_kernels_of_fixed_length_draw_the_same():
    """The compiled form's data flow (all shapes at once, padded runs), here without compiling."""
    from dataclasses import replace

    from helios.data.scenes import renderer

    scenes = sample_scenes(4, seed=21)
    canvas = renderer._Canvas(128, 192, 2, 1 << 13, False)
    pose = poses(scenes, start=0, frames=1)
    plain = renderer._frames(pose, canvas, renderer._kernels(False))
    fixed = renderer._frames(pose, replace(canvas, fixed=True), renderer._kernels(False))
    assert close(plain, fixed)


def test_bad_sizes_are_refused():
    for fields in ({"frames": 0}, {"supersampling": 0}, {"start": -1}, {"height": 0}):
        with pytest.raises(ValueError, match="render needs"):
            draw(scene(), **fields)
    with pytest.raises(ValueError, match="render needs"):
        render([])


@pytest.mark.gpu
def test_the_gpu_draws_what_the_cpu_draws_compiled_or_not():
    scenes = sample_scenes(3, seed=4)
    reference = render(scenes, frames=2)
    for compiled in (False, True):
        drawn = render(scenes, frames=2, device="cuda", compile=compiled).cpu()
        apart = (drawn.int() - reference.int()).abs().float()
        assert apart.mean() < 0.05
        assert (apart > 8).float().mean() < 1e-3
