from dataclasses import fields, replace

import pytest
import torch

from helios.errors import CheckpointError
from helios.evaluation.metrics.scene_judge import (
    Displacement,
    JudgeConfig,
    Opinion,
    SceneJudge,
)
from helios.evaluation.train_judge import judge_config

SMALL = replace(judge_config(), widths=(8, 8, 16), hidden=16)


def small_judge() -> SceneJudge:
    torch.manual_seed(0)
    return SceneJudge(SMALL).eval()


def clips(count: int, frames: int = 33) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, frames, 32, 48, 3), generator=generator).byte()


def test_opinion_has_one_logit_per_class() -> None:
    opinion = small_judge().opinion(clips(2))
    shapes = {field.name: tuple(getattr(opinion, field.name).shape) for field in fields(Opinion)}
    assert shapes == {
        "present": (2, 8),
        "shape": (2, 8, 8),
        "size": (2, 8, 3),
        "material": (2, 8, 2),
        "main": (2, 8),
        "motion": (2, len(SMALL.motions)),
        "setting": (2, len(SMALL.settings)),
        "camera": (2, len(SMALL.cameras)),
    }
    assert all(getattr(opinion, name).dtype == torch.float32 for name in shapes)


def test_a_clip_is_judged_alone_whatever_stands_beside_it() -> None:
    judge, frames = small_judge(), clips(3)
    together, alone = judge.opinion(frames), judge.opinion(frames[1:2])
    for field in fields(Opinion):
        torch.testing.assert_close(
            getattr(together, field.name)[1:2], getattr(alone, field.name), atol=1e-4, rtol=1e-4
        )
    assert judge.read(frames, batch_size=2) == judge.read(frames)


def test_time_matters() -> None:
    judge, frames = small_judge(), clips(1)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(2))
    forward, mixed = judge.opinion(frames), judge.opinion(frames[:, order])
    assert (forward.motion - mixed.motion).abs().max() > 1e-4


def test_displacement_finds_a_slow_pan_and_only_that() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 4, 16, 40, generator=generator)
    still = torch.stack([wide[..., 8:32]] * 12, dim=1).flatten(0, 1)
    # A quarter of a place per frame: two places within the lag.
    pan = torch.stack([wide[..., 8 + t // 4 : 32 + t // 4] for t in range(12)], dim=1)
    torch.manual_seed(0)
    look = Displacement(4, 27 * 6)
    with torch.no_grad():
        look.weight.weight.copy_(torch.eye(27 * 6))
        look.weight.bias.zero_()
        shares = [
            look(x, 12)[0, :4].mean(0).view(3, 9, -1).mean(-1) for x in (still, pan.flatten(0, 1))
        ]
    for share, column in zip(shares, (4, 2), strict=True):
        assert float(share.sum()) == pytest.approx(1, abs=1e-4)
        assert int(share.argmax()) == 9 + column
    assert look(still, 12)[0, 4:].abs().max() == 0
    assert look(still[:1], 1).shape == (1, 1, 27 * 6)


def test_readings_name_the_highest_logits() -> None:
    judge = small_judge()
    present = torch.full((1, 8), -5.0)
    present[0, 2] = present[0, 6] = 5.0
    shape, size, material = torch.zeros(1, 8, 8), torch.zeros(1, 8, 3), torch.zeros(1, 8, 2)
    shape[0, 2, 3], size[0, 2, 1], material[0, 2, 1] = 1.0, 1.0, 1.0
    shape[0, 6, 7], size[0, 6, 2] = 1.0, 1.0

    def one_hot(classes: int, index: int) -> torch.Tensor:
        return torch.eye(classes)[index : index + 1]

    opinion = Opinion(
        present=present,
        shape=shape,
        size=size,
        material=material,
        main=one_hot(8, 6),
        motion=one_hot(len(SMALL.motions), 4),
        setting=one_hot(len(SMALL.settings), 5),
        camera=one_hot(len(SMALL.cameras), 2),
    )
    (reading,) = judge._readings(opinion)
    assert set(reading.objects) == {SMALL.colours[2], SMALL.colours[6]}
    assert reading.objects[SMALL.colours[2]].shape == SMALL.shapes[3]
    assert reading.objects[SMALL.colours[2]].size == SMALL.sizes[1]
    assert reading.objects[SMALL.colours[2]].material == SMALL.materials[1]
    assert reading.objects[SMALL.colours[6]].shape == SMALL.shapes[7]
    assert (reading.main, reading.motion) == (SMALL.colours[6], SMALL.motions[4])
    assert (reading.setting, reading.camera) == (SMALL.settings[5], SMALL.cameras[2])


def test_what_does_not_fit_is_refused() -> None:
    judge = small_judge()
    with pytest.raises(ValueError, match="uint8"):
        judge.opinion(clips(1).float())
    with pytest.raises(ValueError, match=r"\[B, T, 3, 8m, 8n\]"):
        judge(torch.zeros(1, 4, 3, 30, 48))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        SceneJudge(SMALL).train().read(clips(1))


@pytest.mark.parametrize(
    "change", [{"colours": ()}, {"shapes": ("cube", "cube")}, {"widths": (8, 8, 12)}, {"hidden": 0}]
)
def test_impossible_configurations(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SMALL, **change)


def test_configuration_survives_json() -> None:
    assert JudgeConfig.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(CheckpointError, match="depth"):
        JudgeConfig.from_json(SMALL.to_json() | {"depth": 3})
    partial = SMALL.to_json()
    del partial["colours"]
    with pytest.raises(CheckpointError, match="colours"):
        JudgeConfig.from_json(partial)
