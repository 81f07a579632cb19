import json
from dataclasses import replace

import pytest
import torch

from helios.data import (
    TRAJECTORIES,
    ShardReader,
    Teacher,
    Trajectories,
    TrajectoryConfig,
    record_section,
    write_trajectories,
)
from helios.diffusion import Pyramid, ScheduleConfig, ShiftLaw, sample, steps
from helios.distributed import World
from helios.errors import DataError
from helios.history import History
from helios.model import bind
from helios.storage import read_metadata, read_tensors

CPU = torch.device("cpu")
SCHEDULE = ScheduleConfig(gamma=0.3, dynamic=ShiftLaw(kind="linear", base_tokens=8, max_tokens=64))
CAPTIONS = ["a red ball", "a green cube spins", "a blue cone on sand"]
CONFIG = TrajectoryConfig(height=64, width=64, sections=2, steps=(2, 2, 2), guidance=2.0, shard=2)


@pytest.fixture(scope="module")
def teacher(pipeline):
    return Teacher(
        name="small",
        transformer=pipeline.transformer,
        text=pipeline.text_encoder,
        schedule=SCHEDULE,
    )


def write(teacher, out, captions=CAPTIONS, config=CONFIG):
    lines = []
    write_trajectories(teacher, captions, config, out, World(device=CPU), lines.append)
    return lines


def field(x, timestep):
    time = (timestep.view(-1, 1, 1, 1, 1).float() / 1000).to(x.dtype)
    return torch.sin(1.3 * x) * (1 - time) + x * time


def test_a_section_is_kept_at_the_few_step_levels_and_at_the_end_of_each_stage():
    plan = Pyramid(steps=(5, 4, 6), visit=2)
    noise = torch.randn(2, 4, 9, 8, 16, generator=torch.Generator().manual_seed(0))
    legs = record_section(field, plan, noise, SCHEDULE, torch.Generator().manual_seed(1))
    student = Pyramid(steps=(2, 2, 2), solver="renoise")
    told = [s for s in steps(field, student, noise, SCHEDULE) if s.sigma]
    for stage, leg in enumerate(legs):
        own = [s for s in told if s.stage == stage]
        assert leg.timesteps == tuple(int(s.timestep) for s in own)
        assert leg.sigmas == tuple(s.sigma for s in own)
        assert leg.states.shape[1] == 3
    assert torch.equal(legs[0].states[:, 0], told[0].x)  # the teacher starts where a student does
    end = sample(field, plan, noise, SCHEDULE, torch.Generator().manual_seed(1))
    assert torch.equal(legs[2].states[:, -1], end)


def test_levels_that_nobody_visits_cannot_be_kept():
    noise = torch.zeros(1, 4, 9, 8, 8)
    with pytest.raises(ValueError, match="visits"):
        record_section(field, Pyramid(steps=(2, 2, 2)), noise, SCHEDULE)
    with pytest.raises(ValueError, match="consistent"):
        record_section(field, Pyramid(steps=(2, 2, 2), visit=2), noise, replace(SCHEDULE, lag=True))


def test_later_sections_follow_the_teachers_own_and_captions_have_their_own_noise(
    tmp_path, teacher
):
    lines = write(teacher, tmp_path / "a")
    assert lines == ["shard 1 of 2", "shard 2 of 2"]
    settings = json.loads((tmp_path / "a/settings.json").read_text())
    assert [len(legs[0]["sigmas"]) for legs in settings["levels"]] == [4, 2]
    first = read_tensors(tmp_path / "a", "00000.safetensors")
    metadata = read_metadata(tmp_path / "a/00000.safetensors")
    assert json.loads(metadata["captions"]) == CAPTIONS[:2]
    made = Trajectories.restore(first, settings["levels"])
    assert made.text.dtype == torch.float16
    begin = made.sections[0][0].states[:, 0].float()
    assert not torch.allclose(begin[0], begin[1])
    # The second section again, from what is stored of the first.
    history = History.empty(2, 16, 8, 8).append(made.sections[0][-1].states[:, -1].float())
    leg = made.sections[1][2]
    denoiser = bind(teacher.transformer, made.text.float(), history.window())
    late = min(leg.sigmas)
    x = leg.states[:, leg.sigmas.index(late)].float()
    with torch.no_grad():
        velocity = denoiser(x, torch.full((2,), leg.timesteps[-1]))
    assert torch.isfinite(velocity).all()
    assert made.sections[1][2].states.shape == (2, 3, 16, 9, 8, 8)


def test_content_depends_on_the_settings_alone(tmp_path, teacher):
    write(teacher, tmp_path / "a")
    write(teacher, tmp_path / "b", config=replace(CONFIG, shard=1))
    one = read_tensors(tmp_path / "a", "00001.safetensors")
    other = read_tensors(tmp_path / "b", "00002.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(value.float(), other[name].float(), atol=2e-3, rtol=2e-3)


def test_it_goes_on_where_it_stopped(tmp_path, teacher):
    write(teacher, tmp_path / "a")
    listed = json.loads((tmp_path / "a/manifest.json").read_text())["files"].keys()
    before = read_tensors(tmp_path / "a", "00001.safetensors")
    (tmp_path / "a/manifest.json").unlink()
    (tmp_path / "a/00001.safetensors").unlink()
    with pytest.raises(DataError, match="not complete"):
        ShardReader(tmp_path / "a", TRAJECTORIES, batch=1, device=CPU)
    assert write(teacher, tmp_path / "a") == ["shard 2 of 2"]
    assert json.loads((tmp_path / "a/manifest.json").read_text())["files"].keys() == listed
    # Not bit for bit: products round by where in memory their factors lie.
    for name, value in read_tensors(tmp_path / "a", "00001.safetensors").items():
        torch.testing.assert_close(value.float(), before[name].float(), atol=2e-3, rtol=2e-3)
    with pytest.raises(DataError, match="captions_sha256"):
        write(teacher, tmp_path / "a", captions=[*CAPTIONS[:2], "a red cone"])


@pytest.mark.parametrize("bad", [{"width": 100}, {"sections": 0}, {"seed": -1}, {"guidance": -1.0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError):
        replace(CONFIG, **bad)
