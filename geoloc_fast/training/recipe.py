"""What one kind of model brings to a training run. The trainer knows no model; a recipe knows no run.

To add a kind: a module in `recipes/` with its settings (a dataclass that extends `RunSettings`), a class with the names
of `Recipe`, and two functions that a script of `train/` hands to `command.main`: `make_recipe(sources)` makes it ready
to train, `evaluate_model(sources, path)` measures a trained model without training. No class has to be extended.
`python_tests/training/test_trainer.py` trains a recipe of forty lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from geoloc_fast.training.settings import RunSettings

__all__ = ["Evaluation", "Recipe"]


class Evaluation(NamedTuple):
    """What a recipe measured."""

    numbers: dict[str, Any]
    """What the log is given."""
    best: float | None
    """The value of `train.best`: the greater, the better. None: it has none yet."""
    text: str
    """The same, for people."""


class Recipe(Protocol):
    """Data, step, evaluation, optimiser and model of one run, on this process's device.

    Everything random is drawn from the seed, the step and the position (epoch, number of the batch), so that a run that
    was interrupted loses nothing.
    """

    shown: tuple[str, ...]
    """The numbers of a step that stand beside the progress bar."""

    @property
    def settings(self) -> RunSettings:
        """The settings of the run."""
        ...

    @property
    def model(self) -> torch.nn.Module:
        """The network that is trained."""
        ...

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """A group's `times` multiplies the rate for its parameters."""
        ...

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step in a run of so many."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """This process's part of the batches of an epoch, from number `start` on, on the device. `photo_id` and
        `place_id`, if there, are written down when a loss is not finite."""
        ...

    def epoch_begins(self, epoch: int) -> None:
        """Called before every epoch but the first; state that changes here is part of `state`."""
        ...

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        """Sets the gradients of the whole batch, that of all processes; returns what is worth logging, `loss` among
        it, the same in every process."""
        ...

    def evaluate(self, step: int) -> Evaluation:
        """Measures the model as it is. Called in process 0 alone, and only where `train.evaluate_every` is not 0."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside model, optimiser and position."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        ...

    def save_model(self, path: Path) -> None:
        """The model as the rest of the package loads it."""
        ...
