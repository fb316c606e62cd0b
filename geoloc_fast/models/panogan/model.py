"""Street panoramas out of satellite images: a generator that its discriminators correct (PanoGAN).

    condition  [B, 3, H, W]   the satellite image in four rotations, side by side, or in polar form
    encoder    strides 2 4 8 16, then residual blocks                                  once
    decoder    residual blocks, strides 16 8 4 2 1 -> panorama, class map              every pass
    discriminators     panorama | class map, with the condition -> features at strides 2 4 8 16 32

The first pass decodes what the encoder saw. Every further one decodes it again, and at each of its five levels adds
what both discriminators' features of the panorama and the class map of the pass before say at that level
(`feedback`). So the discriminators are part of the model that is used, not only of its training. With one pass and
`discriminators="patch"` it is the plain conditional generator with one discriminator of patches that it is measured
against.

A discriminator is a feature pyramid. At each level it scores patches of its own image, and adds the inner product of
both discriminators' embeddings there: panorama and class map must show the same things in the same places (structural
alignment).

Images are in [-1, 1]. Everything closes on itself along azimuth: all convolutions wrap, all norms are those of one
sample. So rolling the condition by `roll_columns` (32, or 16 with one pass) rolls the panorama by as much.

The generator's multiply-adds for one panorama, with c = `channels`, n0 + n1 = `blocks` and P = H W, the first and the
last convolution and the feedback left out: P c^2 (13.5 + 4.5 n0 + passes (24.75 + 4.5 n1)).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.models.backbones.circular import CircularConv2d
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.polar import polar_resample

__all__ = ["CONDITIONS", "Discriminator", "Generator", "PanoGAN", "PanoGANConfig", "Pass"]

CONDITIONS = ("rotations", "polar")
JUDGES = ("pyramid", "patch")
LEVELS = 5  # of the discriminators' features, and of the decoder
_FIRST_ROTATION_DEG = 315.0  # the rotation with north up fills the stretch from here to 45
_GREY = 127.5  # half of the grey levels: bytes are 127.5 (x + 1)


@dataclasses.dataclass(frozen=True)
class PanoGANConfig(BundleConfig):
    """Everything that is needed to rebuild the network around its weights. The defaults are the paper's size."""

    image_size: tuple[int, int] = (256, 1024)
    """Rows and columns of panoramas, multiples of 32."""
    condition: str = "rotations"
    """What the satellite image is given as: "rotations" (each stretch of 90 degrees shows it with the stretch's middle
    up; rows must be a quarter of the columns) or "polar"."""
    extent_m: float = 50.0
    """Side of the square of ground that the satellite image shows."""
    channels: int = 64
    """Of the first level; they double at each of the next three."""
    blocks: tuple[int, int] = (4, 5)
    """Residual blocks before and after the place where feedback enters."""
    passes: int = 2
    """How often the decoder runs; the first time without feedback."""
    feedback: float = 0.5
    """Size of the correction against the features it is added to."""
    classes: int = 9
    """Of the class map that is generated beside the panorama; 0 generates none, and needs no maps to train."""
    discriminators: str = "pyramid"
    """"pyramid", or "patch": scores of patches at stride 8 and nothing else, for one pass only."""
    discriminator_channels: int = 64
    """Of the discriminators' first level."""
    features: int = 64
    """Channels of every level of a discriminator's pyramid."""
    column0_deg: float = 180.0
    """Heading of column 0 of condition and panorama."""

    def __post_init__(self) -> None:
        for name in ("image_size", "blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

        def require(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

        def whole(value: Any, low: int, high: int) -> bool:
            return type(value) is int and low <= value <= high

        stride = 2**LEVELS
        sizes = len(self.image_size) == 2 and all(whole(n, stride, 4096) and n % stride == 0 for n in self.image_size)
        require(sizes, "image_size", f"(rows, columns), multiples of {stride} up to 4096")
        require(self.condition in CONDITIONS, "condition", f"one of {', '.join(map(repr, CONDITIONS))}")
        rows, columns = self.image_size
        square = self.condition == "polar" or 4 * rows == columns
        require(square, "image_size", "rows that are a quarter of the columns for four rotations side by side")
        require(len(self.blocks) == 2 and all(whole(n, 0, 64) for n in self.blocks), "blocks", "two counts up to 64")
        for name, low, high in (
            ("channels", 1, 1024),
            ("discriminator_channels", 1, 1024),
            ("features", 1, 1024),
            ("passes", 1, 16),
            ("classes", 0, 254),
        ):
            require(whole(getattr(self, name), low, high), name, f"an integer from {low} to {high}")
        require(self.discriminators in JUDGES, "discriminators", f"one of {', '.join(map(repr, JUDGES))}")
        require(
            self.discriminators == "pyramid" or self.passes == 1, "discriminators", "'pyramid' for more than one pass"
        )
        require(0 < self.extent_m <= 1000, "extent_m", "metres above 0, at most 1000")
        require(0 <= self.feedback <= 10, "feedback", "0 to 10")
        require(0 <= self.column0_deg < 360, "column0_deg", "degrees from 0 up to 360")

    @property
    def satellite_size(self) -> int:
        """Side in pixels of the satellite images that `condition` takes: as fine as the network is shown them."""
        return self.image_size[0] * (1 if self.condition == "rotations" else 2)

    @property
    def roll_columns(self) -> int:
        """Rolling the condition by a multiple of this rolls the panorama by as much."""
        return 2 ** (LEVELS if self.passes > 1 else LEVELS - 1)


class Pass(NamedTuple):
    """What one pass of the decoder gives, and what the discriminators see in it."""

    image: Tensor
    """[B, 3, H, W] in [-1, 1]"""
    classes: Tensor | None
    """[B, classes, H, W] in [-1, 1]; the largest is the class."""
    features: tuple[list[Tensor], ...]
    """Of each discriminator, finest level first; empty where nobody asked."""


def _conv(given: int, made: int, kernel: int = 3, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return CircularConv2d(given, made, kernel, stride, padding=(kernel - 1) // 2, bias=bias)


def _normed(x: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x), inplace=True)


class _Down(nn.Module):
    """3x3 convolution, mean over 3x3 at every other pixel, norm."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.conv = _conv(given, made)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.cat((x[..., -1:], x), dim=3)  # the window of the last column ends with the column itself
        return _normed(F.avg_pool2d(x, 3, 2, padding=(1, 0), count_include_pad=False))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.instance_norm(self.second(_normed(self.first(x))))


class _Correction(nn.Module):
    """What the discriminators' features of one level add to the decoder's, `size` times as large as 1 a pixel."""

    def __init__(self, given: int, made: int, size: float) -> None:
        super().__init__()
        self.size = size
        self.first, self.second = _conv(given, made), _conv(made, made)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = _normed(self.first(torch.cat(features, dim=1)))
        x = _normed(self.second(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.size * x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()


class Generator(nn.Module):
    """Condition to panorama and class map; `encode` once, `decode` every pass."""

    def __init__(self, config: PanoGANConfig) -> None:
        super().__init__()
        c = config.channels
        before, after = config.blocks
        widths = (c, 2 * c, 4 * c, 8 * c)
        self.down = nn.ModuleList(_Down(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.before = nn.Sequential(*(_Block(8 * c) for _ in range(before)))
        self.after = nn.Sequential(*(_Block(8 * c) for _ in range(after)))
        self.up = nn.ModuleList(_conv(given, made) for given, made in ((12 * c, 4 * c), (6 * c, 2 * c), (3 * c, c)))
        fine = max(1, c // 2)  # at full resolution most of the time goes
        self.last = _conv(c, fine)
        self.out = _conv(fine, 3 + config.classes, bias=True)
        if config.passes > 1:
            discriminators = 2 if config.classes else 1
            self.corrections = nn.ModuleList(
                _Correction(discriminators * config.features, width, config.feedback)
                for width in (fine, c, 2 * c, 4 * c, 8 * c)
            )

    def encode(self, condition: Tensor) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16."""
        levels: list[Tensor] = []
        for down in self.down:
            levels.append(down(condition if not levels else levels[-1]))
        levels[-1] = self.before(levels[-1])
        return levels

    def decode(self, encoded: list[Tensor], features: tuple[list[Tensor], ...] = ()) -> tuple[Tensor, Tensor | None]:
        def corrected(x: Tensor, level: int) -> Tensor:
            return (
                x + self.corrections[level]([of_discriminator[level] for of_discriminator in features])
                if features
                else x
            )

        x = self.after(corrected(encoded[3], 4))
        for level, up in zip((3, 2, 1), self.up, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = corrected(_normed(up(torch.cat((x, encoded[level - 1]), dim=1))), level)
        x = _normed(self.last(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = torch.tanh(self.out(corrected(x, 0)).float())
        return x[:, :3], x[:, 3:] if x.shape[1] > 3 else None


class Discriminator(nn.Module):
    """A discriminator: an image, with its condition, to features at five levels; features to scores."""

    def __init__(self, given: int, config: PanoGANConfig) -> None:
        super().__init__()
        d, f = config.discriminator_channels, config.features
        self.pyramid = config.discriminators == "pyramid"
        widths = (d, 2 * d, 4 * d, 8 * d, 8 * d) if self.pyramid else (d, 2 * d, 4 * d)
        self.down = nn.ModuleList(
            _conv(a, b, 4, stride=2, bias=a == given + 3) for a, b in zip((given + 3, *widths), widths, strict=False)
        )
        if self.pyramid:
            self.across = nn.ModuleList(_conv(width, f, 1, bias=True) for width in widths)
            self.smooth = nn.ModuleList(_conv(f, f, bias=True) for _ in widths)
            if config.classes:
                self.embedding = _conv(f, f, 1, bias=True)
        self.patch = _conv(f if self.pyramid else widths[-1], 1, bias=True)

    def forward(self, image: Tensor, condition: Tensor) -> list[Tensor]:
        x = torch.cat((image, condition), dim=1)
        levels = []
        for n, down in enumerate(self.down):
            x = down(x)
            x = F.leaky_relu(x if n == 0 else F.instance_norm(x), 0.2)
            levels.append(x)
        if not self.pyramid:
            return levels[-1:]
        made: list[Tensor] = []
        above: Tensor | None = None
        for level, across, smooth in zip(levels[::-1], self.across[::-1], self.smooth[::-1], strict=True):
            own = across(level)
            above = own if above is None else own + F.interpolate(above, scale_factor=2.0, mode="nearest")
            made.append(F.leaky_relu(smooth(above), 0.2))
        return made[::-1]

    def scores(self, features: list[Tensor]) -> list[Tensor]:
        """Of every patch of every level, [B, 1, h, w], float32."""
        return [self.patch(level).float() for level in features]


class PanoGAN(BundledModel):
    """Generator and discriminators. To use a trained model, call `generate`."""

    kind = "panogan"
    config: PanoGANConfig
    config_class = PanoGANConfig

    def __init__(self, config: PanoGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PanoGANConfig()
        self.generator = Generator(config)
        self.image_discriminator = Discriminator(3, config)
        if config.classes:
            self.class_discriminator = Discriminator(config.classes, config)

    @property
    def discriminators(self) -> tuple[Discriminator, ...]:
        """The discriminator of panoramas, and that of class maps if there is one."""
        return (
            (self.image_discriminator, self.class_discriminator) if self.config.classes else (self.image_discriminator,)
        )

    def condition(self, satellite: Tensor, *, turn_deg: Tensor | None = None, mirrored: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1], column j at column0_deg + turn_deg + 360 j / W, of north-up bytes [B, 3, S, S],
        S = `config.satellite_size`.

        Args:
            turn_deg: [B]; quarter turns for "rotations".
            mirrored: bool [B], where column c of the satellite image was column S - 1 - c.
        """
        side = self.config.satellite_size
        if satellite.dtype != torch.uint8 or satellite.shape[1:] != (3, side, side):
            raise ValueError(
                f"satellite: expected uint8 [B, 3, {side}, {side}], got {satellite.dtype} {list(satellite.shape)}"
            )
        batch, device = len(satellite), satellite.device
        if turn_deg is None:
            turn_deg = torch.zeros(batch, dtype=torch.float64, device=device)
        if self.config.condition == "polar":
            middle = torch.full((batch, 2), side / 2, dtype=torch.float64, device=device)
            if mirrored is not None:
                middle[:, 1] -= mirrored.to(torch.float64)
            return polar_resample(
                satellite,
                self.config.image_size,
                column0_deg=self.config.column0_deg,
                center=middle,
                heading_deg=turn_deg,
                border="replicate",
                mean=(_GREY,) * 3,
                std=(_GREY,) * 3,
            )
        whole = torch.cat([satellite.rot90(k, (2, 3)) for k in range(4)], dim=3)
        columns = self.config.image_size[1]
        first = ((self.config.column0_deg + turn_deg - _FIRST_ROTATION_DEG) * columns / 360).round().long()
        column = (torch.arange(columns, device=device) + first[:, None].to(device)) % columns
        turned = whole.gather(3, column[:, None, None, :].expand(whole.shape))
        return to_signed(turned)

    def passes(self, condition: Tensor, *, discriminator_last: bool = False) -> list[Pass]:
        """All passes of the generator. The discriminators' features go into the next pass without a gradient: what a
        pass is told is not its to change.

        Args:
            discriminator_last: have the last pass judged too, as training needs it.
        """
        encoded = self.generator.encode(condition)
        made: list[Pass] = []
        for n in range(self.config.passes):
            told = (
                tuple([level.detach() for level in of_discriminator] for of_discriminator in made[-1].features)
                if made
                else ()
            )
            image, classes = self.generator.decode(encoded, told)
            last = n + 1 == self.config.passes
            features = self.discriminator(image, classes, condition) if discriminator_last or not last else ()
            made.append(Pass(image, classes, features))
        return made

    def discriminator(self, image: Tensor, classes: Tensor | None, condition: Tensor) -> tuple[list[Tensor], ...]:
        """Each discriminator's features of what it is shown."""
        shown = (image,) if classes is None else (image, classes)
        return tuple(discriminator(x, condition) for discriminator, x in zip(self.discriminators, shown, strict=True))

    def scores(self, features: tuple[list[Tensor], ...]) -> list[list[Tensor]]:
        """Of each discriminator, at each level: its patches' scores, plus how well both discriminators' embeddings
        agree there, <e_image, e_classes> / sqrt(channels)."""
        found = [discriminator.scores(seen) for discriminator, seen in zip(self.discriminators, features, strict=True)]
        if len(features) == 2 and self.config.discriminators == "pyramid":
            for level, both in enumerate(zip(*features, strict=True)):
                one, two = (
                    discriminator.embedding(seen).float()
                    for discriminator, seen in zip(self.discriminators, both, strict=True)
                )
                agreement = (one * two).sum(dim=1, keepdim=True) / self.config.features**0.5
                found = [[s + agreement if n == level else s for n, s in enumerate(own)] for own in found]
        return found

    def forward(self, condition: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1]: the panorama of the last pass."""
        return self.passes(condition)[-1].image

    @torch.inference_mode()
    def generate(self, satellite: Tensor) -> Tensor:
        """Panoramas uint8 [B, 3, H, W] of north-up satellite images uint8 [B, 3, S, S], S = `config.satellite_size`."""
        return to_bytes(self(self.condition(satellite)))


def to_signed(images: Tensor) -> Tensor:
    """Bytes as floats in [-1, 1]."""
    return images.float() / _GREY - 1


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [-1, 1] as bytes."""
    return (127.5 * (images.float() + 1)).round().clamp(0, 255).to(torch.uint8)
