"""Equality with the public implementation, files going both ways."""

import json
import math
import random

import pytest
import torch
import torch.nn.functional as F
from diffusers import HeliosTransformer3DModel

from helios.kernels import rope
from helios.model import (
    HeliosTransformer,
    TransformerConfig,
    fp32_names,
    load_transformer,
    published_name,
    save_transformer,
)
from helios.model.patch import Patch

from .cases import SMALL, ask_oracle, build, inputs, perturb, small

SIZES = [
    ((4, 6), (16, 24)),  # quarter-resolution chunk, full-resolution history
    ((8, 12), (16, 24)),
    ((16, 24), (16, 24)),
    ((18, 26), (18, 26)),  # mid and long history are padded
    ((6, 10), (14, 22)),
    ((2, 2), (2, 2)),
    ((10, 4), (10, 4)),
]


def random_case(seed):
    """A random small configuration and input geometry."""
    dice = random.Random(seed)
    parts = tuple(2 * dice.randint(1, 4) for _ in range(3))
    config = {
        "num_attention_heads": dice.randint(1, 4),
        "attention_head_dim": sum(parts),
        "rope_dim": parts,
        "rope_theta": dice.choice([10000.0, 256.0]),
        "ffn_dim": 8 * dice.randint(2, 8),
        "num_layers": dice.randint(1, 4),
        "text_dim": 4 * dice.randint(2, 10),
        "freq_dim": 2 * dice.randint(8, 128),
        "eps": dice.choice([1e-6, 1e-5]),
        "cross_attn_norm": seed % 4 != 1,
        "guidance_cross_attn": seed % 5 != 2,
        "zero_history_timestep": seed % 6 != 3,
        "is_amplify_history": seed % 7 == 4,
        "history_scale_mode": dice.choice(["per_head", "scalar"]),
    }
    size, history = SIZES[seed % len(SIZES)]
    geometry = {"batch": dice.randint(1, 3), "size": size, "history": history}
    return config, {**geometry, "rows": dice.randint(1, 20), "seed": seed}


def oracle(config, seed=0):
    torch.manual_seed(seed)
    return perturb(HeliosTransformer3DModel(**config), seed).eval()


@torch.no_grad()
@pytest.mark.parametrize("seed", range(16))
def test_their_file_in_our_model(seed, tmp_path):
    values, geometry = random_case(seed)
    theirs = oracle(values, seed)
    theirs.save_pretrained(tmp_path)
    ours = load_transformer(tmp_path)
    assert ours.config == small(**values)
    batch = inputs(ours.config, **geometry)
    expected = ask_oracle(theirs, *batch)
    error = (ours(*batch) - expected).abs().max().item()
    assert error <= 1e-5 * max(1.0, expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("seed", range(16, 32))
def test_our_file_in_their_model(seed, tmp_path):
    values, geometry = random_case(seed)
    ours = build(seed, **values)
    if values["is_amplify_history"]:
        for block in ours.blocks:
            block.self_attention.history_gain.abs_()  # the published form holds no gain below 1
    save_transformer(ours, tmp_path)
    theirs, report = HeliosTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    batch = inputs(ours.config, **geometry)
    expected = ask_oracle(theirs.eval(), *batch)
    error = (ours(*batch) - expected).abs().max().item()
    assert error <= 1e-5 * max(1.0, expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 6])
def test_the_same_operations_give_the_same_bits(seed, dtype, tmp_path, monkeypatch):
    """Patches as convolutions and pairs turned one by one: no bit differs."""

    def convolve(self, x):
        missing = [-size % step for size, step in zip(x.shape[2:], self.kernel)]
        x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
        tokens = F.conv3d(x, self.weight, self.bias, self.kernel)
        return tokens.flatten(2).transpose(1, 2)

    monkeypatch.setattr(Patch, "forward", convolve)
    monkeypatch.setattr(rope, "_turn_complex", rope._turn_pairs)
    values, geometry = random_case(seed)
    oracle(values, seed).save_pretrained(tmp_path)
    theirs = HeliosTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype).eval()
    for parameter in theirs.parameters():
        # Theirs lie in the mapped file, where they fall; a matrix product rounds by alignment.
        parameter.data = parameter.data.clone()
    ours = load_transformer(tmp_path, dtype=dtype)
    batch = inputs(ours.config, dtype=dtype, **geometry)
    assert torch.equal(ours(*batch), ask_oracle(theirs, *batch))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(7, 13))
def test_bfloat16_differs_by_two_units_in_the_last_place_at_most(seed, tmp_path):
    values, geometry = random_case(seed)
    values["is_amplify_history"] = False  # the public form of it refuses half precision
    oracle(values, seed).save_pretrained(tmp_path)
    theirs = HeliosTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).eval()
    ours = load_transformer(tmp_path, dtype=torch.bfloat16)
    batch = inputs(ours.config, dtype=torch.bfloat16, **geometry)
    expected = ask_oracle(theirs, *batch)
    out = ours(*batch)
    assert out.dtype == torch.bfloat16
    unit = 2.0 ** (math.floor(math.log2(expected.abs().max().item())) - 7)
    assert (out.float() - expected.float()).abs().max().item() <= 2 * unit


def test_parameters_survive_their_reader_and_ours_bit_for_bit(tmp_path):
    theirs = oracle(SMALL, 0)
    theirs.save_pretrained(tmp_path / "theirs")
    save_transformer(load_transformer(tmp_path / "theirs"), tmp_path / "ours")
    again = HeliosTransformer3DModel.from_pretrained(tmp_path / "ours")
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    configs = [json.loads((tmp_path / of / "config.json").read_text()) for of in ("theirs", "ours")]
    del configs[0]["_diffusers_version"]
    assert configs[0] == configs[1]


def test_sharded_files_of_theirs(tmp_path):
    theirs = oracle(SMALL, 0)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    ours = load_transformer(tmp_path)
    assert torch.equal(ours.head.project.weight, theirs.proj_out.weight)


def test_the_published_size_has_the_published_names_and_shapes():
    with torch.device("meta"):
        ours = HeliosTransformer(TransformerConfig())
        theirs = HeliosTransformer3DModel()
    names = {published_name(name): tuple(p.shape) for name, p in ours.named_parameters()}
    assert len(names) == 1101
    assert names == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 14_312_427_584
    assert len(fp32_names(ours)) == 125
    assert not list(ours.buffers())
