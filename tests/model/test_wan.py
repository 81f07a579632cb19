import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from helios.errors import CheckpointError
from helios.model import load_wan, published_name


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=20,
        ffn_dim=32,
        num_layers=2,
        text_dim=24,
        freq_dim=32,
        rope_max_seq_len=32,
    )


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("wan")
    theirs.save_pretrained(path)
    return path


def test_every_weight_is_taken_and_memory_starts_from_them(theirs, folder):
    ours = load_wan(folder)
    assert ours.config.rope_dim == (8, 6, 6)
    stored = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith("patches.") and not name.startswith("patches.noisy"):
            continue
        published = published_name(name).replace("norm_out.scale_shift", "scale_shift")
        assert torch.equal(parameter, stored.pop(published)), name
    assert not stored


def test_memory_patches_are_averages_of_the_loaded_patcher(folder):
    patches = load_wan(folder).patches
    x = torch.randn(1, 16, 4, 8, 16)
    assert torch.equal(patches.short(x), patches.noisy(x))
    for patch, ratio in ((patches.mid, 2), (patches.long, 4)):
        expected = patches.noisy(F.avg_pool3d(x, ratio))
        torch.testing.assert_close(patch(x), expected, rtol=0, atol=1e-5)


def test_it_runs_and_learns(folder):
    from .cases import inputs

    model = load_wan(folder)
    x, timestep, text, window = inputs(model.config, size=(4, 8))
    model(x, timestep, text, window).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "HeliosTransformer3DModel"}, "not a Wan"),
        ({"image_dim": 1280}, "images"),
        ({"ffn_dim": 48}, "expected"),
        ({"num_layers": 3}, "missing"),
    ],
)
def test_other_networks_are_refused(folder, tmp_path, changes, words):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=words):
        load_wan(tmp_path)
