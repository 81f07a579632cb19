"""What a person gives, made into tensors."""

from helios.conditioning.prompts import MAX_PROMPT, Blend, PromptTrack, check_prompt
from helios.conditioning.text import (
    TextEncoder,
    clean_prompt,
    load_text_encoder,
    save_text_encoder,
    tiny_umt5,
    word_tokenizer,
)

__all__ = [
    "MAX_PROMPT",
    "Blend",
    "PromptTrack",
    "TextEncoder",
    "check_prompt",
    "clean_prompt",
    "load_text_encoder",
    "save_text_encoder",
    "tiny_umt5",
    "word_tokenizer",
]
