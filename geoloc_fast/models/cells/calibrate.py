"""What prototypes count beside aerial codes, and how sure a score is: fitted on photos that trained nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Calibration", "fit_kappa"]


class Calibration(NamedTuple):
    """What was fitted on photos of known cells: the weight of prototypes, and the temperature of probabilities."""

    kappa: float
    """Weight of a prototype in z_A + kappa z_P."""
    temperature: float
    """softmax(score / temperature) over all cells is the probability of each."""
    log_likelihood: float
    """Of the right cells, mean over the photos, in nats."""
    photos: int
    """Those whose own cell is in the database."""


def fit_kappa(aerial: Tensor, prototype: Tensor, truth: Tensor, *, iterations: int = 50) -> Calibration:
    """Maximum likelihood of softmax(a s_A + b s_P): kappa = b / a, temperature = 1 / a.

    The likelihood is concave in (a, b), so there is one answer. Kappa cannot be fitted without the temperature:
    prototypes are learned as classes, and have larger similarities than aerial codes.

    Args:
        aerial, prototype: [n, cells], similarities of photos to both codes of each cell, 0 where there is none.
        truth: int64 [n], the column of each photo's own cell, -1 where it has none.
    """
    if aerial.shape != prototype.shape or aerial.ndim != 2 or truth.shape != aerial.shape[:1]:
        raise ValueError(
            f"aerial, prototype, truth: expected [n, cells] twice and [n], got {list(aerial.shape)}, "
            f"{list(prototype.shape)} and {list(truth.shape)}"
        )
    known = truth >= 0
    count = int(known.sum())
    if not count:
        raise ValueError(f"truth: expected photos whose cell is in the database, got none of {len(truth)}")
    aerial, prototype, own = aerial[known].double(), prototype[known].double(), truth[known, None]
    right = torch.stack([aerial.gather(1, own)[:, 0], prototype.gather(1, own)[:, 0]], dim=1)
    logs = torch.full((2,), 2.0, dtype=torch.float64)  # of a and b: both are positive

    def likelihood(at: Tensor) -> Tensor:
        a, b = at.exp()
        return (right @ at.exp() - (a * aerial + b * prototype).logsumexp(1)).mean()

    logs.requires_grad_(True)
    optimiser = torch.optim.LBFGS([logs], max_iter=iterations, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = -likelihood(logs)
        loss.backward()
        return loss

    optimiser.step(step)
    logs = logs.detach().clamp(-6, 8)
    a, b = logs.exp().tolist()
    return Calibration(b / a, 1 / a, float(likelihood(logs)), count)
