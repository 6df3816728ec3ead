"""Tiny text encoders and tokenizers, built offline."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

WIDTH = 16
CHAT = "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}" + (
    "{% for part in m['content'] %}{{ part['text'] }} {% endfor %}{% endif %}{% endfor %}"
)
WORDS = ["<pad>", "</s>", "<unk>", "a", "river", "delta", "blurred", "user", "system", "assistant", ":", "|"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words, with an end token and a chat template."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT
    )


def _still(model: Any) -> Any:
    return model.eval().requires_grad_(False)


def t5_encoder() -> T5EncoderModel:
    """T5 of a few words."""
    torch.manual_seed(4)
    config = T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return _still(T5EncoderModel(config))


def qwen_vl_encoder() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen 2.5 VL of a few words."""
    torch.manual_seed(5)
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 10000.0},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    return _still(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)))


def qwen3_encoder() -> Qwen3ForCausalLM:
    """Qwen 3 of a few words, as deep as the layers that Flux.2 reads."""
    torch.manual_seed(6)
    config = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=30,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return _still(Qwen3ForCausalLM(config))
