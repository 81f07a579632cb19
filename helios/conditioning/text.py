"""Prompts into embeddings: the published UMT5 encoder, in any size.

Source: specification "model and sampling", section 4. The encoder is transformers' own class, so
the published weights need no translation; the tiny model has a small one of the same class with a
word tokenizer of its own. The library takes a moment to import, hence only inside functions.
"""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from helios import storage
from helios.errors import CheckpointCorruptError, CheckpointError
from helios.storage import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

__all__ = [
    "TextEncoder",
    "check_text_encoder",
    "clean_prompt",
    "load_text_encoder",
    "save_text_encoder",
    "tiny_umt5",
    "word_tokenizer",
]

WEIGHTS_NAME = "model.safetensors"
SHARED, ALIAS = "shared.weight", "encoder.embed_tokens.weight"
"""Both names of the embedding; a file has either or both."""
TEXT_LENGTH = 512
"""Rows of the published model, used where a tokenizer's configuration names no length."""

_UNLIMITED = 1_000_000
"""transformers writes 10^30 for "no limit"; no prompt has a million tokens."""

_PLAIN = re.compile(r"[\t\n\r -%'-~]*")
"""Printable ASCII and common white space without the ampersand: nothing for ftfy to repair."""

OF_A_CALL = frozenset(
    {"is_local", "local_files_only", "max_length", "pad_to_multiple_of", "pad_token_type_id"}
    | {"stride", "truncation_side", "truncation_strategy"}
)
"""What transformers notes of how a tokenizer was loaded and last used; it is not written."""

_TOKENIZERS = ("PreTrainedTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "TokenizersBackend")
"""The tokenizer classes a model folder may name."""


def clean_prompt(text: str) -> str:
    """Repair broken Unicode, resolve HTML entities (twice), make every white space run one space.

    Text of plain ASCII, such as every caption of our scenes, needs no repair and skips the import.
    """
    if _PLAIN.fullmatch(text) is None:
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class TextEncoder(nn.Module):
    """A UMT5 encoder with its tokenizer: prompts to ``[B, L, D]`` embeddings, zero past the end.

    Args:
        encoder: transformers' ``UMT5EncoderModel``; its parameters are trainable here as there.
        tokenizer: a transformers tokenizer that pads with id 0 and ends with id 1.
    """

    def __init__(self, encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Rows L of every embedding: the tokenizer's own limit, 512 for the published model."""
        length = int(self.tokenizer.model_max_length)
        return length if length < _UNLIMITED else TEXT_LENGTH

    @property
    def dim(self) -> int:
        """Width D of the embeddings (4096 for the published model)."""
        return int(self.encoder.config.d_model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights and of the embeddings."""
        return self.encoder.shared.weight.dtype

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask (1 up to and including the end token), both ``[B, L]`` int64 on CPU.

        Text beyond L tokens is cut; the end token stays. The text is taken as it is: see
        `clean_prompt`.
        """
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the cleaned prompt with its end token; above `max_length` the tail is cut."""
        return len(self.tokenizer(clean_prompt(prompt), verbose=False).input_ids)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings ``[B, L, D]`` of token ids, with zero rows at and after the real length."""
        # A mask of the full shape is used as it comes; from a [B, L] mask transformers would first
        # read back whether anything is masked, which waits for the device.
        length = ids.shape[1]
        attend = mask.bool()[:, None, None, :].expand(-1, 1, length, length)
        rows = self.encoder(input_ids=ids, attention_mask=attend).last_hidden_state
        # The layers may have run on another device than the tokens are on.
        mask = mask.to(rows.device)
        real = torch.arange(length, device=rows.device) < mask.sum(1, keepdim=True)
        return rows.masked_fill(~real[..., None], 0.0)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``[B, L, D]`` of prompts as people write them, on the encoder's device."""
        ids, mask = self.tokenize([clean_prompt(prompt) for prompt in prompts])
        embeddings: Tensor = self(ids.to(self.device), mask.to(self.device))
        return embeddings


def load_text_encoder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """The encoder of ``folder/text_encoder`` with the tokenizer of ``folder/tokenizer``.

    Nothing is downloaded and no code from the folder is run.

    Args:
        folder: a model folder in the published layout.
        device: where the weights go.
        dtype: their data type.

    Raises:
        UnsafeCheckpointError: if only pickled weights are there; they are never opened.
        CheckpointCorruptError: if a file is truncated or unreadable.
        CheckpointError: if a file is missing or does not fit its configuration.
    """
    encoder, tokenizer, weights = _matched(folder)
    tensors = dict(weights.read())
    _place(encoder, tensors, device, dtype)
    storage.assign(encoder, tensors, str(folder / "text_encoder"))
    encoder.tie_weights()
    return TextEncoder(encoder, tokenizer).eval()


def check_text_encoder(folder: Path) -> None:
    """Check by the small files and headers alone that ``load_text_encoder`` would succeed.

    Raises:
        CheckpointError: as there.
    """
    _matched(folder)


def save_text_encoder(encoder: TextEncoder, folder: Path) -> None:
    """Write ``folder/text_encoder`` and ``folder/tokenizer`` as transformers reads them."""
    model = encoder.encoder
    config = model.config.to_diff_dict() | {
        "architectures": ["UMT5EncoderModel"],
        "dtype": str(encoder.dtype).removeprefix("torch."),
    }
    tensors = dict(model.state_dict())
    del tensors[ALIAS]  # the same tensor
    target = folder / "text_encoder"
    storage.write_tensors(target, tensors, WEIGHTS_NAME)
    storage.write_json(target / "config.json", config)
    encoder.tokenizer.save_pretrained(str(folder / "tokenizer"))
    settings = folder / "tokenizer" / "tokenizer_config.json"
    lasting = {k: v for k, v in json.loads(settings.read_text()).items() if k not in OF_A_CALL}
    storage.write_json(settings, lasting)


def word_tokenizer(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words for a closed vocabulary.

    Text is lower-cased and split at white space and punctuation; ids are 0 padding, 1 end,
    2 unknown, then the words in the order given (split the same way, repetitions dropped).

    Args:
        words: every word the model shall know; may hold phrases and punctuation.
        max_length: rows of the embeddings, the end token included.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for phrase in words:
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(phrase)):
            vocabulary.setdefault(word, len(vocabulary))
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizer
    core.pre_tokenizer = splitter
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        padding_side="right",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def tiny_umt5(
    tokenizer: PreTrainedTokenizerFast,
    dim: int,
    layers: int,
    heads: int,
    head_dim: int,
    ffn: int,
) -> TextEncoder:
    """A small untrained encoder of the published class, without dropout.

    Args:
        tokenizer: gives the vocabulary and the length.
        dim: width D of the embeddings.
        layers: number of blocks.
        heads: attention heads of a block.
        head_dim: width of a head; ``heads * head_dim`` need not equal ``dim``.
        ffn: inner width of the gated feed-forward part.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=dim,
        d_kv=head_dim,
        d_ff=ffn,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return TextEncoder(UMT5EncoderModel(config), tokenizer)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in ``folder``, of a class we know, read from its own files only."""
    import transformers

    name = storage.read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if name not in _TOKENIZERS:
        raise CheckpointError(
            f"{folder} names the tokenizer class {name!r}; known are {', '.join(_TOKENIZERS)}"
        )
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder / 'tokenizer.json'} is missing")
    try:
        return getattr(transformers, name).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the parser raises bare Exception for a damaged file
        reason = " ".join(str(error).split())
        raise CheckpointCorruptError(f"{folder} is not a readable tokenizer ({reason})") from None


def _empty_encoder(folder: Path) -> Any:
    """The encoder that ``folder/config.json`` describes, without memory for its weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    values = storage.read_json(folder / "config.json")
    if values.get("model_type") != "umt5":
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {values.get('model_type')!r} text encoder; "
            "expected 'umt5'"
        )
    try:
        with torch.device("meta"):
            return UMT5EncoderModel(UMT5Config.from_dict(values))
    except Exception as error:  # any type may come of a wrong value, and all mean the same
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'config.json'} is not usable ({reason})") from None


def _matched(folder: Path) -> tuple[Any, PreTrainedTokenizerFast, Weights]:
    """The empty encoder, its tokenizer, and the weights that fit it, the embedding once."""
    tokenizer = _load_tokenizer(folder / "tokenizer")
    encoder = _empty_encoder(folder / "text_encoder")
    entries = dict(storage.open_weights(folder / "text_encoder", WEIGHTS_NAME).entries)
    if SHARED in entries:
        entries.pop(ALIAS, None)
    table = entries.get(SHARED, entries.get(ALIAS))
    both = {} if table is None else {SHARED: table, ALIAS: table}
    storage.check_entries(encoder, Weights(entries | both), str(folder / "text_encoder"))
    if len(tokenizer) > encoder.config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens but the text encoder has rows "
            f"for {encoder.config.vocab_size}"
        )
    return encoder, tokenizer, Weights(entries)


def _place(
    encoder: Any, tensors: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> None:
    """Convert ``tensors`` one by one and give the tied embedding both of its names."""
    # float16 cannot hold what the last projection of a block puts out (transformers' own rule).
    wide = tuple(encoder._keep_in_fp32_modules or ()) if dtype == torch.float16 else ()
    for name, tensor in tensors.items():
        kept = any(part in name.split(".") for part in wide)
        tensors[name] = tensor.to(device=device, dtype=torch.float32 if kept else dtype)
    tensors[SHARED] = tensors[ALIAS] = tensors[SHARED if SHARED in tensors else ALIAS]
