"""The interface between the trainer and a kind of model: data, step, evaluation, optimiser and model of one run.

To add a kind of model, add a module to `recipes/`. It has settings (a dataclass that extends `RunSettings`), a class
with the members of `Recipe`, and two functions that a script in `train/` passes to `command.main`:
`make_recipe(sources)` returns a recipe that is ready to train, and `evaluate_model(sources, path)` measures a trained
model. The class does not have to extend another one. `python_tests/training/test_trainer.py` trains a recipe of forty
lines.
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

    All random numbers come from the recipe's own seed, the step, and the position (epoch and number of the batch), so
    that an interrupted run continues exactly.
    """

    shown: tuple[str, ...]
    """Names of the numbers of a step that are shown beside the progress bar."""

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
        """The optimiser. The key `times` of a parameter group multiplies the learning rate of the group."""
        ...

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step of a run of `steps` steps."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """This process's part of the batches of an epoch, from number `start` on, on the device. `photo_id` and
        `place_id`, if there, are written down when a loss is not finite."""
        ...

    def epoch_begins(self, epoch: int) -> None:
        """Called before every epoch but the first; state that changes here is part of `state`."""
        ...

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        """Sets the gradients of the whole batch over all processes. Returns numbers for the log, the same in every
        process; one of them is `loss`."""
        ...

    def evaluate(self, step: int) -> Evaluation:
        """Measures the model. Called only in process 0, and only if `train.evaluate_every` is not 0."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores beside model, optimiser and position."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restores the tensors that `state` returned."""
        ...

    def save_model(self, path: Path) -> None:
        """Writes the model to a file that `load_model` can read."""
        ...
