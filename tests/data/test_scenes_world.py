"""The supply of scenes: seeded, endless, split, and laid out so that everything stays in view."""

from collections import Counter
from itertools import islice

import pytest
import torch

from helios.data.scenes import (
    CAMERAS,
    COLOURS,
    MATERIALS,
    MOTIONS,
    SETTINGS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    boxes,
    held_out,
    poses,
    sample_scene,
    sample_scenes,
    scene_stream,
)
from helios.data.scenes.scene import CAMERAS_OF_MOTION
from helios.data.scenes.shapes import BOUND, DISTANCES, HEIGHT, WIDTH, distance_by_id, support
from helios.data.scenes.stage import CAMERA_PERIODS, PERIODS, RADII

BALL = SceneObject(colour="red", shape="sphere", size="small", material="matte")
CUBE = SceneObject(colour="blue", shape="cube", size="small", material="matte")


def hidden(scene: Scene) -> bool:
    return held_out(scene.main.colour, scene.main.shape, scene.motion, scene.setting)


def test_the_same_seed_gives_the_same_scenes_from_any_number_on():
    scenes = sample_scenes(20, seed=4)
    assert scenes == sample_scenes(20, seed=4)
    assert scenes[7:] == sample_scenes(13, seed=4, start=7)
    assert scenes[3] == sample_scene(3, seed=4)
    assert scenes[5:] == tuple(islice(scene_stream(4, start=5), 15))
    assert scenes != sample_scenes(20, seed=5)
    assert scenes != sample_scenes(20, seed=4, split="test")


def test_splits_share_no_combination():
    assert not any(hidden(scene) for scene in sample_scenes(1500, split="train"))
    assert all(hidden(scene) for scene in sample_scenes(300, split="test"))
    combinations = [
        held_out(colour, shape, motion, setting)
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
        for setting in SETTINGS
    ]
    assert abs(sum(combinations) / len(combinations) - 1 / 11) < 0.01
    share = sum(map(hidden, sample_scenes(2000, split="all"))) / 2000
    assert 0.06 < share < 0.12


def test_every_value_occurs_in_fair_shares():
    scenes = sample_scenes(3000, seed=8)
    counts = Counter(len(scene.objects) for scene in scenes)
    for count, share in {1: 0.55, 2: 0.35, 3: 0.10}.items():
        assert abs(counts[count] / 3000 - share) < 0.04
    for values, drawn in (
        (COLOURS, Counter(scene.main.colour for scene in scenes)),
        (SHAPES, Counter(scene.main.shape for scene in scenes)),
        (MOTIONS, Counter(scene.motion for scene in scenes)),
        (SETTINGS, Counter(scene.setting for scene in scenes)),
        (SIZES, Counter(scene.main.size for scene in scenes)),
        (MATERIALS, Counter(scene.main.material for scene in scenes)),
    ):
        assert set(drawn) == set(values)
        assert min(drawn.values()) > 0.7 * 3000 / len(values)
    cameras = Counter(scene.camera for scene in scenes)
    assert set(cameras) == set(CAMERAS)
    assert 0.55 < cameras["still"] / 3000 < 0.68


def test_pairs_that_look_alike_are_left_out():
    for scene in sample_scenes(1000, seed=2):
        assert scene.camera == "still" or scene.camera in CAMERAS_OF_MOTION[scene.motion]
        assert (scene.motion, scene.camera) not in {("pulses", "zoom"), ("spins", "orbit")}
        assert len({item.colour for item in scene.objects}) == len(scene.objects)


def test_no_motion_repeats_after_a_chunk():
    for periods in (*PERIODS.values(), CAMERA_PERIODS):
        assert len(periods) >= 4
        for period in periods:
            assert 33 % period != 0
            assert period % 33 != 0
            assert abs(33 / period - round(33 / period)) > 0.05
    for scene in sample_scenes(60, seed=6):
        pose = poses([scene], start=0, frames=100)
        places = torch.cat([pose.centre[0, 0], pose.rotation[0, 0].flatten(1)], -1)
        state = torch.cat([places, pose.scale[0, 0, :, None]], -1)
        change = (state[33:66] - state[:33]).abs().amax(-1)
        assert change.max() > 0.03, scene


def test_no_object_leaves_its_own_place_within_a_latent_frame():
    scenes = sample_scenes(200, seed=8)
    for scene in scenes:
        centre = poses([scene], start=0, frames=150).centre[0, 0]
        moved = (centre[4:] - centre[:-4]).norm(dim=-1).max()
        assert moved < 2 * RADII[scene.main.size], scene


def test_a_later_window_is_the_continuation():
    scenes = sample_scenes(6, seed=1)
    whole = poses(scenes, start=0, frames=66)
    later = poses(scenes, start=33, frames=33)
    for name in ("centre", "rotation", "scale"):
        assert torch.equal(getattr(whole, name)[:, :, 33:], getattr(later, name))
    assert torch.equal(whole.eye[:, 33:], later.eye)
    assert torch.equal(whole.view[:, 33:], later.view)


def test_everything_stays_in_view_and_apart():
    for scene in sample_scenes(150, seed=12, split="all"):
        pose = poses([scene], start=0, frames=190)
        box = boxes(pose)[0]
        left, top, right, bottom = box.unbind(-1)
        assert left.min() > 0, scene
        assert right.max() < 192, scene
        assert top.min() > 0, scene
        assert bottom.max() < 128, scene
        main, others = box[0], box[1:]
        for other in others:  # beside each other: never covered by more than a few columns
            overlap = torch.minimum(main[:, 2], other[:, 2]) - torch.maximum(
                main[:, 0], other[:, 0]
            )
            assert overlap.max() < 6, scene


def test_objects_are_large_in_the_picture():
    spans: dict[str, list[float]] = {size: [] for size in SIZES}
    for scene in sample_scenes(200, seed=3):
        if len(scene.objects) > 1 or scene.camera != "still" or scene.main.shape != "sphere":
            continue
        if scene.motion != "pulses":
            left, _, right, _ = boxes(poses([scene], start=0, frames=40))[0, 0].unbind(-1)
            spans[scene.main.size].append(float((right - left).mean()))
    small, medium, large = (sum(values) / len(values) for values in spans.values())
    assert 38 < small < 50 < medium < 64 < large < 86


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_facts_agree_with_the_distance(shape):
    number = SHAPES.index(shape)
    slack = 0.3 if shape == "star" else 0.13  # no random point lies in the very tips
    generator = torch.Generator().manual_seed(number)
    points = torch.rand(200_000, 3, generator=generator) * 2.8 - 1.4
    inside = points[DISTANCES[number](tuple(points.unbind(-1))) < 0]
    assert len(inside) > 3000
    assert inside.norm(dim=-1).max() <= BOUND[shape] + 1e-3
    assert inside[:, [0, 2]].norm(dim=-1).max() <= max(WIDTH[shape], 0.01) + 0.12
    assert abs(inside[:, 1].max() - inside[:, 1].min() - HEIGHT[shape]) < slack
    for direction in torch.nn.functional.normalize(torch.randn(12, 3, generator=generator), dim=-1):
        reach = support(torch.tensor(number), tuple(direction.unbind()))
        farthest = (inside @ direction).max()
        assert -0.01 < reach - farthest < slack


def test_distances_never_overstep_and_choose_by_number():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, 3, generator=generator).clamp(-2, 2)
    apart = (a - b).norm(dim=-1)
    for number, distance in enumerate(DISTANCES):
        one, two = distance(tuple(a.unbind(-1))), distance(tuple(b.unbind(-1)))
        assert ((one - two).abs() <= apart * 1.0001 + 1e-4).all()
        numbers = torch.full((4000,), number)
        assert torch.equal(distance_by_id(numbers)(tuple(a.unbind(-1))), one)


def test_standing_objects_touch_the_floor():
    for shape in SHAPES:
        main = SceneObject(colour="red", shape=shape, size="medium", material="matte")
        for motion in ("rolls", "spins", "orbits"):
            scene = Scene(objects=(main,), motion=motion, setting="sand", camera="still", seed=3)
            pose = poses([scene], start=0, frames=30)
            down = -pose.rotation[0, 0, :, 1]
            reach = support(torch.tensor(SHAPES.index(shape)), tuple(down.unbind(-1)))
            assert torch.allclose(pose.centre[0, 0, :, 1], RADII["medium"] * reach, atol=1e-5)


def test_impossible_scenes_are_refused():
    good = {"motion": "rolls", "setting": "sand", "camera": "still", "seed": 0}
    with pytest.raises(ValueError, match="different colours"):
        Scene(objects=(BALL, BALL), **good)
    with pytest.raises(ValueError, match="one to three"):
        Scene(objects=(), **good)
    with pytest.raises(ValueError, match="motion must be one of"):
        Scene(objects=(BALL, CUBE), **(good | {"motion": "explodes"}))
    with pytest.raises(ValueError, match="shape must be one of"):
        SceneObject(colour="red", shape="teapot", size="small", material="matte")
    with pytest.raises(ValueError, match="split"):
        sample_scenes(1, split="validation")
