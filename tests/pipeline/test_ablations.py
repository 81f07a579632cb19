"""Models trained without a remedy against drift, as users run them."""

from dataclasses import replace

import pytest
import torch

import helios.pipeline
from helios.model import HeliosTransformer

ASKED = {"num_frames": 99, "seed": 3, "steps": 1}
PROMPT = "a red ball bounces on grass"


@pytest.fixture
def without(make_pipeline, tmp_path):
    """The small pipeline with a switch on, from a folder."""

    def make(**switches):
        pipe = make_pipeline()
        other = HeliosTransformer(replace(pipe.transformer.config, **switches)).eval()
        other.load_state_dict(pipe.transformer.state_dict())
        pipe.transformer = other
        pipe.save(tmp_path / "model")
        return helios.pipeline.load(tmp_path / "model", device="cpu", dtype="float32")

    return make


def chunks(pipe):
    return pipe(PROMPT, **ASKED).latents.split(9, dim=1)


def test_absolute_positions_follow_the_stream(without, pipeline, tmp_path):
    absolute = without(absolute_positions=True)
    made, relative = chunks(absolute), chunks(pipeline)
    torch.testing.assert_close(made[0], relative[0], rtol=0, atol=1e-5)
    assert not torch.allclose(made[1], relative[1], atol=1e-4)

    request = helios.pipeline.Request(prompt=PROMPT, **ASKED)
    session = absolute.session(request)
    next(session)
    session.save(tmp_path / "session.safetensors")
    resumed = absolute.resume(tmp_path / "session.safetensors")
    for rest, expected in zip(resumed, made[1:]):
        assert torch.equal(rest.latents, expected)


def test_without_anchor_the_first_frame_is_forgotten(without, monkeypatch):
    from helios.history import History

    forgetful = without(without_anchor=True)
    expected = chunks(forgetful)
    append = History.append

    def another_anchor(history, chunk):
        after = append(history, chunk)
        return after.moved_anchor(after.window().anchor + 1)

    monkeypatch.setattr(History, "append", another_anchor)
    for made, first in zip(chunks(forgetful), expected):
        assert torch.equal(made, first)
