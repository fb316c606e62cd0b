"""The probability of an answer, fitted on queries whose place is known.

The probability is that of "taken here, within `RIGHT_M` of the first candidate", not of "best of these": it is fitted
on photos of the region and on others, in regions of every size, so what says nothing where rivals are few (how far the
best score stands out) does not decide there. It is a logistic function of what a search shows of itself. It belongs to
one model and the layers that took part: `small.safetensors` has `small.confidence.json` beside it. A region of fewer
than `least_places` places is too small to tell: no probability, and the answer is "unknown".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.errors import ConfidenceError
from geoloc_fast.files import write_atomically

__all__ = ["FEATURES", "RIGHT_M", "Confidence", "calibration_error", "ranking_quality"]

RIGHT_M = 25.0
FEATURES = ("score", "lead", "stands_out", "weight", "runner_up", "width", "content", "log_places", "few")
_FORMAT, _VERSION = "geoloc_fast.confidence", 2
_QUANTILES = 21
_RIDGE = 1e-2  # keeps the fit finite where the features separate right from wrong


@dataclass(frozen=True)
class Confidence:
    """Attributes:
    model: fingerprint of the model whose answers it judges.
    layers: names of the layers that took part.
    mean, scale: of each feature, `FEATURES` in this order.
    weight, bias: of the logistic function of the scaled features.
    threshold: below this probability the answer is "unknown".
    further_down: of the photos whose first candidate is wrong, the share that a later candidate is right about.
    error_m: quantiles, from 0 to 1, of the distance between the truth and a first candidate that is right.
    least_places: of a region, for a probability.
    """

    model: str
    layers: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    threshold: float
    further_down: float
    error_m: tuple[float, ...]
    least_places: int = 1

    def probability(self, features: np.ndarray) -> np.ndarray:
        """[N, len(FEATURES)] -> [N]"""
        x = (features - np.array(self.mean)) / np.array(self.scale)
        return _sigmoid(x @ np.array(self.weight) + self.bias)

    def within(self, probability: float) -> float | None:
        """Metres around a first candidate that is right, that hold the truth with this probability."""
        if not 0 <= probability <= 1:
            return None
        return float(np.interp(probability, np.linspace(0, 1, len(self.error_m)), self.error_m))

    @classmethod
    def fit(
        cls,
        model: str,
        features: np.ndarray,
        away_m: np.ndarray,
        further_down: np.ndarray,
        *,
        layers: Sequence[str] = (),
        here: np.ndarray | None = None,
        precision: float = 0.9,
    ) -> Confidence:
        """From answers to queries of known position.

        Args:
            features: [N, len(FEATURES)]
            away_m: [N] from the truth to the first candidate; inf if it was not taken in the region.
            further_down: bool [N], whether one of the other candidates is right.
            layers: that took part.
            here: bool [N], whether the query was taken in the region; default all. Those that were not weigh half as
                much together as those that were.
            precision: of the answers that are to be given to queries that were: sets the threshold.
        """
        here = np.ones(len(features), bool) if here is None else here
        share = np.where(here, 1.0, 0.5 * here.sum() / max(1, (~here).sum()))
        right = away_m <= RIGHT_M
        if not 10 <= right.sum() <= len(right) - 10:
            raise ValueError(
                f"away_m: expected at least 10 right and 10 wrong answers to learn from, got {right.sum()} "
                f"right of {len(right)}; use more photos"
            )
        mean, scale = features.mean(0), features.std(0) + 1e-9
        weight = _logistic_regression((features - mean) / scale, right, share)
        fitted = cls(
            model,
            tuple(layers),
            tuple(mean.tolist()),
            tuple(scale.tolist()),
            tuple(weight[:-1].tolist()),
            float(weight[-1]),
            0.0,
            float(further_down[here & ~right].mean()) if (here & ~right).any() else 0.0,
            tuple(np.quantile(away_m[right], np.linspace(0, 1, _QUANTILES)).tolist()),
        )
        judged = fitted.probability(features[here])
        return replace(fitted, threshold=_threshold(judged, right[here], precision))

    def _check(self) -> None:
        """ValueError unless it can judge."""
        count = len(FEATURES)
        if not len(self.mean) == len(self.scale) == len(self.weight) == count or not self.error_m:
            raise ValueError(f"expected {count} numbers per feature, and distances")
        scalars = (self.bias, self.threshold, self.further_down)
        if not np.isfinite([*scalars, *self.mean, *self.scale, *self.weight, *self.error_m]).all():
            raise ValueError("a number is not finite")
        if min(self.scale) <= 0 or min(self.error_m) < 0 or list(self.error_m) != sorted(self.error_m):
            raise ValueError("a scale is not above 0, or distances do not ascend from 0")
        if not 0 <= self.threshold <= 1 or not 0 <= self.further_down <= 1 or type(self.least_places) is not int:
            raise ValueError("a share is not between 0 and 1, or least_places no number")

    @staticmethod
    def path_for(model_path: str | os.PathLike[str]) -> Path:
        """The path of a model's confidence: beside its bundle."""
        return Path(model_path).with_suffix(".confidence.json")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON with a checksum, complete or not at all."""
        content = {"format": _FORMAT, "version": _VERSION, "features": FEATURES, **asdict(self)}
        content["sha256"] = _digest(content)
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | None) -> Confidence:
        """ConfidenceError unless it is one of this model; FileNotFoundError if there is none."""
        text = Path(path).read_bytes()
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("sha256") != _digest(content):
                raise ValueError("its checksum does not fit: it was altered")
            kind = (content.pop("format"), content.pop("version"), tuple(content.pop("features")))
            if kind != (_FORMAT, _VERSION, FEATURES):
                raise ValueError(f"expected {_FORMAT} version {_VERSION}, got {kind[0]} version {kind[1]}")
            numbers = {name: tuple(map(float, content[name])) for name in ("mean", "scale", "weight", "error_m")}
            found = cls(**{**content, **numbers, "layers": tuple(map(str, content["layers"]))})
            found._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfidenceError(f"{path}: not a usable confidence file ({error}); fit it again") from error
        if found.model != model:
            raise ConfidenceError(
                f"{path}: was fitted for model {found.model[:12]}, this is {str(model)[:12]}; fit one for this model"
            )
        return found


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean over answers of |share right - mean probability| of their bin."""
    at = np.minimum((probability * bins).astype(int), bins - 1)
    total = sum(abs(float((right[at == b] - probability[at == b]).sum())) for b in range(bins))
    return total / max(1, len(right))


def ranking_quality(probability: np.ndarray, right: np.ndarray) -> float:
    """AUROC: how often a right answer is given a higher probability than a wrong one; ties count half."""
    order = np.unique(probability, return_inverse=True)[1]
    count = np.bincount(order)
    rank = (np.cumsum(count) - (count - 1) / 2)[order]
    good, bad = int(right.sum()), int((~right).sum())
    return float((rank[right].sum() - good * (good + 1) / 2) / (good * bad)) if good and bad else float("nan")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _logistic_regression(x: np.ndarray, right: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Weights and, last, the bias, of rows that count by `share`: Newton's method, which needs a handful of steps."""
    x = np.column_stack([x, np.ones(len(x))])
    ridge = _RIDGE * len(x) * np.eye(x.shape[1]) / 100
    ridge[-1, -1] = 0
    weight = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ weight)
        curved = (x * (share * p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(curved + ridge, x.T @ (share * (right - p)) - ridge @ weight)
        weight += step
        if np.abs(step).max() < 1e-10:
            break
    return weight


def _threshold(probability: np.ndarray, right: np.ndarray, precision: float) -> float:
    """The lowest probability from which on answers are right this often, by more than the standard error; 1 if they
    never are."""
    order = np.argsort(-probability, kind="stable")
    count = np.arange(1, len(right) + 1)
    share = np.cumsum(right[order]) / count
    spread = np.sqrt((share * (1 - share) + 1 / count) / count)
    enough = np.flatnonzero((share - spread >= precision) & (count >= 10))
    return float(probability[order[enough[-1]]]) if len(enough) else 1.0
