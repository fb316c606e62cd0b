"""How sure an answer is: a probability that means what it says, fitted on photos whose place is known.

The probability that the truth lies within `RIGHT_M` of the first candidate is a logistic function of what a search
shows of itself: how high the best score is and how far it stands out, how much of the neighbours' weight lies
together, how wide the photo is, how many places were searched. It is fitted on cities that the model never saw, and
belongs to one model: `small.safetensors` has `small.confidence.json` beside it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.errors import ConfidenceError
from geoloc_fast.files import write_atomically

__all__ = ["FEATURES", "RIGHT_M", "Confidence", "calibration_error", "ranking_quality"]

RIGHT_M = 25.0
FEATURES = ("score", "lead", "stands_out", "weight", "runner_up", "width", "log_places")
_FORMAT, _VERSION = "geoloc_fast.confidence", 1
_QUANTILES = 21
_RIDGE = 1e-2  # keeps the fit finite where the features separate right from wrong


@dataclass(frozen=True)
class Confidence:
    """Attributes:
    model: fingerprint of the model whose answers it judges.
    mean, scale: of each feature, `FEATURES` in this order.
    weight, bias: of the logistic function of the scaled features.
    threshold: below this probability the answer is "unknown".
    further_down: of the photos whose first candidate is wrong, the share that a later candidate is right about.
    error_m: quantiles, from 0 to 1, of the distance between the truth and a first candidate that is right.
    """

    model: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    threshold: float
    further_down: float
    error_m: tuple[float, ...]

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
        precision: float = 0.9,
    ) -> Confidence:
        """From photos of known position.

        Args:
            features: [N, len(FEATURES)]
            away_m: [N] from the truth to the first candidate.
            further_down: bool [N], whether one of the other candidates is right.
            precision: of the answers that are to be given: sets the threshold.
        """
        right = away_m <= RIGHT_M
        if not 10 <= right.sum() <= len(right) - 10:
            raise ValueError(
                f"away_m: expected at least 10 right and 10 wrong answers to learn from, got {right.sum()} "
                f"right of {len(right)}; use more photos"
            )
        mean, scale = features.mean(0), features.std(0) + 1e-9
        weight = _logistic_regression((features - mean) / scale, right)
        fitted = cls(
            model,
            tuple(mean.tolist()),
            tuple(scale.tolist()),
            tuple(weight[:-1].tolist()),
            float(weight[-1]),
            0.0,
            float(further_down[~right].mean()),
            tuple(np.quantile(away_m[right], np.linspace(0, 1, _QUANTILES)).tolist()),
        )
        return replace(fitted, threshold=_threshold(fitted.probability(features), right, precision))

    @staticmethod
    def path_for(model_path: str | os.PathLike[str]) -> Path:
        """Where the confidence of a model's file lies: beside it."""
        return Path(model_path).with_suffix(".confidence.json")

    def save(self, path: str | os.PathLike[str]) -> None:
        content = {"format": _FORMAT, "version": _VERSION, "features": FEATURES, **asdict(self)}
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | None) -> Confidence:
        """ConfidenceError unless it is one of this model; FileNotFoundError if there is none."""
        text = Path(path).read_bytes()
        try:
            content: dict[str, Any] = json.loads(text)
            kind = (content.pop("format"), content.pop("version"), tuple(content.pop("features")))
            if kind != (_FORMAT, _VERSION, FEATURES):
                raise ValueError(f"expected {_FORMAT} version {_VERSION}, got {kind[0]} version {kind[1]}")
            numbers = {name: content[name] for name in ("mean", "scale", "weight", "error_m")}
            found = cls(**{**content, **{name: tuple(map(float, values)) for name, values in numbers.items()}})
            sizes = {len(found.mean), len(found.scale), len(found.weight)}
            scalars = (found.bias, found.threshold, found.further_down)
            if sizes != {len(FEATURES)} or not found.error_m or not np.isfinite([*scalars, *found.weight]).all():
                raise ValueError("numbers are missing")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfidenceError(f"{path}: no confidence that can be used ({error}); fit it anew") from error
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


def _logistic_regression(x: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weights and, last, the bias: Newton's method, which needs a handful of steps."""
    x = np.column_stack([x, np.ones(len(x))])
    ridge = _RIDGE * len(x) * np.eye(x.shape[1]) / 100
    ridge[-1, -1] = 0
    weight = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ weight)
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, x.T @ (right - p) - ridge @ weight)
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
