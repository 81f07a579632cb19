import pytest
import torch

from helios.codec import Codec, WanAutoencoder, save_codec
from helios.data import SceneFrames, to_frames

from .small import RING, codec_config, distillable
from .toys import alone


@pytest.fixture(scope="session")
def random_codec(tmp_path_factory):
    """A folder with an autoencoder that has learnt nothing but the size of its latents."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    codec = Codec(WanAutoencoder(codec_config().stage.autoencoder))
    clip = SceneFrames(RING, torch.device("cpu"), seed=0).group(0)
    latents = codec.encode(to_frames(clip))
    axes = (0, 2, 3, 4)
    codec = codec.with_statistics(latents.mean(axes).tolist(), latents.std(axes).tolist())
    save_codec(codec, folder / "vae")
    return folder


@pytest.fixture(scope="session")
def random_models(tmp_path_factory, random_codec):
    """Folders of models that have learnt nothing: a flat one, and one of three scales."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "mid")):
        stage = distillable(random_codec).build(alone(), seed=seed, compiled=False)
        # Fresh networks answer almost nothing; then mistakes in what they are asked hardly show.
        with torch.no_grad():
            for parameter in stage.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        stage.save(stage.model, folder / name)
    return folder
