"""A photo and a description of the same place: two indexes of one region, one posterior.

Each index scores places by itself. With a and b fitted on queries whose place is known,

    log p(place | photo, text) = a s_photo(place) + b s_text(place) + constant

so what counts in the sum is the ratio b / a: `s_photo + (b / a) s_text`, on the photo's scale. Places are the same by
their key, the id they had in the manifest. Each index names its best `DEPTH`; a place that one of them does not name
is given the last score it does name, which is more than the place can have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from geoloc_fast.errors import PlaceIndexError
from geoloc_fast.index import Neighbours, Searchable
from geoloc_fast.locate.candidates import Candidate
from geoloc_fast.models.contract import Model, Text

__all__ = ["DEPTH", "Beside", "Scales", "add_up", "fit_scales"]

DEPTH = 1024
_STEPS = 200


class Scales(NamedTuple):
    """Nats that a unit of score is worth."""

    photo: float
    text: float

    @property
    def ratio(self) -> float:
        """What a unit of the text's score is worth in units of the photo's; inf if the photo's says nothing."""
        return self.text / self.photo if self.photo > 0 else float("inf")


def fit_scales(photo: np.ndarray, text: np.ndarray, truth: np.ndarray) -> Scales:
    """Scales of most likelihood for scores [Q, R] of the same queries and places, the true ones being `truth [Q]`.

    Never worse than the better of the two by itself on these queries: if the mean reciprocal rank of either alone is
    above that of the sum, the other's scale is 0.
    """
    if photo.shape != text.shape or photo.ndim != 2 or truth.shape != photo.shape[:1] or not len(truth):
        raise ValueError(
            f"photo, text, truth: expected [Q, R], [Q, R] and [Q], got {photo.shape}, {text.shape}, {truth.shape}"
        )
    score = np.stack([photo, text]).astype(np.float64)  # [2, Q, R]
    row = np.arange(len(truth))
    spread = score.std(axis=(1, 2)) + 1e-12
    score /= spread[:, None, None]
    scale = np.ones(2)
    for _ in range(_STEPS):  # Newton; the likelihood is concave
        logit = np.tensordot(scale, score, 1)
        share = np.exp(logit - logit.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        mean = (share * score).sum(2)  # [2, Q]
        gradient = (score[:, row, truth] - mean).sum(1) - 1e-3 * scale
        second = np.einsum("qr,aqr,bqr->ab", share, score, score) - mean @ mean.T + 1e-3 * np.eye(2)
        step = np.linalg.solve(second, gradient)
        scale = scale + step * min(1.0, 2.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    scale = np.maximum(scale, 0)

    def ranked(weight: np.ndarray) -> float:
        total = np.tensordot(weight, score, 1)
        return float(np.mean(1 / (1 + (total > total[row, truth][:, None]).sum(1))))

    choices = [scale, np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    best = choices[int(np.argmax([ranked(choice) for choice in choices]))]
    return Scales(*(best / spread).tolist())


class Beside:
    """An index of descriptions beside that of photos.

    Args:
        index: made with `model`, of the same places.
        photos: the index it stands beside.
        ratio: `Scales.ratio`, fitted on a region of which photos, texts and places are known.
    """

    def __init__(self, index: Searchable, model: Model, photos: Searchable, *, ratio: float) -> None:
        index.check_model(model.fingerprint)
        if "text" not in model.query_input.takes:
            raise ValueError(
                f"model: expected one that takes text, got {model.name}, which takes {model.query_input.takes}"
            )
        if not np.isfinite(ratio) or ratio < 0:
            raise ValueError(f"ratio: expected a finite number from 0 on, got {ratio}")
        other = photos.keys()
        shared = {number: other[key] for key, number in index.keys().items() if key in other}
        if not shared:
            raise PlaceIndexError(f"{index.path}: expected places of {photos.path}, got none that has a key of it")
        self.index, self.model, self.ratio = index, model, ratio
        self._photo_id = np.full(1 + max(shared), -1)
        self._photo_id[list(shared)] = list(shared.values())

    def in_photos(self, candidate: Candidate) -> Candidate:
        """A candidate of the index of descriptions, with its place's id in the index of photos; -1 if it lacks it."""
        known = 0 <= candidate.place < len(self._photo_id)
        return replace(candidate, place=int(self._photo_id[candidate.place]) if known else -1)

    def search(self, text: str) -> Neighbours:
        """The best places of a description, with their ids in the index of photos; those it lacks are left out."""
        strips = self.model.encode_queries([Text(text)])
        found = self.index.search(strips, min(DEPTH, len(self.index)), layers=self.model.layers).photo(0)
        named = (found.id >= 0) & (found.id < len(self._photo_id))
        ids = np.where(named, self._photo_id[np.where(named, found.id, 0)], -1)
        kept = ids >= 0
        values = [value[kept] for value in found[:-1]]
        return Neighbours._make([ids[kept], *values[1:], found.exact])


def add_up(photo: Neighbours, text: Neighbours, ratio: float, k: int) -> Neighbours:
    """The k best places of both for one query, [k] each: ids, positions and headings as the photo's index has them. A
    place that only the text named has no heading."""
    known = photo.id >= 0
    photo = Neighbours._make([*(value[known] for value in photo[:-1]), photo.exact])
    if not len(photo.id) or not len(text.id):
        return photo.first(k)
    at = {int(number): n for n, number in enumerate(text.id)}
    row = np.array([at.get(int(number), -1) for number in photo.id])
    said = np.where(row >= 0, text.score[row], text.score[-1])
    only = ~np.isin(text.id, photo.id)
    score = np.concatenate([photo.score + ratio * said, photo.score[-1] + ratio * text.score[only]])
    count = int(only.sum())
    columns = []
    for name in Neighbours._fields[:-1]:
        mine, theirs = getattr(photo, name), getattr(text, name)[only]
        if name == "parts":  # of the photo's layers
            theirs = np.full((count, *mine.shape[1:]), np.nan, mine.dtype)
        elif name == "heading_deg":
            theirs = np.full(count, np.nan)
        elif name == "shift":
            theirs = np.full(count, -1)
        elif name == "reading":
            theirs = np.zeros(count, mine.dtype)
        columns.append(np.concatenate([mine, theirs]))
    columns[Neighbours._fields.index("score")] = score.astype(np.float32)
    order = np.lexsort((columns[0], -columns[1]))[:k]
    # A place that neither named may have up to the sum of the last scores of both.
    sure = score[order[-1]] >= photo.score[-1] + ratio * text.score[-1]
    return Neighbours._make([*(column[order] for column in columns), photo.exact & text.exact & np.bool_(sure)])
