import json
import re

import pytest

from helios.cli.main import run

SMALL = [
    "trainer.steps=2",
    "trainer.precision=fp32",
    "stage.data.height=32",
    "stage.data.width=48",
    "stage.data.supersampling=1",
    "stage.data.group=2",
    "stage.data.first_groups=1",
    "stage.data.groups=1",
    "stage.validation_clips=0",
]
CODEC = [
    "stage.autoencoder.base_dim=8",
    "stage.short_batch=1",
    "stage.batch=1",
    "stage.statistics_clips=2",
]
STAGE1 = [
    "stage.transformer.num_layers=1",
    "stage.transformer.num_attention_heads=1",
    "stage.transformer.ffn_dim=32",
    "stage.transformer.text_dim=16",
    "stage.text.layers=1",
    "stage.text.heads=1",
    "stage.text.ffn=16",
    "stage.batch=2",
    "stage.sections=2",
    "stage.generation.height=32",
    "stage.generation.width=48",
    "stage.generation.plan.steps=1",
    "stage.sample_clips=1",
    "stage.sample_chunks=1",
]


def train(*words, settings=()):
    options = [part for setting in settings for part in ("--set", setting)]
    return run(["train", *map(str, words), "--device", "cpu", *options])


def test_both_presets_one_after_the_other(tmp_path, capsys):
    codec, model = tmp_path / "codec", tmp_path / "stage1"
    assert train("tiny-codec", "--out", codec, settings=SMALL + CODEC) == 0
    assert train("tiny-stage1", "--codec", codec, "--out", model, settings=SMALL + STAGE1) == 0
    assert (model / "model/model_index.json").is_file()
    saved = json.loads((model / "config.json").read_text())
    assert saved["stage"]["transformer"]["num_layers"] == 1
    assert saved["stage"]["codec"] == str(codec)

    capsys.readouterr()
    assert train("tiny-codec", "--out", codec, settings=SMALL + CODEC) == 6
    assert "--resume auto" in capsys.readouterr().err
    longer = [*SMALL, *CODEC, "trainer.steps=3"]
    assert train("tiny-codec", "--out", codec, "--resume", "auto", settings=longer) == 0
    assert "going on from" in capsys.readouterr().err
    other = [*SMALL, *CODEC, "stage.kl_weight=1"]
    assert train("tiny-codec", "--out", codec, "--resume", "auto", settings=other) == 2
    assert "stage.kl_weight" in capsys.readouterr().err
    for path in (codec / "checkpoints").iterdir():
        (path / "shared.safetensors").write_bytes(b"")
    assert train("tiny-codec", "--out", codec, "--resume", "auto", settings=longer) == 4


PYRAMID = [
    *(setting for setting in SMALL if ".height" not in setting and ".width" not in setting),
    *(setting for setting in STAGE1 if "generation" not in setting),
    "stage.data.height=64",
    "stage.data.width=64",
    "stage.generation.height=64",
    "stage.generation.width=64",
    "stage.generation.plan.steps=1,1,1",
]


def test_stage2_starts_from_the_run_of_stage1_without_the_same_remedy(tmp_path):
    codec, one, two = tmp_path / "codec", tmp_path / "stage1", tmp_path / "stage2"
    without = ("--ablation", "no-anchor", "--ablation", "no-corruption")
    assert train("tiny-codec", "--out", codec, settings=SMALL + CODEC) == 0
    quick = [*SMALL, *STAGE1, "stage.sample_clips=0"]
    assert train("tiny-stage1", "--codec", codec, "--out", one, *without, settings=quick) == 0
    start = ("tiny-stage2", "--initial", one, "--out", two)
    assert train(*start, settings=PYRAMID) == 4
    assert train(*start, *without, settings=PYRAMID) == 0
    index = json.loads((two / "model/model_index.json").read_text())
    assert index["_class_name"] == "HeliosPyramidPipeline"
    network = json.loads((two / "model/transformer/config.json").read_text())
    assert network["without_anchor"] is True
    schedule = json.loads((two / "model/scheduler/scheduler_config.json").read_text())
    assert (schedule["stages"], schedule["shift_mode"]) == (3, "consistent")
    words = (
        "a red ball bounces on green grass",
        "--model",
        two / "model",
        "-o",
        tmp_path / "a.mp4",
    )
    assert run(["generate", *map(str, words), "--num-frames", "40", "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tiny-codex"], 2, "did you mean tiny-codec"),
        (["tiny-stage1"], 2, "--codec"),
        (["tiny-stage1", "--codec", "/nowhere"], 4, "no autoencoder"),
        (["tiny-codec", "--set", "trainer.stepz=3"], 2, "trainer.steps"),
        (["tiny-codec", "--set", "trainer.optimizer.lr=nan"], 2, "finite"),
        (["tiny-codec", "--resume", "/nowhere"], 4, "not a checkpoint"),
        (["tiny-codec", "--device", "tpu"], 2, "device"),
        (["tiny-stage2", "--initial", "/nowhere"], 4, "no autoencoder"),
        (["tiny-stage2", "--ablation", "no_anchor"], 2, "did you mean no-anchor"),
        (["tiny-stage2", "--set", "stage.data.height=48"], 2, "multiples of 64"),
        (["stage2"], 2, "--initial"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, words, code, said):
    assert run(["train", "--out", str(tmp_path / "run"), "--device", "cpu", *words]) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(rf"error: {code}: ", last)
    assert said in last
    assert not (tmp_path / "run").exists()


def test_show_prints_the_configuration(capsys):
    assert run(["train", "tiny-stage1", "--show", "--set", "trainer.optimizer.lr=1e-4"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["trainer"]["optimizer"]["lr"] == 1e-4
