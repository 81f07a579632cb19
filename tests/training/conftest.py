import pytest
import torch

from helios.codec import Codec, WanAutoencoder, save_codec
from helios.data import SceneFrames, to_frames

from .small import RING, codec_config


@pytest.fixture(scope="session")
def random_codec(tmp_path_factory):
    """A folder with an autoencoder that has learnt nothing but the size of its latents."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    codec = Codec(WanAutoencoder(codec_config().stage.autoencoder))
    (clip,) = SceneFrames(RING, torch.device("cpu"), seed=0).group(0)
    latents = codec.encode(to_frames(clip))
    axes = (0, 2, 3, 4)
    codec = codec.with_statistics(latents.mean(axes).tolist(), latents.std(axes).tolist())
    save_codec(codec, folder / "vae")
    return folder
