"""Where the heads of a text model begin: what images and the counts of words have in common, in closed form.

The counts of a description's tokens, log(1 + n), know which words are said and not in which order; the directions that
they share with the features of images are found by canonical correlation (`closed_form`). It is the floor that a
learned model has to beat, and a better place to begin than chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.training.closed_form import LinearMap, Moments, canonical_maps

__all__ = ["ClosedForm", "closed_form"]

_LEAST = 5  # descriptions that a token must stand in
_MOST_PLACES = 4096
_COMPONENTS = 768  # of the features


class ClosedForm(NamedTuple):
    """Both sides' maps to codes."""

    column: Tensor
    """int64 [vocabulary]: which column of the counts a token adds to, -1 for a token that is too rare."""
    image: LinearMap
    text: LinearMap

    def counts(self, numbers: Sequence[Tensor]) -> Tensor:
        """log(1 + n) of the tokens of each text, float32 [B, columns]."""
        width = self.text.weight.shape[0]
        rows = [torch.bincount(self.column[ids][self.column[ids] >= 0], minlength=width) for ids in numbers]
        return torch.stack(rows).float().log1p() if rows else torch.empty(0, width)

    def text_codes(self, numbers: Sequence[Tensor]) -> Tensor:
        """[B, C] of unit norm."""
        return F.normalize(self.counts(numbers) @ self.text.weight + self.text.bias, dim=1)


def closed_form(
    features: Tensor, place: Sequence[int], numbers: Sequence[Tensor], channels: int, vocabulary: int
) -> ClosedForm:
    """Maps of images and texts to `channels` shared directions; those beyond what words tell are 0.

    Args:
        features: [N, D] of images, standardised.
        place: the image of each text.
        numbers: the tokens of each text.
    """
    if len(place) != len(numbers) or not len(numbers):
        raise ValueError(f"place, numbers: expected one of each for every text, got {len(place)} and {len(numbers)}")
    some = features[:: -(-len(features) // _MOST_PLACES)].float()
    mean = some.mean(0)
    some = some - mean
    values, vectors = torch.linalg.eigh(some @ some.T)
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept][-_COMPONENTS:], vectors[:, kept][:, -_COMPONENTS:]
    axes = some.T @ (vectors / values.sqrt())  # [D, components], orthonormal
    components = (features.float() - mean) @ axes

    said = torch.stack([torch.bincount(ids.unique(), minlength=vocabulary) for ids in numbers]).sum(0)
    usual = ((said >= min(_LEAST, len(numbers))) & (said < len(numbers))).nonzero()[:, 0]
    if not len(usual):
        raise ValueError("numbers: expected words that some descriptions have and others have not, got none")
    column = torch.full((vocabulary,), -1)
    column[usual] = torch.arange(len(usual))
    empty = LinearMap(torch.zeros(len(usual), channels), torch.zeros(channels))
    form = ClosedForm(column, empty, empty)
    moments = Moments()
    at = np.asarray(place)
    for begin in range(0, len(numbers), _MOST_PLACES):
        part = slice(begin, begin + _MOST_PLACES)
        moments.add(form.counts(numbers[part]), components[at[part]])
    shared = min(channels, len(usual), components.shape[1])
    maps = canonical_maps(moments, shared)
    fill = (0, channels - shared)
    weight = axes @ maps.place.weight
    # One scale for all: codes are of unit norm, and a head's weights then of the usual size.
    size = ((components @ maps.place.weight).std(0).max() + 1e-12).reciprocal()
    image = LinearMap(F.pad(weight * size, fill), F.pad((maps.place.bias - mean @ weight) * size, fill))
    text = LinearMap(F.pad(maps.query.weight, fill), F.pad(maps.query.bias, fill))
    return ClosedForm(column, image, text)
