"""Every stage from videos: a folder of them, encoded by the command, learnt from, generated."""

import random
from dataclasses import replace

import pytest
import torch

import helios.pipeline
from helios.cli.main import run
from helios.data import SceneFrames, SceneLatents, read_clips
from helios.data.scenes import caption, sample_scenes
from helios.errors import DataError
from helios.media import VideoWriter
from helios.model import LoraConfig
from helios.presets import override, training_preset
from helios.training import train
from helios.training.networks import parts_of

from .small import SQUARE, codec_config, stage1_config, stage3_config
from .test_codec_stage import same, tensors
from .test_stage2 import stage2_config
from .toys import alone

PROMPT = "a red ball bounces on grass"


def film(folder, count, seed):
    """Short films of scenes, two sections long, with their captions beside them."""
    scenes = sample_scenes(count, seed)
    frames = SceneFrames(replace(SQUARE, group=count), torch.device("cpu"), seed=seed)
    parts = [frames.group(index) for index in range(2)]
    for number, scene in enumerate(scenes):
        with VideoWriter(folder / f"{number}.mp4", 64, 64, 24, {}) as writer:
            for part in parts:
                writer.write(part[number].numpy())
        words = caption(scene, random.Random(number))
        (folder / f"{number}.txt").write_text(words, "utf-8")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return film(tmp_path_factory.mktemp("videos"), 4, seed=5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, videos, random_models):
    """The same, encoded by the command."""
    out = tmp_path_factory.mktemp("clips") / "latents"
    how = ["--size", "64x64", "--sections", "2", "--shard", "3", "--dtype", "float32"]
    model = ["--model", str(random_models / "mid"), "--device", "cpu"]
    assert run(["precompute", "latents", str(videos), "--out", str(out), *how, *model]) == 0
    return out


def stage_from(clips, models, name, **changes):
    """The small stage with clips in place of scenes; one encoder reads for all its models."""
    flat = replace(stage1_config(None).stage.generation, height=64, width=64)
    config, own = {
        "stage1": (stage1_config(None), {"generation": flat}),
        "stage2": (stage2_config(None), {}),
        "stage3": (stage3_config(models), {"teacher": models / "mid"}),
    }[name]
    own |= {"clips": clips, "unseen_clips": clips, "validation_clips": 2, "text_learns": False}
    own |= {"initial": models / "mid", "codec": None, "data": SQUARE, "batch": 2}
    trainer = replace(config.trainer, steps=4, checkpoint_every=2)
    return replace(config, stage=replace(config.stage, **own | changes), trainer=trainer)


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_a_stage_learns_from_videos_and_its_result_generates(
    tmp_path, videos, clips, random_models, name
):
    config = stage_from(clips, random_models, name)
    report = train(config, tmp_path / "a", device="cpu")
    assert 0 < report["unseen_distance" if name == "stage3" else "unseen_loss"] < 100
    middle = tmp_path / "a/checkpoints/step-00000002"
    assert train(config, tmp_path / "b", device="cpu", resume=str(middle)) == report
    assert same(*(tensors(tmp_path / run / "checkpoints/step-00000004") for run in "ab"))
    shown = (tmp_path / "a/samples/final/prompts.txt").read_text().splitlines()
    assert shown == [read_clips(videos)[0].caption]
    pipe = helios.pipeline.load(tmp_path / "a/model", device="cpu", dtype="float32")
    assert pipe(PROMPT, num_frames=35, seed=1).frames.shape == (35, 64, 64, 3)


def test_a_clip_teaches_what_the_scene_it_was_filmed_from_teaches(clips, random_models):
    """Latents and text of the folder are those that the stage would have made itself."""
    stage = stage_from(clips, random_models, "stage1", batch=4).stage
    made = stage.build(alone(), seed=0, compiled=False)
    made.prepare()
    batch = made.batch(0.0)
    codec = helios.pipeline.load(random_models / "mid", device="cpu", dtype="float32").codec
    tokenize = parts_of(made.model)[1].tokenize
    scenes = SceneLatents(
        replace(SQUARE, group=4), codec, tokenize, sections=1, wordings=1, batch_size=1, seed=5
    )
    rendered, _ = scenes.group(0)
    known = rendered.float().flatten(1)
    distance = torch.cdist(batch.latents[:, :, :9].float().flatten(1), known)
    # Compression changes them a little; another scene is much further away.
    assert sorted(distance.argmin(dim=1).tolist()) == [0, 1, 2, 3]
    generator = torch.Generator().manual_seed(0)
    made.config = replace(stage, caption_dropout=0.0)
    assert torch.equal(made.read(made.model, batch, generator), batch.text.float())
    made.config = replace(stage, caption_dropout=1.0)
    empty = parts_of(made.model)[1].encode([""]).expand_as(batch.text)
    torch.testing.assert_close(made.read(made.model, batch, generator), empty)


def test_an_adapter_beside_offloaded_bases_learns_from_videos(clips, random_models):
    """As the presets of full size do; the text encoder is not brought to the device with them."""
    economical = {"adapter": LoraConfig(rank=2), "recompute": True, "offload": True}
    config = stage_from(clips, random_models, "stage3", **economical).stage
    stage = config.build(alone(), seed=0, compiled=False)
    stage.prepare()
    for loss_of in (stage.loss, stage.critic_loss):
        loss, _ = loss_of(stage.batch(0.0))
        loss.backward()
        assert torch.isfinite(loss)
    text = parts_of(stage._model)[1]
    assert all(p.numel() and not p.requires_grad for p in text.parameters())
    assert all(p.grad is not None for p in stage._model["adapter"].parameters())


def test_the_autoencoder_learns_from_videos(tmp_path, videos):
    config = codec_config(steps=4, checkpoint_every=2)
    data = replace(SQUARE, refresh_every=1)
    changes = {"data": data, "clips": videos, "unseen_clips": videos, "statistics_clips": 4}
    config = replace(config, stage=replace(config.stage, **changes))
    report = train(config, tmp_path / "a", device="cpu")
    assert report.keys() == {"psnr", "psnr_worst", "psnr_moving"}
    middle = tmp_path / "a/checkpoints/step-00000002"
    assert train(config, tmp_path / "b", device="cpu", resume=str(middle)) == report
    assert (tmp_path / "a/model/vae/config.json").is_file()
    assert (tmp_path / "a/samples/final/reconstruction.png").is_file()


@pytest.mark.parametrize("preset", ["tiny-stage1-post", "tiny-stage2", "stage1", "stage2-post"])
def test_every_preset_takes_a_folder_of_clips(tmp_path, preset):
    config = override(training_preset(preset), [f"stage.clips={tmp_path}"])
    assert config.stage.clips == tmp_path
    assert not config.stage.text_learns


def test_what_cannot_be_learnt_from_is_refused(tmp_path, clips, random_models):
    with pytest.raises(ValueError, match=r"stage\.text_learns=false"):
        stage_from(clips, random_models, "stage1", text_learns=True)
    with pytest.raises(ValueError, match=r"needs stage\.clips"):
        stage_from(None, random_models, "stage1", unseen_clips=tmp_path)
    with pytest.raises(ValueError, match=r"needs stage\.clips"):
        replace(codec_config().stage, unseen_clips=tmp_path)
    other = {"initial": random_models / "base", "codec": random_models / "mid"}
    with pytest.raises(DataError, match="another text encoder"):
        stage_from(clips, random_models, "stage1", **other).stage.build(
            alone(), seed=0, compiled=False
        )
    with pytest.raises(ValueError, match="read captions differently"):
        stage_from(clips, random_models, "stage3", teacher=random_models / "base").stage.build(
            alone(), seed=0, compiled=False
        )
