"""Metrics of answers: recall at N within a distance, and heading errors. Metrics of generated street views:
likeness to real ones, pixel by pixel and as a classifier sees them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "heading_error_deg",
    "inception_score",
    "kl_score",
    "one_percent",
    "prediction_accuracy",
    "psnr",
    "sharpness_difference",
    "ssim",
]


def one_percent(references: int) -> int:
    """The k of R@1%: floor(R / 100) + 1."""
    return references // 100 + 1


def heading_error_deg(heading_deg: Any, true_deg: Any) -> Any:
    """Signed error of a heading, wrapped to [-180, 180): positive is too far clockwise."""
    return (heading_deg - true_deg + 180.0) % 360.0 - 180.0


# -- generated images --------------------------------------------------------------------------


def psnr(images: Tensor, real: Tensor, *, peak: float = 255.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 [B]: 10 log10(peak^2 / mean squared difference), inf for equal images.

    Args:
        images, real: [B, C, H, W], bytes or floats; `peak` is their largest possible value less the smallest.
    """
    images, real = _images(images, real)
    return 10 * torch.log10(peak**2 / (images - real).square().flatten(1).mean(dim=1))


def ssim(images: Tensor, real: Tensor, *, peak: float = 255.0) -> Tensor:
    """Structural similarity (Wang et al. 2004), float64 [B], at most 1:

        (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2))

    with means, variances and covariance under a Gaussian of 11 x 11 pixels (sigma 1.5), c1 = (0.01 peak)^2 and
    c2 = (0.03 peak)^2; averaged over channels and over the places where the window lies inside the image.
    Arguments as in `psnr`; at least 11 x 11 pixels.
    """
    images, real = _images(images, real)
    if min(images.shape[2:]) < 11:
        raise ValueError(f"images: expected at least 11 x 11 pixels, got {list(images.shape)}")
    weight = torch.exp(-((torch.arange(11, dtype=torch.float64, device=images.device) - 5) ** 2) / (2 * 1.5**2))
    weight = weight / weight.sum()

    def blurred(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]
        flat = F.conv2d(F.conv2d(flat, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
        return flat[:, 0].unflatten(0, x.shape[:2])

    mean_x, mean_y = blurred(images), blurred(real)
    var_x = blurred(images * images) - mean_x**2
    var_y = blurred(real * real) - mean_y**2
    covariance = blurred(images * real) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(dim=1)


def sharpness_difference(images: Tensor, real: Tensor, *, peak: float = 255.0) -> Tensor:
    """Sharpness difference (Mathieu et al. 2016) in dB, float64 [B]; higher is more alike:

        10 log10(1 / mean |g(real) - g(images)|),  g = |difference to the pixel above| + |to the pixel on the left|

    of images scaled to [0, 1] by `peak`, over all pixels that have both neighbours, and channels. Unlike PSNR it
    depends on that scale, which publications do not state: compare methods, not tables. Arguments as in `psnr`.
    """
    images, real = _images(images, real)

    def gradient(x: Tensor) -> Tensor:
        return x.diff(dim=2)[..., 1:].abs() + x.diff(dim=3)[..., 1:, :].abs()

    apart = (gradient(real / peak) - gradient(images / peak)).abs()
    return -10 * torch.log10(apart.flatten(1).mean(dim=1))


def _images(images: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    if images.ndim != 4 or images.shape != real.shape:
        raise ValueError(
            f"images: expected [B, C, H, W], the shape of real {list(real.shape)}, got {list(images.shape)}"
        )
    return images.double(), real.double()


def inception_score(probability: Tensor, *, top: int | None = None) -> float:
    """exp of the mean over images of KL(p(class | image) || p(class)), p(class) the mean over images; from 1
    (all alike) to the number of classes.

    Args:
        probability: [N, K], a classifier's probabilities of each generated image.
        top: only the `top` likeliest classes of each image count, made to sum to 1.
    """
    p = _probabilities("probability", probability)
    if top is not None:
        least = p.topk(top, dim=1).values[:, -1:]
        p = torch.where(p >= least, p, 0)
        p = p / p.sum(dim=1, keepdim=True)
    mean = p.mean(dim=0, keepdim=True)
    return float((torch.xlogy(p, p) - torch.xlogy(p, mean)).sum(dim=1).mean().exp())


def prediction_accuracy(probability: Tensor, real: Tensor, *, top: int = 1) -> float:
    """Share of images for which the likeliest class of the real image is among the `top` of the generated one.

    Args:
        probability, real: [N, K], a classifier's probabilities of generated and real images.
    """
    p, q = _probabilities("probability", probability), _probabilities("real", real)
    if p.shape != q.shape:
        raise ValueError(f"real: expected the shape of probability {list(p.shape)}, got {list(q.shape)}")
    return float((p.topk(top, dim=1).indices == q.argmax(dim=1, keepdim=True)).any(dim=1).double().mean())


def kl_score(probability: Tensor, real: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) over images of KL(generated || real), arguments as in `prediction_accuracy`."""
    p, q = _probabilities("probability", probability), _probabilities("real", real)
    if p.shape != q.shape:
        raise ValueError(f"real: expected the shape of probability {list(p.shape)}, got {list(q.shape)}")
    apart = (torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=1e-12))).sum(dim=1)
    return float(apart.mean()), float(apart.std(correction=0))


def _probabilities(name: str, value: Tensor) -> Tensor:
    if value.ndim != 2 or not len(value):
        raise ValueError(f"{name}: expected [N, K] of at least one image, got {list(value.shape)}")
    value = value.double()
    if bool((value < 0).any()) or not torch.allclose(value.sum(dim=1), torch.ones_like(value[:, 0]), atol=1e-3):
        raise ValueError(f"{name}: expected probabilities that sum to 1 in every row")
    return value
