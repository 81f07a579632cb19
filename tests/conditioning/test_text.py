"""Text encoder: cleaning, lengths, files, and equality with diffusers' prompt embeddings."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import ftfy
import pytest
import torch
from diffusers import HeliosPipeline
from diffusers.pipelines.helios.pipeline_helios import prompt_clean
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, T5TokenizerFast, UMT5Config, UMT5EncoderModel

from helios.conditioning import (
    TextEncoder,
    check_text_encoder,
    clean_prompt,
    load_text_encoder,
    save_text_encoder,
    tiny_umt5,
    word_tokenizer,
)
from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError

WORDS = "a red blue ball cube bounces spins on green grass sand , . ' - and under the night sky"
PROMPTS = [
    "a red ball bounces on green grass",
    "A  Red\tBALL,\n bounces   on\u00a0green\u3000grass.",
    "a &amp;lt;blue&amp;gt; cube &amp; sand",
    "",
    "   ",
    "naïve café â€œquotesâ€\x9d 日本語 👩‍🚀 ﬁre",
    "the night-sky's red ball",
    "a red ball and a blue cube " * 40,
]


def tiny(length: int = 24, seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    return tiny_umt5(word_tokenizer(WORDS.split(), length), 32, 2, 4, 8, 48).eval()


def unigram(length: int) -> T5TokenizerFast:
    """A tokenizer of the published class, trained here."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.train_from_iterator(
        PROMPTS * 4,
        trainers.UnigramTrainer(
            vocab_size=120,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    vocabulary = [tuple(item) for item in json.loads(core.to_str())["model"]["vocab"]]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=10, model_max_length=length)


def published(length: int = 24) -> TextEncoder:
    """The published classes with the published structure, small."""
    torch.manual_seed(1)
    tokenizer = unigram(length)
    config = UMT5Config(
        vocab_size=len(tokenizer) + 7, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4
    )
    return TextEncoder(UMT5EncoderModel(config).eval(), tokenizer)


def oracle(encoder: TextEncoder, prompts: list[str], dtype: torch.dtype) -> torch.Tensor:
    pipe = HeliosPipeline(
        tokenizer=encoder.tokenizer,
        text_encoder=encoder.encoder,
        vae=None,
        scheduler=None,
        transformer=None,
    )
    with torch.no_grad():
        embeddings, _ = pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=encoder.max_length,
            device="cpu",
            dtype=dtype,
        )
    return embeddings


# -------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny, published])
def test_embeddings_equal_diffusers(make: type, dtype: torch.dtype) -> None:
    encoder = make().to(dtype)
    for prompts in (PROMPTS, *([prompt] for prompt in PROMPTS)):
        ours, theirs = encoder.encode(prompts), oracle(encoder, prompts, dtype)
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == (len(prompts), encoder.max_length, encoder.dim)
        assert (ours - theirs).abs().max() == 0


def test_diffusers_folder_gives_the_same_embeddings(tmp_path: Path) -> None:
    """A folder in the published layout, read by both sides with their own loaders."""
    saved = published()
    save_text_encoder(saved, tmp_path)
    theirs = TextEncoder(
        UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder"),
        T5TokenizerFast.from_pretrained(tmp_path / "tokenizer"),
    )
    ours = load_text_encoder(tmp_path)
    assert type(ours.tokenizer) is type(theirs.tokenizer) is T5TokenizerFast
    assert (ours.encode(PROMPTS) - oracle(theirs, PROMPTS, torch.float32)).abs().max() == 0
    assert (ours.encode(PROMPTS) - saved.encode(PROMPTS)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_loading_equals_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    save_text_encoder(published(), tmp_path)
    ours = load_text_encoder(tmp_path, dtype=dtype).encoder.state_dict()
    theirs = UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder", dtype=dtype).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# ------------------------------------------------------------------------------------ cleaning


def test_cleaning_equals_diffusers() -> None:
    for prompt in [*PROMPTS, "a &amp;amp;amp; b", "&nbsp;&nbsp;x", "<b>&eacute;</b>", "a\x1b[1mb"]:
        assert clean_prompt(prompt) == prompt_clean(prompt)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="ascii"), max_size=40) | st.text(max_size=40))
def test_cleaning_equals_diffusers_on_any_text(prompt: str) -> None:
    assert clean_prompt(prompt) == prompt_clean(prompt)


def test_every_ascii_character_is_cleaned_as_ftfy_does() -> None:
    """The shortcut around ftfy covers exactly what ftfy leaves alone."""
    for code in range(128):
        text = f"a{chr(code)}b &"[: 3 + (code % 2) * 2]
        assert clean_prompt(text) == " ".join(ftfy.fix_text(text).split()), code


def test_captions_need_neither_ftfy_nor_at_import_transformers() -> None:
    program = """
import sys
import helios.conditioning as c
assert "transformers" not in sys.modules
e = c.tiny_umt5(c.word_tokenizer(["a", "red", "ball"], 8), 16, 1, 2, 8, 16)
e.tokenize(["a red ball"]); e.encode(["A red ball."])
print("ftfy" in sys.modules, "diffusers" in sys.modules)
e.encode(["naïve"])
print("ftfy" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["False", "False", "True"]


# -------------------------------------------------------------------------- tokens and lengths


def test_word_tokenizer() -> None:
    tokenizer = word_tokenizer(["a", "Red", "cobalt-blue", "ball", "red", "it's", "snow, deep"], 12)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "cobalt", "-", "blue", "ball", "it", "'", "s"]
    assert tokenizer.convert_ids_to_tokens(range(12)) == words
    assert len(tokenizer) == 15
    encoder = tiny_umt5(tokenizer, 16, 1, 2, 8, 16)
    ids, mask = encoder.tokenize(["A RED, cobalt-blue ball zebra.", "", "ball " * 30])
    assert ids.dtype == mask.dtype == torch.int64
    snow, comma = tokenizer.convert_tokens_to_ids(["snow", ","])
    assert (snow, comma) == (12, 13)
    assert ids.tolist() == [
        [3, 4, comma, 5, 6, 7, 8, 2, 2, 1, 0, 0],
        [1] + [0] * 11,
        [8] * 11 + [1],
    ]
    assert mask.tolist() == [[1] * 10 + [0] * 2, [1] + [0] * 11, [1] * 12]
    assert encoder.count_tokens("ball " * 30) == 31


def test_rows_past_the_real_length_are_zero_and_the_others_are_not() -> None:
    encoder = tiny(16)
    rows = encoder.encode(["a red ball", "", "a red ball " * 20])
    used = rows.abs().sum(-1) > 0
    assert used.sum(1).tolist() == [4, 1, 16]
    assert used[0].tolist() == [True] * 4 + [False] * 12


def test_padding_does_not_reach_the_real_rows() -> None:
    """What a prompt becomes does not depend on the length or on its neighbours."""
    short, long = tiny(8), tiny(24)
    alone = short.encode(["a red ball"])
    together = long.encode(["a red ball", "the night sky " * 9])
    assert torch.allclose(alone[0, :4], together[0, :4], atol=1e-6)


def test_length_comes_from_the_tokenizer_or_is_the_published_one() -> None:
    assert tiny(24).max_length == 24
    encoder = tiny()
    encoder.tokenizer.model_max_length = int(1e30)
    assert encoder.max_length == 512
    assert encoder.encode(["a red ball"]).shape == (1, 512, 32)


# ------------------------------------------------------------------------------------ training


def test_trains_under_autocast_and_every_parameter_learns() -> None:
    encoder = tiny().train()
    ids, mask = encoder.tokenize(["a red ball bounces", "the blue cube spins on sand"])
    goal = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = ((encoder(ids, mask) - goal) * mask[..., None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert losses[-1] < 0.7 * losses[0]
    assert encoder.encoder.shared.weight is encoder.encoder.encoder.embed_tokens.weight


def test_traces_whole() -> None:
    encoder = tiny()
    traced = torch.compile(encoder, fullgraph=True, backend="eager")
    for prompts in (["a red ball", ""], ["a red ball " * 30] * 2):
        ids, mask = encoder.tokenize(prompts)
        assert torch.equal(traced(ids, mask), encoder(ids, mask))


# --------------------------------------------------------------------------------------- files


def test_saved_folder_loads_everywhere(tmp_path: Path) -> None:
    encoder = tiny()
    save_text_encoder(encoder, tmp_path)
    assert sorted(path.name for path in (tmp_path / "text_encoder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again = load_text_encoder(tmp_path)
    assert not again.training
    assert again.max_length == 24
    assert (again.encode(PROMPTS) - encoder.encode(PROMPTS)).abs().max() == 0
    assert again.encoder.shared.weight is again.encoder.encoder.embed_tokens.weight
    assert {p.device.type for p in again.parameters()} == {"cpu"}

    theirs = UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    pair = TextEncoder(theirs, tokenizer)
    assert (pair.encode(PROMPTS) - encoder.encode(PROMPTS)).abs().max() == 0
    assert (oracle(pair, PROMPTS, torch.float32) - again.encode(PROMPTS)).abs().max() == 0


def test_sharded_weights_of_transformers_load(tmp_path: Path) -> None:
    encoder = published()
    encoder.encoder.save_pretrained(tmp_path / "text_encoder", max_shard_size="20kB")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert (tmp_path / "text_encoder" / "model.safetensors.index.json").is_file()
    again = load_text_encoder(tmp_path)
    assert (again.encode(PROMPTS) - encoder.encode(PROMPTS)).abs().max() == 0


@pytest.mark.parametrize("names", [("alias",), ("shared", "alias")])
def test_the_embedding_may_have_either_name_or_both(tmp_path: Path, names: tuple[str, ...]) -> None:
    encoder = tiny()
    save_text_encoder(encoder, tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    table = tensors.pop("shared.weight")
    stored = {"shared": "shared.weight", "alias": "encoder.embed_tokens.weight"}
    tensors |= {stored[name]: table.clone() for name in names}
    save_file(tensors, path, metadata={"format": "pt"})
    check_text_encoder(tmp_path)
    again = load_text_encoder(tmp_path)
    assert again.encoder.shared.weight is again.encoder.encoder.embed_tokens.weight
    assert (again.encode(PROMPTS) - encoder.encode(PROMPTS)).abs().max() == 0


def test_what_does_not_fit_is_found_by_headers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_text_encoder(tiny(), tmp_path)
    edit(tmp_path / "text_encoder" / "config.json", d_ff=64)
    monkeypatch.setattr("helios.storage.Weights.read", lambda *_: pytest.fail("read"))
    for look in (check_text_encoder, load_text_encoder):
        with pytest.raises(CheckpointError, match="does not fit its configuration"):
            look(tmp_path)


class Marker:
    """Unpickling this would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_bad_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    good, marker = tmp_path / "good", tmp_path / "marker"
    save_text_encoder(tiny(), good)
    bad = tmp_path / "bad"

    def weights(change: object) -> None:
        path = bad / "text_encoder" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)  # type: ignore[operator]
        save_file(tensors, path, metadata={"format": "pt"})

    def as_pickle() -> None:
        (bad / "text_encoder" / "model.safetensors").unlink()
        (bad / "text_encoder" / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(marker)))

    def disguised() -> None:
        path = bad / "text_encoder" / "model.safetensors"
        path.write_bytes(pickle.dumps(Marker(marker)))

    def cut(name: str) -> None:
        path = bad / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    config, tokens = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
    remote = {"AutoTokenizer": ["code.Evil", None], "AutoModel": "code.Evil"}
    norm = "encoder.final_layer_norm.weight"
    cases: list[tuple[str, object, type[Exception], str]] = [
        ("pickle", as_pickle, UnsafeCheckpointError, "pytorch_model.bin is a pickle"),
        ("disguised pickle", disguised, CheckpointCorruptError, "model.safetensors"),
        (
            "cut weights",
            lambda: cut("text_encoder/model.safetensors"),
            CheckpointCorruptError,
            "model.safetensors",
        ),
        ("cut config", lambda: cut(config), CheckpointCorruptError, "not valid JSON"),
        ("cut tokens", lambda: cut(tokens), CheckpointCorruptError, "not valid JSON"),
        (
            "cut tokenizer",
            lambda: cut("tokenizer/tokenizer.json"),
            CheckpointCorruptError,
            "not a readable tokenizer",
        ),
        (
            "no weights",
            lambda: (bad / "text_encoder" / "model.safetensors").unlink(),
            CheckpointError,
            "holds no model.safetensors",
        ),
        ("no config", lambda: (bad / config).unlink(), CheckpointError, "is missing"),
        ("no tokens", lambda: (bad / tokens).unlink(), CheckpointError, "is missing"),
        (
            "no tokenizer",
            lambda: (bad / "tokenizer" / "tokenizer.json").unlink(),
            CheckpointError,
            "tokenizer.json is missing",
        ),
        ("other model", lambda: edit(bad / config, model_type="bert"), CheckpointError, "'bert'"),
        ("bad value", lambda: edit(bad / config, d_model="big"), CheckpointError, "not usable"),
        ("negative", lambda: edit(bad / config, d_ff=-3), CheckpointError, "not usable"),
        (
            "other class",
            lambda: edit(bad / tokens, tokenizer_class="Evil"),
            CheckpointError,
            "tokenizer class 'Evil'",
        ),
        ("wrong width", lambda: edit(bad / config, d_ff=64), CheckpointError, "does not fit"),
        ("few words", lambda: edit(bad / config, vocab_size=5), CheckpointError, "does not fit"),
        ("missing tensor", lambda: weights(lambda t: t.pop(norm)), CheckpointError, norm),
        (
            "extra tensor",
            lambda: weights(lambda t: t.update(extra=torch.zeros(1))),
            CheckpointError,
            "unexpected extra",
        ),
        (
            "no embedding",
            lambda: weights(lambda t: t.pop("shared.weight")),
            CheckpointError,
            "missing shared.weight",
        ),
    ]
    for case, damage, kind, words in cases:
        shutil.copytree(good, bad)
        damage()  # type: ignore[operator]
        with pytest.raises(kind) as caught:
            load_text_encoder(bad)
        assert type(caught.value) is kind, case
        assert words in str(caught.value), (case, str(caught.value))
        assert "\n" not in str(caught.value), (case, str(caught.value))
        shutil.rmtree(bad)
    with pytest.raises(CheckpointError, match="missing"):
        load_text_encoder(tmp_path / "nowhere")

    # Code that a folder names or brings is neither imported nor asked about.
    shutil.copytree(good, bad)
    for folder in ("tokenizer", "text_encoder"):
        (bad / folder / "code.py").write_text(f"open({str(marker)!r}, 'w')")
    edit(bad / config, auto_map=remote)
    edit(bad / tokens, auto_map=remote)
    load_text_encoder(bad)
    assert not marker.exists()


def test_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    save_text_encoder(tiny(), tmp_path)
    word_tokenizer([f"w{i}" for i in range(99)], 24).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="knows 102 tokens"):
        load_text_encoder(tmp_path)


def test_saving_forgets_how_the_tokenizer_was_loaded_and_called(tmp_path):
    save_text_encoder(tiny(), tmp_path / "first")
    loaded = load_text_encoder(tmp_path / "first")
    loaded.encode(["a red ball"])
    save_text_encoder(loaded, tmp_path / "second")
    name = "tokenizer/tokenizer_config.json"
    assert (tmp_path / "second" / name).read_text() == (tmp_path / "first" / name).read_text()
