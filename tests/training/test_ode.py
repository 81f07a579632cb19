from dataclasses import replace

import pytest
import torch

import helios.pipeline
from helios.data import Teacher, TrajectoryConfig, write_trajectories
from helios.diffusion import Pyramid, steps
from helios.errors import DataError
from helios.history import History
from helios.model import LoraConfig
from helios.training import OptimizerConfig, train
from helios.training.networks import parts_of
from helios.training.ode import at_point

from .small import LINEAR, ode_config
from .test_codec_stage import same, tensors
from .toys import alone

WORDS = ["a red ball", "a green cube", "a blue cone", "a red cube spins"]
HOW = TrajectoryConfig(height=64, width=64, sections=2, steps=(3, 3, 3), guidance=2.0, shard=3)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory, random_models):
    out = tmp_path_factory.mktemp("trajectories") / "made"
    pipe = helios.pipeline.load(random_models / "mid", device="cpu", dtype="float32")
    teacher = Teacher(
        name="mid", transformer=pipe.transformer, text=pipe.text_encoder, schedule=LINEAR
    )
    write_trajectories(teacher, WORDS, HOW, out, alone(), lambda _: None)
    return out


def build(models, trajectories, **changes):
    config = ode_config(models, trajectories).stage
    stage = replace(config, **changes).build(alone(), seed=0, compiled=False)
    stage.prepare()
    return stage


@pytest.fixture(scope="module")
def stage(random_models, trajectories):
    return build(random_models, trajectories)


def test_the_loss_is_zero_for_a_student_that_jumps_to_the_end_of_each_stage(stage, monkeypatch):
    batch = stage.batch(0.0)
    legs = {leg.states.shape[-1]: leg for leg in batch.sections[1]}

    def perfect(x, timestep, text, window):
        leg = next(
            leg
            for section in batch.sections
            for leg in section
            if leg.states.shape[-1] == x.shape[-1]
            and any(torch.equal(x, leg.states[:, p].float()) for p in range(len(leg.sigmas)))
        )
        point = next(p for p in range(len(leg.sigmas)) if torch.equal(x, leg.states[:, p].float()))
        assert timestep.tolist() == [leg.timesteps[point]] * len(x)
        return (x - leg.states[:, -1].float()) / leg.sigmas[point]

    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.ones(2, dtype=torch.int64))
    transformer = parts_of(stage.model)[0]
    monkeypatch.setattr(transformer, "forward", perfect)
    loss, scalars = stage.loss(batch)
    assert len(legs) == 3
    assert float(loss) < 1e-9
    assert scalars.keys() == {f"loss_stage_{k}" for k in range(3)}


def test_the_loss_is_half_the_squared_error_times_its_weight(stage, monkeypatch):
    batch = stage.batch(0.0)
    transformer = parts_of(stage.model)[0]
    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.zeros(2, dtype=torch.int64))
    monkeypatch.setattr(
        transformer, "forward", lambda x, timestep, text, window: torch.zeros_like(x)
    )
    loss, _ = stage.loss(batch)
    errors = [
        (leg.states[:, 0].double() - leg.states[:, -1].double()).square().mean()
        for section in batch.sections
        for leg in section
    ]
    assert float(loss) == pytest.approx(80 * 0.5 * float(sum(errors)) / 6, rel=1e-6)


def test_the_past_is_the_teachers_own(stage, monkeypatch):
    batch = stage.batch(0.0)
    seen = []
    transformer = parts_of(stage.model)[0]

    def watch(x, timestep, text, window):
        seen.append(window)
        return torch.zeros_like(x)

    monkeypatch.setattr(transformer, "forward", watch)
    stage.loss(batch)
    first = batch.sections[0][-1].states[:, -1].float()
    grown = History.empty(2, 16, 8, 8).append(first).window()
    later = [window for window in seen if window.present.any()]
    assert len(later) == 3
    assert len(seen) == 6
    for window in later:
        assert torch.equal(window.frames, grown.frames)
        assert torch.equal(window.present, grown.present)


def test_points_are_those_of_the_sampler(stage):
    leg = stage.batch(0.0).sections[0][0]
    x, sigma, timestep = at_point(leg, torch.tensor([0, 3]))
    assert sigma.tolist() == [leg.sigmas[0], leg.sigmas[3]]
    assert timestep.tolist() == [leg.timesteps[0], leg.timesteps[3]]
    assert torch.equal(x[1], leg.states[1, 3].float())
    plan = Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True)
    told = [s for s in steps(lambda x, t: x, plan, torch.zeros(1, 16, 9, 8, 8), LINEAR) if s.sigma]
    assert [(s.sigma, s.timestep) for s in told if s.stage == 0] == list(
        zip(leg.sigmas, leg.timesteps, strict=True)
    )


def test_resumed_equals_uninterrupted_and_the_result_generates_in_few_steps(
    tmp_path, random_models, trajectories
):
    config = ode_config(random_models, trajectories, steps=4, checkpoint_every=2)
    train(config, tmp_path / "a", device="cpu")
    middle = tmp_path / "a/checkpoints/step-00000002"
    train(config, tmp_path / "b", device="cpu", resume=str(middle))
    ends = [tensors(tmp_path / run / "checkpoints/step-00000004") for run in "ab"]
    assert same(*ends)
    pipe = helios.pipeline.load(tmp_path / "a/model", device="cpu", dtype="float32")
    assert pipe.defaults.distilled
    assert pipe.defaults.guidance is None
    assert pipe.schedule == LINEAR
    assert pipe("a red ball", num_frames=5, seed=1, steps=(1, 1, 1)).frames.shape[0] == 5


@pytest.mark.parametrize("adapter", [None, LoraConfig(rank=4)])
def test_loss_falls(random_models, trajectories, adapter):
    stage = build(random_models, trajectories, adapter=adapter)
    learning = [p for p in stage.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=OptimizerConfig(lr=5e-3).lr)
    losses = []
    for _ in range(12):
        loss, _ = stage.loss(stage.batch(0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_what_does_not_fit_is_refused(random_models, trajectories):
    with pytest.raises(ValueError, match=r"stage\.trajectories"):
        build(random_models, None)
    with pytest.raises(ValueError, match="--initial"):
        build(random_models, trajectories, initial=None, codec=random_models / "mid")
    with pytest.raises(DataError, match="noise levels"):
        build(random_models, trajectories, schedule=replace(LINEAR, gamma=0.25))
    with pytest.raises(DataError, match="2 sections"):
        build(random_models, trajectories, sections=3)
