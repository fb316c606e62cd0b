"""Augmentation that preserves geometry: a turn or a mirroring applies to every image of a sample.

A *turn* adds an angle to every azimuth of a place: its panorama is rolled, and its polar image is sampled with
`heading_deg` of that angle, so the satellite image itself is never resampled. The angle is a whole number of panorama
columns, so both move exactly alike. A *mirror* reverses the photo, the panorama and the satellite image, and every
heading changes its sign. Colours change independently: the images of one place were taken on different days.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["Augmentation", "change_colours", "colour_matrix", "generator_of"]

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Augmentation:
    """How strongly images are varied; 0 means not at all.

    Attributes:
        turn: turn places by a random angle.
        mirror: probability of mirroring the whole sample.
        brightness, contrast, saturation: largest change as a share, each way.
        tint: largest change of one channel as a share, as of another white balance.
        grey: probability that an image loses its colour.
        blur: probability of a slight blur.
        noise: largest standard deviation of noise, in grey levels.
    """

    turn: bool = True
    mirror: float = 0.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    tint: float = 0.1
    grey: float = 0.05
    blur: float = 0.1
    noise: float = 4.0

    def __post_init__(self) -> None:
        for name in ("mirror", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability from 0 to 1, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation", "tint"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share from 0 up to 1, got {getattr(self, name)}")
        if not 0 <= self.noise < 128:
            raise ValueError(f"noise: expected grey levels from 0 to 128, got {self.noise}")


def generator_of(seed: int, epoch: int, row: int, what: int) -> np.random.Generator:
    """Randomness of one sample in one epoch: the same whichever process draws it, and whatever it drew before."""
    return np.random.default_rng((seed, epoch, row, what))


def change_colours(image: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """uint8 [h, w, 3] with other brightness, contrast, saturation, white balance, blur and noise."""
    # All numbers are drawn whether used or not, so that one setting does not shift the others' luck.
    light, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * (how.brightness, how.contrast, how.saturation)
    tint = 1 + rng.uniform(-1, 1, 3) * how.tint
    chances = rng.random(2)
    sigma = rng.uniform(0.4, 1.2)
    noise = rng.uniform(0, 1) * how.noise
    if chances[0] < how.grey:
        saturation = 0.0
    image = cv2.transform(image, _matrix(light, contrast, saturation, tint))
    if chances[1] < how.blur:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if noise > 0.5:
        # Of one byte a value: plenty for noise, and a tenth of the time of normal floats.
        spread = noise / np.sqrt((256**2 - 1) / 12)
        grains = np.frombuffer(rng.bytes(image.size), np.int8).reshape(image.shape)
        image = cv2.addWeighted(image, 1.0, grains, spread, 0.5 * spread, dtype=cv2.CV_8U)
    return np.asarray(image)


def _matrix(light: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """[..., 3, 4] of what is drawn once an image [...], and once a channel [..., 3]:

    out = light * tint * (contrast * (mix - 128) + 128), mix = saturation * rgb + (1 - saturation) * luma
    """
    light, contrast, saturation = (np.asarray(value)[..., None, None] for value in (light, contrast, saturation))
    gain = light * tint[..., None]
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    return np.concatenate([gain * contrast * mix, gain * (1 - contrast) * 128], axis=-1)


def colour_matrix(draws: np.ndarray, how: Augmentation) -> Tensor:
    """float32 [B, 3, 4], the change of colours of each image, an affine map of its bytes, from numbers [B, 7] in
    [0, 1)."""
    light, contrast, saturation = 1 + (2 * draws[:, :3].T - 1) * [[how.brightness], [how.contrast], [how.saturation]]
    saturation = np.where(draws[:, 6] < how.grey, 0.0, saturation)
    matrix = _matrix(light, contrast, saturation, 1 + (2 * draws[:, 3:6] - 1) * how.tint)
    return torch.from_numpy(matrix.astype(np.float32))
