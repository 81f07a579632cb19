import shutil
from dataclasses import replace

import pytest
import torch

from helios.errors import CheckpointError
from helios.pipeline import find_model as find_named_model
from helios.training import find_codec, find_model
from helios.training.networks import load_networks, unseen_prompts

TINY = find_named_model("tiny")


def test_the_codec_is_found_or_asked_for(tmp_path, random_codec):
    assert find_codec(random_codec) == random_codec / "vae"
    assert find_codec(random_codec / "vae") == random_codec / "vae"
    with pytest.raises(ValueError, match="--codec"):
        find_codec(None)
    with pytest.raises(CheckpointError, match="no autoencoder"):
        find_codec(tmp_path)


def test_a_model_is_found_in_its_folder_or_in_that_of_its_run(tmp_path):
    assert find_model(TINY) == TINY
    (tmp_path / "model").symlink_to(TINY)
    assert find_model(tmp_path) == tmp_path / "model"
    with pytest.raises(CheckpointError, match="no model"):
        find_model(tmp_path / "model" / "vae")


def test_networks_of_another_shape_are_named():
    from helios.presets.models import tiny_transformer

    config = tiny_transformer()
    transformer, text = load_networks(TINY, config)
    assert transformer.config == config
    assert text.dim == config.text_dim
    with pytest.raises(CheckpointError, match="ffn_dim is 768"):
        load_networks(TINY, replace(config, ffn_dim=512))


def test_a_remedy_can_be_taken_away_but_not_given_back(tmp_path):
    from helios.model import save_transformer
    from helios.presets.models import tiny_transformer

    whole = tiny_transformer()
    without = replace(whole, without_anchor=True, guidance_cross_attn=False)
    transformer, _ = load_networks(TINY, without)
    original, _ = load_networks(TINY, whole)
    assert transformer.config == without
    assert not transformer.blocks[0].text_to_noisy_only
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter, transformer.get_parameter(name))
        assert transformer.get_parameter(name).requires_grad

    shutil.copytree(TINY, tmp_path / "model")
    save_transformer(transformer, tmp_path / "model" / "transformer")
    assert load_networks(tmp_path, without)[0].config == without
    with pytest.raises(CheckpointError, match="without_anchor is True"):
        load_networks(tmp_path, whole)


def test_unseen_prompts_repeat_with_their_seed():
    assert unseen_prompts(3, 1) == unseen_prompts(5, 1)[:3]
    assert unseen_prompts(3, 1) != unseen_prompts(3, 2)


def test_a_bidirectional_model_serves_as_a_start(tmp_path):
    from diffusers import WanTransformer3DModel

    from helios.model import TransformerConfig

    size = {"num_attention_heads": 1, "attention_head_dim": 12, "ffn_dim": 8, "num_layers": 1}
    size |= {"text_dim": 160, "freq_dim": 8}
    WanTransformer3DModel(**size).save_pretrained(tmp_path / "transformer")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(TINY / part, tmp_path / part)
    (tmp_path / "model_index.json").write_text("{}")
    config = TransformerConfig(**size, rope_dim=(4, 4, 4))
    transformer, text = load_networks(tmp_path, config)
    assert transformer.config == config
    assert text.dim == 160
