"""Losses of descriptions: text against image, and what the text tells of colour, structure and texture.

    loss = global + colour + structure + texture

each an InfoNCE over the batch, of cosines: the codes of text and image, and the physical descriptors of the text
against the image's own signature, which has no parameters. So the last three teach the text side alone what can be
seen from above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.models.text.model import PHYSICAL
from geoloc_fast.signature import TileSignature
from geoloc_fast.training.losses import info_nce

__all__ = ["GLOBAL", "TERMS", "consistency", "signature_means"]

GLOBAL = "global"
TERMS = (GLOBAL, *PHYSICAL)


def signature_means(signatures: TileSignature) -> TileSignature:
    """The mean signature [1, size] of many tiles, taken from each before they are compared: two histograms of any two
    tiles have a cosine near 1."""
    return TileSignature(*(part.mean(dim=0, keepdim=True) for part in signatures))


def consistency(
    text: Tensor,
    image: Tensor,
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
        text, image: strips [B, C, 1, 1] of unit norm, of matching pairs.
        told: the text's descriptors by name, [B, size].
        signature: of the images as the encoder sees them, [B, size] each.
        means: `signature_means` of the training images.
        terms: some of `TERMS`; what is left out is not computed.
        mask: bool [B, B], true where an image must not count against a text: see `info_nce`.
    """
    terms = tuple(terms)
    if not terms or not set(terms) <= set(TERMS) or len(set(terms)) < len(terms):
        raise ValueError(f"terms: expected some of {', '.join(TERMS)}, got {terms!r}")
    losses = {}
    if GLOBAL in terms:
        score = text.flatten(1) @ image.flatten(1).T
        losses[GLOBAL] = info_nce(score, temperature=temperature, mask=mask)
    for name in PHYSICAL:
        if name in terms:
            seen = F.normalize(getattr(signature, name) - getattr(means, name), dim=1)
            score = F.normalize(told[name].float(), dim=1) @ seen.to(torch.float32).T
            losses[name] = info_nce(score, temperature=physical_temperature, mask=mask)
    return losses
