import pytest

from helios.errors import CheckpointError
from helios.model import TransformerConfig

from .cases import small


def test_the_default_is_the_published_model():
    config = TransformerConfig()
    assert config.width == 5120
    assert (config.num_layers, config.ffn_dim, config.rope_dim) == (40, 13824, (44, 42, 42))


def test_json_and_back():
    config = small(is_amplify_history=True, cross_attn_norm=False, rope_theta=100.0)
    assert TransformerConfig.from_json(config.to_json()) == config
    assert config.to_json()["_class_name"] == "HeliosTransformer3DModel"
    assert config.to_json()["rope_dim"] == [4, 4, 4]


def test_options_of_our_own_are_written_only_when_on():
    assert "restrict_self_attn" not in small().to_json()
    restricted = small(restrict_self_attn=True)
    assert TransformerConfig.from_json(restricted.to_json()) == restricted


def test_unknown_switches_are_refused_and_unknown_settings_are_not():
    values = {**small().to_json(), "restrict_lora": False, "restrict_lora_rank": 128}
    assert TransformerConfig.from_json(values) == small()
    with pytest.raises(CheckpointError, match="restrict_lora"):
        TransformerConfig.from_json({**values, "restrict_lora": True})


def test_missing_output_channels_are_the_input_channels():
    values = {**small(in_channels=8, out_channels=8).to_json(), "out_channels": None}
    assert TransformerConfig.from_json(values).out_channels == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "WanTransformer3DModel"},
        {"patch_size": [1, 4, 4]},
        {"qk_norm": None},
        {"added_kv_proj_dim": 64},
        {"has_multi_term_memory_patch": False},
        {"rope_dim": [4, 4, 6]},
        {"rope_dim": None},
        {"num_layers": "three"},
        {"history_scale_mode": "per_token"},
    ],
)
def test_files_of_other_networks_are_refused(changes):
    with pytest.raises(CheckpointError):
        TransformerConfig.from_json({**small().to_json(), **changes})


@pytest.mark.parametrize(
    "changes", [{"num_layers": 0}, {"ffn_dim": -1}, {"freq_dim": 33}, {"rope_dim": (5, 3, 4)}]
)
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small(**changes)
