"""A CLIP tokenizer with a vocabulary of a few hundred entries, and a text encoder to match."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH = 16


def _alphabet() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's and CLIP's byte-level vocabularies."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def build_tokenizer(prompts: list[str]) -> CLIPTokenizer:
    """Every word of the prompts becomes one token; any other word falls apart into bytes."""
    letters = _alphabet()
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in sorted({word for prompt in prompts for word in prompt.split()}):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair, joined = f"{parts[0]} {parts[1]}", parts[0] + parts[1]
            if pair not in merges:
                merges.append(pair)
            if joined not in vocabulary:
                vocabulary.append(joined)
            parts = [joined, *parts[2:]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        return CLIPTokenizer(
            vocab=str(Path(folder, "vocab.json")),
            merges=str(Path(folder, "merges.txt")),
            model_max_length=LENGTH,
        )


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
