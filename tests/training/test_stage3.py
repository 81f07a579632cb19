import json
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import helios.pipeline
from helios.diffusion import Pyramid
from helios.errors import CheckpointError
from helios.history import CorruptionConfig, DropConfig
from helios.model import LoraConfig, adapters_of
from helios.training import DynamicRenoise, Trainer, train
from helios.training.networks import parts_of
from helios.training.rollout import draw_exits
from helios.training.windows import Noised

from .small import stage3_config
from .test_codec_stage import same, tensors
from .test_distributed import launch
from .toys import alone


def build(models, **changes):
    config = replace(stage3_config(models).stage, **changes)
    return config.build(alone(), seed=0, compiled=False)


@pytest.fixture(scope="module")
def stage(random_models):
    made = build(random_models)
    made.prepare()
    return made


def windows_of(stage):
    batch = stage.batch(0.0)
    return stage.windows(batch, stage._first())


def noised(stage, windows, generator=0):
    draws = torch.Generator().manual_seed(generator)
    x = torch.randn(windows.clean.shape, generator=draws)
    sigma = torch.rand(len(x), generator=draws)
    return Noised(x, torch.zeros_like(x), sigma)


def test_the_teacher_is_both_scores(stage):
    """Adapter off: the teacher's own weights, bit for bit; on and fresh: the same numbers."""
    windows = windows_of(stage)
    sample = noised(stage, windows)
    given = (sample.x, sample.timestep, windows.score_text, windows.window)
    adapters = adapters_of(stage._teacher)
    plain = replace(stage.config, guidance=1.0)
    with torch.no_grad():
        held, stage.config = stage.config, plain
        real, fake = stage.scores(sample, windows)
        assert torch.equal(real, fake)
        adapter = adapters.remove("critic")
        bare = stage._teacher(*given)
        adapters.add("critic", adapter)
        level = sample.sigma.view(-1, 1, 1, 1, 1)
        assert torch.equal(real, sample.x - level * bare)
        before = {name: p.clone() for name, p in adapter.named_parameters()}
        for parameter in adapter.parameters():
            parameter.add_(0.1)
        moved = stage.scores(sample, windows)
        assert torch.equal(moved[0], real)
        assert not torch.allclose(moved[1], fake)
        for name, parameter in adapter.named_parameters():
            parameter.copy_(before[name])
        stage.config = held
        guided, _ = stage.scores(sample, windows)
        against = stage._teacher(*given[:2], stage._unconditional.expand_as(given[2]), given[3])
        velocity = against + 2.0 * (bare - against)
        torch.testing.assert_close(guided, sample.x - level * velocity)


def test_windows_are_real_or_without_a_past(random_models):
    stage = build(
        random_models,
        drop=DropConfig(all=1.0, i2v=0.0, v2v=0.0),
        corruption=CorruptionConfig(noise=0.0, scale=0.0),
        student_corruption=CorruptionConfig(noise=1.0, noise_range=(0.2, 0.3), scale=0.0),
    )
    stage.prepare()
    batch = stage.batch(0.25)
    windows = stage.windows(batch, False)
    assert windows.progress == 0.25
    assert windows.window.present.any(dim=1).all()
    latents = batch.latents.float()
    assert torch.equal(windows.clean, latents[:, :, 9:])
    assert torch.equal(windows.window.frames[:, :, -9:], latents[:, :, :9])
    assert not torch.allclose(windows.own.frames[:, :, -9:], latents[:, :, :9])
    first = stage.windows(batch, True)
    assert not first.window.present.any()
    assert (first.own.frames == 0).all()


def test_only_the_first_chunk_has_an_amplified_plan(random_models, monkeypatch):
    stage = build(random_models)
    stage.prepare()
    seen = []

    def simulated(denoiser, plan, start, *_, **__):
        seen.append(plan.amplify)
        return start

    monkeypatch.setattr("helios.training.stage3.simulate", simulated)
    for first in (True, False):
        stage.rollout(stage.windows(stage.batch(0.0), first))
    assert seen == [True, False]


def test_a_whole_rollout_is_the_chunk_that_the_pipeline_makes(random_models):
    stage = build(random_models, text_share=1.0, batch=1)
    stage.prepare()
    windows = windows_of(stage)
    assert not windows.own.present.any()
    with torch.no_grad():
        made = stage.rollout(windows, generator=torch.Generator().manual_seed(3), whole=True)
    pipe = stage._pipeline(stage.model.eval())
    generator = torch.Generator().manual_seed(3)
    video = pipe(prompt_embeds=windows.text, generator=generator, num_frames=33)
    torch.testing.assert_close(made[0], video.latents)


def test_what_learns_gets_a_gradient_in_its_own_turn_and_nothing_else_does(stage):
    students = {n: p for n, p in stage.model.named_parameters() if p.requires_grad}
    critics = dict(stage._critic.named_parameters())
    assert all(name.startswith("transformer.") for name in students)
    assert {name.partition(".")[0] for name in critics} == {"adapter", "heads"}
    assert not any(p.requires_grad for p in adapters_of(stage._teacher).base_parameters().values())

    loss, scalars = stage.loss(stage.batch(0.0))
    loss.backward()
    assert scalars.keys() == {"matching", "gradient", "adversarial"}
    assert [n for n, p in students.items() if p.grad is None] == []
    assert [n for n, p in critics.items() if p.grad is not None] == []
    for parameter in students.values():
        parameter.grad = None

    loss, scalars = stage.critic_loss(stage.batch(0.0))
    loss.backward()
    assert scalars.keys() == {"flow", "made", "real", "r1"}
    assert [n for n, p in critics.items() if p.grad is None] == []
    assert [n for n, p in students.items() if p.grad is not None] == []
    for parameter in critics.values():
        parameter.grad = None


def test_the_critic_learns_what_the_student_makes(stage, monkeypatch):
    """Its target is the straight path from the student's sample to the noise, at uniform levels."""
    monkeypatch.setattr(stage, "_head_terms", lambda *a: {"made": torch.zeros(())})
    made = torch.randn(4, 16, 9, 8, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(stage, "rollout", lambda windows: made)
    seen = []

    def perfect(x, timestep, text, window):
        seen.append(timestep)
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return (x - made) / sigma  # (x - (1 - s) c) / s - c

    monkeypatch.setattr(stage._teacher, "forward", perfect)
    loss, _ = stage.critic_loss(stage.batch(0.0))
    assert float(loss) < 1e-8
    assert all(20 <= float(t) <= 980 for t in seen[0])


def test_real_and_perturbed_samples_share_their_crop_past_and_level(stage, monkeypatch):
    windows = windows_of(stage)
    sample = noised(stage, windows)
    seen = {}

    def watch(transformer, heads, x, timestep, text, window, crop):
        seen.update(x=x, timestep=timestep, text=text, window=window, crop=crop)
        return x.flatten(1).mean(dim=1, keepdim=True)

    monkeypatch.setattr("helios.training.stage3.judge", watch)
    terms = stage._head_terms(sample, windows, stage.config.adversarial)
    made, real, twin = seen["x"].chunk(3)
    assert torch.equal(made, sample.x)
    assert float((twin - real).std()) == pytest.approx(0.1, rel=0.05)
    level = sample.sigma.view(-1, 1, 1, 1, 1)
    noise = (real - (1 - level) * windows.clean) / level
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    for part in seen["window"].frames.chunk(3):
        assert torch.equal(part, windows.window.frames)
    for part in seen["timestep"].chunk(3):
        assert torch.equal(part, 1000 * sample.sigma)
    assert terms.keys() == {"made", "real", "r1"}


def test_both_terms_of_the_critic_are_one_step_of_its_optimizer(tmp_path, random_models):
    """Adam would take away the weights between them if each had a step (training.md, 11, F3)."""
    config = stage3_config(random_models, checkpoint_every=0)
    stage = config.stage.build(alone(), seed=0, compiled=False)
    stage.prepare()
    trainer = Trainer(stage, config, alone(), tmp_path)
    for step in range(3):
        trainer._one_step(0.1)
        trainer.step += 1
        counts = {
            name: {int(held["step"]) for held in learner.optimizer.state.values()}
            for name, learner in trainer._learners.items()
        }
        assert counts == {"student": {step // 2 + 1}, "critic": {step + 1}}


def test_ranks_leave_stages_together_but_see_noise_of_their_own(random_models):
    """Training.md, 11, F17."""
    config = stage3_config(random_models).stage
    worlds = [replace(alone(), rank=rank) for rank in range(2)]
    stages = [config.build(world, seed=0, compiled=False) for world in worlds]
    exits = [[draw_exits(config.plan, stage._choices) for _ in range(20)] for stage in stages]
    assert exits[0] == exits[1]
    assert len(set(exits[0])) > 1
    one, other = (torch.randn(4, generator=stage.noise) for stage in stages)
    assert not torch.equal(one, other)


def test_all_three_are_told_the_same_but_for_what_the_student_suffers(random_models, monkeypatch):
    """Text and past of student, real and fake score (training.md, 6.3 and 11, F31)."""
    suffers = CorruptionConfig(noise=1.0, noise_range=(0.2, 0.3), scale=0.0)
    for changes in ({}, {"student_corruption": suffers}):
        stage = build(random_models, teacher=random_models / "mid", **changes)
        stage.prepare()
        told = {"student": [], "teacher": []}
        networks = {"student": parts_of(stage.model)[0], "teacher": stage._frozen}
        for name, network in networks.items():
            watch = told[name]
            network.register_forward_pre_hook(
                lambda _, given, watch=watch: watch.append((given[2], given[3]))
            )
        windows = stage.windows(stage.batch(0.0), False)
        with torch.no_grad():
            stage.rollout(windows)
            stage.scores(noised(stage, windows), windows)
        fake, real, against = told["teacher"]
        whole = windows.window.frames
        for text, window in (fake, real, against):
            assert torch.equal(window.frames, whole)
            assert torch.equal(text, stage._unconditional.expand_as(text)) == (text is against[0])
        assert torch.equal(fake[0], real[0])
        for text, window in told["student"]:
            assert torch.equal(text, fake[0])
            assert torch.equal(window.present, windows.window.present)
            assert torch.equal(window.frames, whole) == (not changes)


def test_a_checkpoint_holds_what_learns_and_no_base(tmp_path, random_models):
    """Nothing of a large base is written or read again (training.md, 11, F26 and F27)."""
    config = stage3_config(random_models, steps=1, checkpoint_every=0)
    changes = {"adapter": LoraConfig(rank=2), "sample_clips": 0, "validation_clips": 0}
    stage = replace(config.stage, **changes).build(alone(), seed=0, compiled=False)
    trainer = Trainer(stage, config, alone(), tmp_path)
    trainer.run()
    held = [name for name in trainer._shared() if "/model." in name]
    assert {name.split("/model.")[1].split(".")[0] for name in held} == {"adapter", "heads"}
    assert not any("transformer" in name for name in trainer._shared())


def test_the_student_learns_in_every_nth_step(stage):
    assert [stage.turns(step) for step in range(3)] == [
        ("student", "critic"),
        ("critic",),
        ("student", "critic"),
    ]


def test_the_critic_can_have_a_head_start(random_models):
    stage = build(random_models, student_after=3)
    due = [step for step in range(8) if "student" in stage.turns(step)]
    assert due == [3, 5, 7]
    assert all("critic" in stage.turns(step) for step in range(8))


def test_compiled_or_not_the_losses_are_the_same_and_graphs_are_few(random_models, monkeypatch):
    """A block is another graph for each scale, with and without gradients, and for each adapter."""
    counter = CompileCounter()
    module_compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **how: module_compile(self, backend=counter, **how),
    )
    found, graphs = [], []
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        for compiled in (False, True):
            stage = stage3_config(random_models).stage.build(alone(), seed=0, compiled=compiled)
            stage._data._compiled = False
            stage.prepare()
            for turn in range(2):
                for loss_of in (stage.loss, stage.critic_loss):
                    loss, _ = loss_of(stage.batch(0.0))
                    loss.backward()
                    found.append(loss.item())
                graphs.append((turn, counter.frame_count))
    assert found[4:] == pytest.approx(found[:4], rel=1e-4)
    (_, none), (_, first), (_, last) = graphs[1:]
    assert none == 0
    assert 0 < first <= last <= 16


def test_resumed_equals_uninterrupted_bit_for_bit_and_the_result_generates(tmp_path, random_models):
    config = stage3_config(random_models, steps=4, checkpoint_every=2, ema_decay=0.98)
    report = train(config, tmp_path / "a", device="cpu")
    middle = tmp_path / "a/checkpoints/step-00000002"
    again = train(config, tmp_path / "b", device="cpu", resume=str(middle))
    ends = [tensors(tmp_path / run / "checkpoints/step-00000004") for run in "ab"]
    assert same(*ends)
    assert report == again
    assert report.keys() == {"unseen_distance"}
    names = " ".join(ends[0][0])
    for held in ("student/model.", "student/ema.", "student/optimizer.", "critic/optimizer."):
        assert held in names
    assert "critic/ema." not in names
    lines = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert {"student_loss", "critic_loss", "critic_flow", "critic_r1"} <= lines[0].keys()

    pipe = helios.pipeline.load(tmp_path / "a/model", device="cpu", dtype="float32")
    assert pipe.defaults.distilled
    assert isinstance(pipe.defaults.plan, Pyramid)
    for steps in ((1, 1, 1), (2, 2, 2)):
        video = pipe("a red ball bounces on grass", num_frames=35, seed=1, steps=steps)
        assert video.frames.shape == (35, 64, 64, 3)
    with pytest.raises(ValueError, match="distilled"):
        pipe("a red ball", num_frames=5, guidance_scale=3.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial": None},
        {"renoise": DynamicRenoise(fade=0.0)},
        {"adapter": LoraConfig(rank=2)},
        {"text_share": 0.0},
        {"text_share": 1.0},
    ],
)
def test_the_arms_of_the_ablations_run(tmp_path, random_models, changes):
    config = stage3_config(random_models, steps=1, checkpoint_every=0)
    stage = replace(config.stage, sample_clips=0, validation_clips=0, **changes)
    made = stage.build(alone(), seed=0, compiled=False)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    Trainer(made, replace(config, stage=stage), alone(), tmp_path).run()
    moved = {n for n, p in made.model.named_parameters() if not torch.equal(before[n], p)}
    prefix = "adapter" if "adapter" in changes else "transformer"
    assert moved
    assert all(name.startswith(prefix) for name in moved)
    assert (tmp_path / "adapter.safetensors").is_file() == ("adapter" in changes)
    assert ("heads" in made._critic) == ("adversarial" not in changes)


def test_a_share_of_batches_is_without_a_past(random_models):
    stage = build(random_models, text_share=0.4)
    drawn = [stage._first() for _ in range(2000)]
    assert abs(sum(drawn) / 2000 - 0.4) < 4 * (0.24 / 2000) ** 0.5


def test_what_cannot_be_is_refused(random_models):
    config = stage3_config(random_models).stage
    with pytest.raises(ValueError, match=r"stage\.teacher"):
        build(random_models, teacher=None)
    with pytest.raises(ValueError, match="--initial"):
        build(random_models, initial=None, codec=random_models / "mid")
    with pytest.raises(ValueError, match="blocks"):
        build(random_models, adversarial=replace(config.adversarial, blocks=(1,)))
    with pytest.raises(CheckpointError, match="transformer"):
        build(random_models, transformer=replace(config.transformer, ffn_dim=64))
    for bad in (
        {"student_every": 0},
        {"student_after": -1},
        {"text_share": 1.5},
        {"guidance": -1.0},
        {"text_learns": True},
        {"sections": 1},
        {"offload": True},
        {"generation": replace(config.generation, plan=Pyramid(steps=(2, 2, 2)))},
        {"schedule": replace(config.schedule, lag=True)},
    ):
        with pytest.raises(ValueError):
            replace(config, **bad)


def test_offloading_changes_where_weights_are_and_nothing_else(random_models):
    economical = {"adapter": LoraConfig(rank=2), "recompute": True}
    found = []
    for offload in (False, True):
        stage = build(random_models, offload=offload, **economical)
        stage.prepare()
        values = []
        for loss_of in (stage.loss, stage.critic_loss, stage.loss):
            loss, _ = loss_of(stage.batch(0.5))
            loss.backward()
            values.append(loss.detach())
        learning = [p for p in stage.model.parameters() if p.requires_grad]
        learning += list(stage._critic.parameters())
        found.append((values, [p.grad for p in learning]))
        frozen = [p for p in stage._frozen.parameters() if not p.requires_grad]
        assert all(p.numel() == 0 for p in frozen) == offload
        if offload:
            assert stage._teacher.head.project.weight.numel() > 0
            assert stage._model["transformer"].head.project.weight.numel() == 0
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


WORKER = """
import sys, torch
from pathlib import Path
from helios.distributed import join
from helios.training import Trainer
from training.small import stage3_config

out, models = (Path(line) for line in Path(sys.argv[1], "where").read_text().split("\\n"))
config = stage3_config(models, steps=3, checkpoint_every=0, final_checkpoint=False)
with join("cpu") as world:
    stage = config.stage.build(world, seed=0, compiled=False)
    trainer = Trainer(stage, config, world, out / "run")
    trainer.run()
    torch.save(trainer._shared(), out / f"{world.rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks_stay_alike_though_students_and_critics_take_turns(tmp_path, random_models):
    (tmp_path / "where").write_text(f"{tmp_path}\n{random_models}")
    for worker in launch(WORKER, tmp_path):
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert any(name.startswith("critic/model.heads") for name in one)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
