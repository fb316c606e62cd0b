"""Places in memory: positions beside a bank of strips."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoloc_fast import StripBank, shift_to_heading, strip_topk


class Answers(NamedTuple):
    """The best places for each photo, best first. Where there are fewer than k, place is -1 and the rest NaN."""

    place: np.ndarray  # [B, k] int64 rows of the index
    score: np.ndarray  # [B, k] cosine, in [-1, 1]
    lat: np.ndarray  # [B, k]
    lon: np.ndarray  # [B, k]
    heading_deg: np.ndarray  # [B, k] of the photo's centre, if it was taken there


class PlaceIndex:
    """Strips of places with their positions (WGS84 degrees). Searches never hold photos x places."""

    def __init__(self, bank: StripBank, lat: np.ndarray, lon: np.ndarray) -> None:
        for name, values, limit in (("lat", lat, 90), ("lon", lon, 180)):
            if np.shape(values) != (len(bank),):
                raise ValueError(f"{name}: expected {len(bank)} values (one a strip), got shape {np.shape(values)}")
            if not np.all(np.abs(values) <= limit):  # also refuses NaN
                raise ValueError(f"{name}: expected degrees from {-limit} to {limit}, got {values}")
        self.bank = bank
        self.lat = np.asarray(lat, dtype=np.float64)
        self.lon = np.asarray(lon, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.bank)

    def locate(self, query: Tensor, width: Tensor, k: int = 10) -> Answers:
        """The k best places for photo strips [B, C, H, Wq], of which the first `width` [B] columns exist."""
        if not bool(torch.isfinite(query).all()):
            raise ValueError("query: expected finite values, got NaN or Inf")
        found = strip_topk(query, self.bank, k, query_width=width)
        heading = shift_to_heading(
            found.shift, width[:, None], self.bank.shape[2], column0_deg=self.bank.column0_deg
        ).numpy()
        place = found.index.numpy()
        missing = place < 0
        score = np.where(missing, np.nan, found.score.numpy())
        lat, lon = (np.where(missing, np.nan, values[place]) for values in (self.lat, self.lon))
        return Answers(place, score, lat, lon, np.where(missing, np.nan, heading))
