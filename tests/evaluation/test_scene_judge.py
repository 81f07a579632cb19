from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from helios.errors import CheckpointError
from helios.evaluation.metrics.scene_judge import (
    Displacement,
    JudgeConfig,
    Opinion,
    SceneJudge,
    load_judge,
    save_judge,
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


def test_saved_and_loaded_judge_agree_within_eight_bits(tmp_path: Path) -> None:
    judge, frames = small_judge(), clips(2)
    save_judge(judge, tmp_path)
    again = load_judge(tmp_path)
    assert again.config == judge.config
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    for field in fields(Opinion):
        mine, theirs = (
            getattr(judge.opinion(frames), field.name),
            getattr(again.opinion(frames), field.name),
        )
        torch.testing.assert_close(mine, theirs, atol=4e-2, rtol=4e-2)


def test_the_full_judge_fits_its_place_in_the_package(tmp_path: Path) -> None:
    save_judge(SceneJudge(judge_config()), tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1.3 * 2**20


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    judge = small_judge()
    with pytest.raises(ValueError, match="uint8"):
        judge.opinion(clips(1).float())
    with pytest.raises(ValueError, match=r"\[B, T, 3, 8m, 8n\]"):
        judge(torch.zeros(1, 4, 3, 30, 48))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        SceneJudge(SMALL).train().read(clips(1))
    with pytest.raises(CheckpointError, match="missing"):
        load_judge(tmp_path)
    save_judge(judge, tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"hidden": 16', '"hidden": 24')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_judge(tmp_path)
    weights = tmp_path / "weights.safetensors.xz"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_judge(tmp_path)


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
