"""Losses of descriptions: text against image, and what the text tells of colour, structure and texture.

    loss = global + colour + structure + texture [+ told] [+ ground]

each of the first four an InfoNCE over the batch: of the scores of texts for images, and of cosines of the physical
descriptors of the text with the image's own signature, which has no parameters. So these three teach the text's side
alone what can be seen from above. Of synthetic scenes it is known what a text tells and what covers the ground: two
more terms say so, `told_loss` and `ground_loss`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.models.text.model import PHYSICAL
from geoloc_fast.signature import TileSignature
from geoloc_fast.training.losses import info_nce

__all__ = ["GLOBAL", "GROUND", "TERMS", "TOLD", "consistency", "ground_loss", "signature_means", "told_loss"]

GLOBAL = "global"
TERMS = (GLOBAL, *PHYSICAL)
TOLD, GROUND = "told", "ground"


def signature_means(signatures: TileSignature) -> TileSignature:
    """The mean signature [1, size] of many tiles, taken from each before they are compared: two histograms of any two
    tiles have a cosine near 1."""
    return TileSignature(*(part.mean(dim=0, keepdim=True) for part in signatures))


def consistency(
    score: Tensor,
    told: Mapping[str, Tensor],
    signature: TileSignature,
    means: TileSignature,
    *,
    temperature: float | Tensor,
    physical_temperature: float = 0.1,
    terms: Iterable[str] = TERMS,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of the loss by name; their plain sum is what is trained.

    Args:
        score: [B, B], of every text for every image; those of the diagonal belong together.
        told: the text's descriptors by name, [B, size].
        signature: of the images as the encoder sees them, [B, size] each.
        means: `signature_means` of the training images.
        terms: some of `TERMS`; what is left out is not computed.
        mask: bool [B, B], true where an image must not count against a text: see `info_nce`.
    """
    terms = tuple(terms)
    if not set(terms) <= set(TERMS) or len(set(terms)) < len(terms):
        raise ValueError(f"terms: expected some of {', '.join(TERMS)}, got {terms!r}")
    losses = {}
    if GLOBAL in terms:
        losses[GLOBAL] = info_nce(score, temperature=temperature, mask=mask)
    for name in PHYSICAL:
        if name in terms:
            seen = F.normalize(getattr(signature, name) - getattr(means, name), dim=1)
            score = F.normalize(told[name].float(), dim=1) @ seen.to(torch.float32).T
            losses[name] = info_nce(score, temperature=physical_temperature, mask=mask)
    return losses


def told_loss(told: Tensor, true: Tensor) -> Tensor:
    """Squared error of the amounts [B, A, 13], summed over things and directions."""
    return ((told - true) ** 2).sum((1, 2)).mean()


def ground_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross entropy of shares of ground [B, materials, side, side]."""
    return F.binary_cross_entropy_with_logits(logits, shares)
