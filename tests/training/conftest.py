import pytest
import torch

from helios.codec import Codec, WanAutoencoder, save_codec

from .small import codec_config


@pytest.fixture(scope="session")
def random_codec(tmp_path_factory):
    """A folder with an autoencoder that has learnt nothing."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    save_codec(Codec(WanAutoencoder(codec_config().stage.autoencoder)), folder / "vae")
    return folder
