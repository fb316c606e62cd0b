"""One training run: steps, log, checkpoints, evaluations, several processes, Ctrl-C. `recipe` supplies the model.

The folder `out` contains

    config.yaml            all settings
    log.jsonl              a line for every logged step and every evaluation
    last.safetensors       everything that is needed to continue: weights, optimiser, the recipe's state, position
    best.safetensors       the model with the best evaluation, as the rest of the package loads it
    model.safetensors      the model of the last step
    tensorboard/           the same numbers, if tensorboard is installed

all of them complete or not at all. `resume` goes on where `last.safetensors` stands, with the same losses as if nothing
had happened; also to another last step, as long as no rate that has been used would have been another. Ctrl-C finishes
the step, saves and raises KeyboardInterrupt. A loss that is not finite writes the batch's ids to
not_finite.<process>.json and stops; what was saved stays as it was.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from geoloc_fast.errors import TrainingStopped
from geoloc_fast.files import write_atomically
from geoloc_fast.training.checkpoint import Checkpoint, first_difference
from geoloc_fast.training.distributed import (
    any_process,
    barrier,
    clip_gradients,
    own_rows,
    spread_rows,
    whole_tables,
    world,
)
from geoloc_fast.training.log import Display, Log, cut_log
from geoloc_fast.training.recipe import Recipe
from geoloc_fast.training.settings import deciding

__all__ = ["Trainer"]


class Trainer:
    """One training run. All random numbers depend on the seed and on the position (step, epoch, batch)."""

    def __init__(self, recipe: Recipe, *, resume: bool = False) -> None:
        self.recipe = recipe
        self.settings = recipe.settings
        self.rank, _ = world()
        self.out = Path(self.settings.out)
        self.step, self.epoch = 0, 0
        self.start = 0  # the number in the epoch of the batch that comes next
        self.best = -math.inf
        self.seconds = 0.0  # of training and evaluation, over all parts of the run
        self._sums: dict[str, list[float]] = {}  # sum and count of what the next line of the log is the mean
        self._due = False  # an evaluation that Ctrl-C came before
        self._stop = False
        last = self.out / "last.safetensors"
        if resume:
            self._load(last)
        elif last.exists():
            raise FileExistsError(f"out: {last} exists already; add --resume to continue, or choose another folder")
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.settings)))
            cut_log(self.out / "log.jsonl", self.step, due=self._due)

    def run(self) -> None:
        """Trains to the last step. KeyboardInterrupt after SIGINT, with everything saved."""
        how = self.settings.train
        began = time.perf_counter() - self.seconds
        display = Display(how.steps, self.step, self.recipe.shown, self.rank)
        source = self._batches()
        with (
            Log(self.out, self.rank, self.step) as log,
            self._interruptible(),
            contextlib.closing(display),
            contextlib.closing(source),
        ):
            if self._due:
                self._evaluate(log, display)
                self._due = False
                self.seconds = time.perf_counter() - began
                self.save()
            while self.step < how.steps:
                numbers = self._one_step(next(source))
                # The batch counts as done: a run that goes on begins with the next one.
                self.step += 1
                display.step(numbers)
                self._add(numbers)
                stopping = any_process(self._stop, self._device())
                last = self.step == how.steps
                self.seconds = time.perf_counter() - began
                if self.step % how.log_every == 0 or last:
                    self._write(log, display)
                if how.evaluate_every and (self.step % how.evaluate_every == 0 or last):
                    if stopping:
                        self._due = True
                    else:
                        self._evaluate(log, display)
                        self.seconds = time.perf_counter() - began
                if self.step % how.save_every == 0 or last or stopping:
                    self.save()
                if stopping:
                    raise KeyboardInterrupt
        with self._whole():
            if self.rank == 0:
                self.recipe.save_model(self.out / "model.safetensors")

    def _whole(self) -> contextlib.AbstractContextManager[None]:
        """All of the model and the optimiser in process 0, what is spread over the others included."""
        return whole_tables(self.recipe.model, self.recipe.optimiser.state)

    def _device(self) -> torch.device:
        return next(self.recipe.model.parameters()).device

    def _batches(self) -> Generator[dict[str, Any], None, None]:
        """From where the run stands to its end, epoch after epoch."""
        while True:
            empty = self.start == 0
            for batch in self.recipe.batches(self.epoch, self.start):
                empty = False
                self.start += 1
                yield batch
            if empty:  # it would be so for ever
                raise ValueError(
                    f"train.batch: expected at least one batch in an epoch, got none of {self.settings.train.batch}; "
                    "choose a smaller train.batch, or more photos and places (data.train)"
                )
            self.epoch, self.start = self.epoch + 1, 0
            self.recipe.epoch_begins(self.epoch)

    def _one_step(self, batch: dict[str, Any]) -> dict[str, float]:
        recipe = self.recipe
        rate = recipe.rate(self.step, self.settings.train.steps)
        for group in recipe.optimiser.param_groups:
            group["lr"] = rate * group.get("times", 1.0)
        numbers = recipe.gradients(batch, step=self.step, epoch=self.epoch)
        norm = clip_gradients(recipe.model, self.settings.train.clip)
        # The same in every process, so that all stop together.
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            ids = {"step": self.step, "loss": str(numbers["loss"]), "gradient_norm": str(norm)}
            ids |= {name: batch[name] for name in ("photo_id", "place_id") if name in batch}
            path = self.out / f"not_finite.{self.rank}.json"
            write_atomically(path, json.dumps(ids, indent=1))
            raise TrainingStopped(
                f"the loss is {numbers['loss']} and the gradient's norm {norm} at step {self.step}; the "
                f"batch's ids are in {path}, the last checkpoint is as it was"
            )
        recipe.optimiser.step()
        return {**numbers, "gradient_norm": norm, "lr": rate}

    def _add(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if math.isfinite(value):  # a share of nothing is not
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = [total + value, count + 1]

    def _write(self, log: Log, display: Display) -> None:
        """A line of means since the last one."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        log.write({"step": self.step, "epoch": self.epoch, "seconds": round(self.seconds, 1), **means})
        display.logged(self.step, self.seconds, means)
        self._sums.clear()

    def _evaluate(self, log: Log, display: Display) -> None:
        with self._whole():
            if self.rank == 0:
                found = self.recipe.evaluate(self.step)
                log.write({"step": self.step, "evaluation": found.numbers})
                display.say(f"step {self.step}: {found.text}")
                if found.best is not None and found.best > self.best:
                    self.best = found.best
                    self.recipe.save_model(self.out / "best.safetensors")
        barrier()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after its step; a second one at once."""

        def note(number: int, frame: Any) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            before = signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint for `--resume`. To be called in all processes; only process 0 writes."""
        with self._whole():
            if self.rank == 0:
                self._save()

    def _save(self) -> None:
        model, optimiser = self.recipe.model, self.recipe.optimiser
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, value in optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{name}.{key}"] = value
        tensors |= {f"recipe.{name}": value for name, value in self.recipe.state().items()}
        position = {
            "step": self.step,
            "epoch": self.epoch,
            "start": self.start,
            "seconds": self.seconds,
            "best": self.best,
            "sums": self._sums,
            "due": self._due,
        }
        Checkpoint(tensors, position, deciding(self.settings)).save(self.out / "last.safetensors")

    def _load(self, path: Path) -> None:
        found = Checkpoint.load(path)
        position = found.position
        theirs, ours = found.settings, json.loads(json.dumps(deciding(self.settings), default=list))
        ends = theirs["train"]["steps"], ours["train"]["steps"]
        if all(self.recipe.rate(n, ends[0]) == self.recipe.rate(n, ends[1]) for n in range(position["step"])):
            theirs["train"]["steps"] = ends[1]
        if theirs != ours:
            changed = first_difference(theirs, ours)
            raise ValueError(f"{path}: expected the settings it was made with, got another {changed}")

        def below(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): v for n, v in found.tensors.items() if n.startswith(prefix)}

        weights = below("model.")
        for name, parameter in self.recipe.model.named_parameters():
            rows = spread_rows(parameter)
            if rows is not None:
                weights[name] = own_rows(weights[name], rows)
            state = below(f"optimiser.{name}.")
            if state:
                self.recipe.optimiser.state[parameter] = {
                    key: value if key == "step" else own_rows(value, rows).to(parameter) for key, value in state.items()
                }
        self.recipe.model.load_state_dict(weights)
        self.recipe.restore(below("recipe."))
        self.step, self.epoch, self.start = position["step"], position["epoch"], position["start"]
        self.best, self.seconds = position["best"], position["seconds"]
        self._sums, self._due = position["sums"], position["due"]
