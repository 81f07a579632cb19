"""Layers of a text encoder that visit a device: same embeddings, weights at home afterwards."""

import pytest
import torch

from helios.conditioning import TextEncoder, let_visit, tiny_umt5, word_tokenizer

WORDS = ["a", "red", "ball", "on", "grass"]
TEXT = ["a red ball on grass", "a ball"]


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return tiny_umt5(word_tokenizer(WORDS, 12), 32, 2, 4, 8, 48).eval()


def test_the_embeddings_are_the_same_and_the_weights_come_home(encoder: TextEncoder) -> None:
    before, own = encoder.encode(TEXT), [id(p) for p in encoder.parameters()]
    let_visit(encoder, torch.device("cpu"))
    assert torch.equal(encoder.encode(TEXT), before)
    assert [id(p) for p in encoder.parameters()] == own


def test_the_layers_run_there_and_the_table_of_words_stays(encoder: TextEncoder) -> None:
    """A device without memory shows where the work is done."""
    let_visit(encoder, torch.device("meta"))
    assert encoder.encode(TEXT).device.type == "meta"
    assert {p.device.type for p in encoder.parameters()} == {"cpu"}
    assert encoder.device.type == "cpu"


def test_a_layer_that_fails_leaves_nothing_behind(encoder: TextEncoder) -> None:
    own = [id(p) for p in encoder.parameters()]
    let_visit(encoder, torch.device("cpu"))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    encoder.encoder.encoder.block[1].layer[0].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(TEXT)
    assert [id(p) for p in encoder.parameters()] == own
