"""What a person gives, made into tensors."""

from helios.conditioning.text import (
    TextEncoder,
    clean_prompt,
    load_text_encoder,
    save_text_encoder,
    tiny_umt5,
    word_tokenizer,
)

__all__ = [
    "TextEncoder",
    "clean_prompt",
    "load_text_encoder",
    "save_text_encoder",
    "tiny_umt5",
    "word_tokenizer",
]
