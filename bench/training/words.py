"""A T5 tokenizer that knows the prompts' words, and a small UMT5 encoder to match."""

from __future__ import annotations

from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

WIDTH = 64
# What T5 marks the beginnings of words with.
_SPACE = "▁"


def build_tokenizer(prompts: list[str]) -> T5Tokenizer:
    """Every word of the prompts becomes one token; any other word falls apart into its letters."""
    words = sorted({word for prompt in prompts for word in prompt.split()})
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [(special, 0.0) for special in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(_SPACE, -5.0)] + [(_SPACE + word, -1.0) for word in words] + [(one, -10.0) for one in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def build_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    """One layer."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
        )
    )
