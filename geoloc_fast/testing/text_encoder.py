"""A text encoder of a few thousand weights, as the folder of files that a published one is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

__all__ = ["write_text_encoder"]

_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_text_encoder(
    folder: Path, words: Sequence[str], *, width: int = 16, layers: int = 2, positions: int = 64, seed: int = 0
) -> Path:
    """Writes config, tokenizer (one token a known word, letters for others) and random weights of a small BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
    known = [*_MARKS, *letters, *(f"##{letter}" for letter in letters), *sorted({word.lower() for word in words})]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "max_position_embeddings": positions,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary), width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    squares = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    for number in range(layers):
        for name in squares:
            shapes[f"encoder.layer.{number}.{name}.weight"] = (width, width)
            shapes[f"encoder.layer.{number}.{name}.bias"] = (width,)
        shapes[f"encoder.layer.{number}.intermediate.dense.weight"] = (2 * width, width)
        shapes[f"encoder.layer.{number}.intermediate.dense.bias"] = (2 * width,)
        shapes[f"encoder.layer.{number}.output.dense.weight"] = (width, 2 * width)
        shapes[f"encoder.layer.{number}.output.dense.bias"] = (width,)
    tensors = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    norms = ["embeddings.LayerNorm"]
    norms += [
        f"encoder.layer.{number}.{name}.LayerNorm"
        for number in range(layers)
        for name in ("attention.output", "output")
    ]
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(width), torch.zeros(width)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder
