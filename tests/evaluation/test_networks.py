"""Random networks of the right classes: what is tested is everything around their weights."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from helios.errors import CheckpointError
from helios.evaluation.metrics import networks
from helios.evaluation.metrics.networks import grade, load_networks

WORDS = "a red blue ball cube rolls on grass"


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate(["<end>", "<unk>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)


def tower(**values: object) -> dict[str, object]:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return {**small, "num_attention_heads": 2, "projection_dim": 8, **values}


TEXT = tower(vocab_size=16, max_position_embeddings=16, eos_token_id=0, bos_token_id=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel, XCLIPConfig, XCLIPModel

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("networks")
    vision = tower(image_size=32, patch_size=16)
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8)).save_pretrained(
        root / "clip"
    )
    save_tokenizer(root / "clip")
    moving = vision | {"mit_hidden_size": 16, "mit_intermediate_size": 16, "num_frames": 8}
    moving |= {"mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    XCLIPModel(
        XCLIPConfig(
            text_config=TEXT,
            vision_config=moving,
            projection_dim=16,
            prompt_layers=1,
            prompt_num_attention_heads=2,
        )
    ).save_pretrained(root / "semantic")
    save_tokenizer(root / "semantic")
    head = {"weight": torch.randn(1, 8), "bias": torch.tensor([5.0])}
    save_file(head, root / "aesthetic.safetensors")
    return root


FRAMES = torch.randint(0, 256, (8, 40, 64, 3), dtype=torch.uint8)


def test_without_networks_every_line_says_what_is_missing(tmp_path: Path) -> None:
    for found in (load_networks(None), load_networks(tmp_path)):
        assert not found.frames
        assert not found.clips
        assert found.missing.keys() == {"aesthetic", "semantic", "naturalness"}
        assert all("needs" in line and "\n" not in line for line in found.missing.values())
    assert "--networks" in load_networks(None).missing["semantic"]
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_networks(tmp_path / "nowhere")


def test_aesthetic_is_the_head_over_the_picture(folder: Path) -> None:
    found = load_networks(folder)
    assert found.missing.keys() == {"naturalness"}
    scores = found.frames["aesthetic"](FRAMES)
    assert scores.shape == (8,)
    assert scores.min() >= 0
    assert scores.max() <= 1
    # The head's bias alone gives a half; a unit embedding moves it by the weight's length at most.
    assert (scores - 0.5).abs().max() <= 0.1 * 8**0.5 * 2
    assert scores.std() > 0
    torch.testing.assert_close(found.frames["aesthetic"](FRAMES[3:4])[0], scores[3])


def test_semantic_is_a_cosine_of_eight_frames_and_the_text(folder: Path) -> None:
    clip = load_networks(folder).clips["semantic"]
    assert clip.frames == 8
    assert clip.network == "xclip (semantic)"
    one, other = clip.score(FRAMES, "a red ball"), clip.score(FRAMES, "blue grass rolls on")
    assert -1 <= one <= 1
    assert one != other
    assert clip.score(FRAMES, "a red ball " * 40) == pytest.approx(
        clip.score(FRAMES, "a red ball " * 40)
    )


def test_a_clip_may_stand_in_and_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "semantic").symlink_to(folder / "clip")
    clip = load_networks(tmp_path).clips["semantic"]
    assert clip.network.startswith("clip (")
    singly = [clip.score(FRAMES[k : k + 1], "a red ball") for k in range(8)]
    assert clip.score(FRAMES, "a red ball") == pytest.approx(sum(singly) / 8, abs=1e-5)


def test_other_networks_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "semantic").mkdir()
    (tmp_path / "semantic" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="is a bert"):
        load_networks(tmp_path)
    (tmp_path / "semantic" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_networks(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "clip").symlink_to(folder / "clip")
    save_file(
        {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, broken / "aesthetic.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"must hold weight \[1, 8\]"):
        load_networks(broken)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "semantic"
    place.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((folder / "semantic" / name).read_bytes())
    torch.save({}, place / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_networks(tmp_path)


def test_pictures_are_cut_as_clip_saw_them() -> None:
    frames = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
    frames[:, :, 32:96] = 255  # the middle square
    pixels = networks._pixels(frames, 32, torch.device("cpu"))
    assert pixels.shape == (1, 3, 32, 32)
    white = (1 - torch.tensor(networks.MEAN)) / torch.tensor(networks.DEVIATION)
    torch.testing.assert_close(pixels[0, :, 16, 16], white, atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels[0, :, :, 4:-4].mean(dim=(1, 2)), white, atol=1e-3, rtol=0)


class Answers(torch.nn.Module):
    """A model that likes one digit."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(1, 3, -1))


class Processor:
    """Digits are tokens 11 to 15; keeps what it was shown."""

    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [10 + int(text)])

    def apply_chat_template(self, messages: list, **options: object) -> dict[str, torch.Tensor]:
        self.content = messages[0]["content"]
        return {"input_ids": torch.zeros(1, 3, dtype=torch.long)}


def test_naturalness_is_the_expected_digit() -> None:
    logits = torch.full((20,), -50.0)
    logits[14] = logits[15] = 50.0
    logits[3] = 1000.0  # words that are no digit do not matter
    processor = Processor()
    assert grade(Answers(logits), processor, FRAMES[:4]) == pytest.approx(4.5)
    assert [part["type"] for part in processor.content] == ["image"] * 4 + ["text"]
    assert processor.content[0]["image"].size == (64, 40)
