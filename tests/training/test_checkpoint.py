import json
import random

import numpy as np
import pytest
import torch

from helios.errors import CheckpointCorruptError, CheckpointError
from helios.training import checkpoint
from helios.training.checkpoint import Snapshot

from .toys import alone

CPU = torch.device("cpu")


def snapshot(step, value=1.0):
    return Snapshot(
        step=step,
        shared={"model.w": torch.full((5,), value)},
        own={"stage.n": torch.tensor([step])},
        info={"config": {}, "elapsed": 1.5},
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(3, 0.1), alone(), keep=2)
    assert path.name == "step-00000003"
    back = checkpoint.load(path, alone())
    assert back.step == 3
    assert back.info["elapsed"] == 1.5
    assert torch.equal(back.shared["model.w"], torch.full((5,), 0.1))
    assert torch.equal(back.own["stage.n"], torch.tensor([3]))


def test_old_ones_go_only_after_the_new_one_is_there(tmp_path):
    for step in (1, 2, 3, 12):
        checkpoint.save(tmp_path, snapshot(step), alone(), keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000012"]


@pytest.mark.parametrize("where", ["write_tensors", "write_json", "_flush"])
def test_an_interrupted_save_leaves_the_old_one_selected(tmp_path, monkeypatch, where):
    checkpoint.save(tmp_path, snapshot(1), alone(), keep=1)

    def broken(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, where, broken)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, snapshot(2), alone(), keep=1)
    assert checkpoint.find(tmp_path, "auto", print) == tmp_path / "step-00000001"
    checkpoint.save(tmp_path, snapshot(2), alone(), keep=1)
    assert checkpoint.find(tmp_path, "auto", print) == tmp_path / "step-00000002"


def test_a_leftover_of_a_killed_process_is_in_nobodys_way(tmp_path):
    checkpoint.save(tmp_path, snapshot(1), alone(), keep=2)
    left = tmp_path / ".step-00000002.tmp"
    left.mkdir()
    (left / "shared.safetensors").write_bytes(b"half")
    assert checkpoint.find(tmp_path, "auto", print) == tmp_path / "step-00000001"
    checkpoint.save(tmp_path, snapshot(2), alone(), keep=2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_a_damaged_one_is_passed_over_with_a_word(tmp_path, damage):
    checkpoint.save(tmp_path, snapshot(1), alone(), keep=2)
    newest = checkpoint.save(tmp_path, snapshot(2), alone(), keep=2)
    file = newest / "shared.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "remove":
        file.unlink()
    else:
        (newest / "manifest.json").write_text("{}")
    said = []
    assert checkpoint.find(tmp_path, "auto", said.append) == tmp_path / "step-00000001"
    assert len(said) == 1
    assert "step-00000002" in said[0]
    with pytest.raises(CheckpointError):
        checkpoint.find(tmp_path, str(newest), said.append)


def test_only_damaged_ones_are_never_a_fresh_start(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(1), alone(), keep=1)
    (path / "shared.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 1"):
        checkpoint.find(tmp_path, "auto", lambda line: None)
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        checkpoint.verify(path)


def test_nothing_yet_and_nothing_there(tmp_path):
    assert checkpoint.find(tmp_path / "none", "auto", print) is None
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.find(tmp_path, str(tmp_path / "gone"), print)


def test_another_number_of_ranks_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(1), alone(), keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"world_size": 4}))
    with pytest.raises(CheckpointError, match="4 ranks"):
        checkpoint.load(path, alone())


def test_every_random_generator_comes_back():
    state = checkpoint.random_state(CPU)
    drawn = (random.random(), np.random.rand(), torch.rand(3))
    checkpoint.set_random_state(state, CPU)
    again = (random.random(), np.random.rand(), torch.rand(3))
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])
