"""What a person gives, made into tensors."""

from helios.conditioning.prompts import MAX_PROMPT, Blend, PromptTrack, check_prompt
from helios.conditioning.text import (
    TextEncoder,
    check_text_encoder,
    clean_prompt,
    load_text_encoder,
    save_text_encoder,
    tiny_umt5,
    word_tokenizer,
)
from helios.conditioning.visits import let_visit
from helios.conditioning.visual import START_NOISE, fit, image_start, video_start

__all__ = [
    "MAX_PROMPT",
    "START_NOISE",
    "Blend",
    "PromptTrack",
    "TextEncoder",
    "check_prompt",
    "check_text_encoder",
    "clean_prompt",
    "fit",
    "image_start",
    "let_visit",
    "load_text_encoder",
    "save_text_encoder",
    "tiny_umt5",
    "video_start",
    "word_tokenizer",
]
