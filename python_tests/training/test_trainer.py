"""A trainer that knows no model, with a recipe that is no more than a line: runs that go on as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from training_runs import log_of

from geoloc_fast.errors import TrainingStopped
from geoloc_fast.training import checkpoint
from geoloc_fast.training.command import main
from geoloc_fast.training.recipe import Evaluation, Recipe
from geoloc_fast.training.settings import RunSettings, merged_settings
from geoloc_fast.training.trainer import Trainer


class Line:
    """A plane through points, whose offset doubles with every epoch and drifts with what has been learned."""

    shown: tuple[str, ...] = ("loss",)

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters())
        self.offset = torch.ones(1)
        self.before_step: Callable[[int], Any] = lambda step: None

    def rate(self, step: int, steps: int) -> float:
        return self.settings.train.lr * min(1.0, (steps - step) / 2)

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        for number in range(start, 3):
            points = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * epoch + number))
            yield {"points": points, "photo_id": list("abcd"), "place_id": list("efgh")}

    def epoch_begins(self, epoch: int) -> None:
        self.offset = 2 * self.offset + self.model.bias.detach()

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        self.before_step(step)
        self.model.zero_grad()
        points = batch["points"]
        loss = (self.model(points) - points.sum(1, keepdim=True) - self.offset).square().mean()
        loss.backward()
        return {"loss": float(loss.detach()), "seldom": math.nan if step % 2 else 1.0}

    def evaluate(self, step: int) -> Evaluation:
        error = float((self.model.weight.detach() - 1).abs().sum())
        return Evaluation({"error": error}, -error, f"error {error:.3f}")

    def state(self) -> dict[str, Tensor]:
        return {"offset": self.offset}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.offset = state["offset"]

    def save_model(self, path: Path) -> None:
        safetensors.torch.save_file(self.model.state_dict(), path)


def configured(out: Path, *more: str) -> RunSettings:
    plain = ("data.manifest=none", "train.log_every=1", "train.evaluate_every=0", "train.lr=0.1")
    return merged_settings([f"out={out}", *plain, *more], RunSettings)


def trainer(out: Path, *more: str, resume: bool = False) -> tuple[Trainer, Line]:
    line = Line(configured(out, *more))
    recipe: Recipe = line  # as mypy sees it
    return Trainer(recipe, resume=resume), line


def stopped(out: Path, at: int, *more: str, resume: bool = False) -> None:
    """Ctrl-C in the middle of a step."""
    run, line = trainer(out, *more, resume=resume)
    line.before_step = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == at else None
    with pytest.raises(KeyboardInterrupt):
        run.run()


def test_an_epoch_without_a_batch_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    run, line = trainer(tmp_path / "run", "train.batch=99", "train.steps=2")
    line.batches = lambda epoch, start: iter(())  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"train\.batch: expected at least one batch in an epoch, got none of 99"):
        run.run()


def no_power(*_: Any) -> None:
    pytest.exit("no power")


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Over epochs of three batches. It stops before an evaluation, is gone on with, and is ended by force right after
    that, before and after it is saved."""
    more = ("train.steps=8", "train.log_every=2", "train.evaluate_every=5")  # it stops between lines
    trainer(tmp_path / "whole", *more)[0].run()
    parts = tmp_path / "parts"
    stopped(parts, 4, *more)
    assert [line["step"] for line in log_of(parts)] == [2, 4]
    with pytest.raises(FileExistsError, match="add --resume"):
        trainer(parts, *more)
    with pytest.raises(ValueError, match=r"got another train\.lr"):
        trainer(parts, *more, "train.lr=1e-2", resume=True)
    for ended_in in ("save", "gradients"):
        resumed, line = trainer(parts, *more, resume=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resumed if ended_in == "save" else line, ended_in, lambda *_, **__: no_power())
            with pytest.raises(pytest.exit.Exception):
                resumed.run()
        assert [line["step"] for line in log_of(parts) if "evaluation" in line] == [5]
    trainer(parts, *more, resume=True)[0].run()
    whole = log_of(tmp_path / "whole")
    assert max(line.get("epoch", 0) for line in whole) == 2
    assert [line["step"] for line in whole if "evaluation" in line] == [5, 8]
    assert all(line["seldom"] == 1.0 for line in whole if "loss" in line)  # of the steps that have it
    assert log_of(parts) == whole
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == two
    best = max(-line["evaluation"]["error"] for line in whole if "evaluation" in line)
    assert trainer(parts, *more, resume=True)[0].best == best
    assert (parts / "best.safetensors").exists()


def test_a_run_without_a_terminal_says_how_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, "train.steps=5", "train.log_every=2", "train.evaluate_every=4")[0].run()
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["step 2 of 5", "step 4 of 5", "step 4", "step 5 of 5", "step 5"]
    means = [line for line in log_of(tmp_path) if "loss" in line]
    assert said[0].startswith(f"step 2 of 5: loss {means[0]['loss']:.4g}, rate 0.1, ")
    assert said[2] == f"step 4: error {log_of(tmp_path)[2]['evaluation']['error']:.3f}"
    assert said[3].startswith("step 5 of 5") and "rate 0.05," in said[3]


def test_tensorboard_shows_what_the_log_holds(tmp_path: Path) -> None:
    """After an end by force as well: what came after the checkpoint does not count."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(name, reason="tensorboard is not installed: pip install '.[train]'")
    more = ("train.steps=4", "train.save_every=2")
    cut_off, line = trainer(tmp_path, *more)
    line.before_step = lambda step: no_power() if step == 3 else None
    with pytest.raises(pytest.exit.Exception):
        cut_off.run()
    trainer(tmp_path, *more, resume=True)[0].run()
    board = events.EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    shown = {event.step: event.value for event in board.Scalars("loss")}
    assert len(board.Scalars("loss")) == 4
    assert shown == pytest.approx({line["step"]: line["loss"] for line in log_of(tmp_path)})


def test_a_torn_log_and_damaged_checkpoints(tmp_path: Path) -> None:
    more = ("train.steps=2",)
    trainer(tmp_path, *more)[0].run()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the disk was full
    trainer(tmp_path, *more, resume=True)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2]
    last = tmp_path / "last.safetensors"
    whole = last.read_bytes()
    with safetensors.safe_open(last, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if name.startswith("optimiser."))
    damaged = {
        "a tensor less": {n: t for n, t in tensors.items() if n != name},
        "a tensor more": {**tensors, "model.more": torch.zeros(1)},
        "another value": {**tensors, name: tensors[name] + 1},
    }
    written = {what: (left, metadata) for what, left in damaged.items()}
    position = json.loads(metadata["position"])
    written["another step"] = tensors, metadata | {"position": json.dumps(position | {"step": 1})}
    written["no position"] = tensors, {key: text for key, text in metadata.items() if key != "position"}
    for left, said in written.values():
        safetensors.torch.save_file(left, last, said)
        with pytest.raises(ValueError, match="expected what training wrote"):
            trainer(tmp_path, *more, resume=True)
    safetensors.torch.save_file(tensors, last, metadata | {"format": "another"})
    with pytest.raises(ValueError, match=r"expected a checkpoint of geoloc_fast\.training"):
        trainer(tmp_path, *more, resume=True)
    last.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="expected a checkpoint"):
        trainer(tmp_path, *more, resume=True)
    last.write_bytes(whole)
    trainer(tmp_path, *more, resume=True)


def test_the_end_may_move_until_the_rate_falls(tmp_path: Path) -> None:
    """The rate falls over the last two steps."""
    trainer(tmp_path / "whole", "train.steps=5")[0].run()
    stopped(tmp_path / "parts", 2, "train.steps=9")
    with pytest.raises(ValueError, match=r"got another train\.steps: 9 and now 3"):
        trainer(tmp_path / "parts", "train.steps=3", resume=True)
    trainer(tmp_path / "parts", "train.steps=5", resume=True)[0].run()
    whole = log_of(tmp_path / "whole")
    assert log_of(tmp_path / "parts") == whole
    assert [line["lr"] for line in whole] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    more = ("train.steps=4", "train.save_every=1")
    run, line = trainer(tmp_path, *more)

    def spoiled(step: int) -> None:
        if step == 2:
            line.offset = torch.full((1,), math.nan)

    line.before_step = spoiled
    with pytest.raises(TrainingStopped, match="at step 2"):
        run.run()
    ids = json.loads((tmp_path / "not_finite.0.json").read_text())
    assert ids["photo_id"] == list("abcd") and ids["place_id"] == list("efgh")
    resumed, line = trainer(tmp_path, *more, resume=True)
    assert resumed.step == 2 and all(bool(p.isfinite().all()) for p in line.model.parameters())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit codes, a disk that is full, and an evaluation alone."""
    out = tmp_path / "run"
    interrupted = -1

    def recipe(sources: Any) -> Line:
        line = Line(configured(out, *sources))
        line.before_step = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == interrupted else None
        return line

    def evaluation(sources: Any, path: Path) -> Evaluation:
        configured(out, *sources)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no model")
        return Evaluation({"error": 0.5}, -0.5, "error 0.5")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["line.py", *arguments])
        return main("A line.\n\nMore.", recipe, evaluation)

    more = ("train.steps=4", "train.save_every=2")
    before = checkpoint.write_atomically
    written: list[Path] = []

    def full(path: Path, content: Any) -> None:
        if written:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        before(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    assert run(*more) == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "write_atomically", before)
    assert trainer(out, *more, resume=True)[0].step == 2
    interrupted = 2
    assert run(*more, "--resume") == 130
    assert "--resume continues from here" in capsys.readouterr().err
    interrupted = -1
    assert run(*more, "--resume") == 0 and len(log_of(out)) == 4
    assert run(*more) == 1 and "exists already" in capsys.readouterr().err
    assert run("train.speed=9") == 1 and "speed" in capsys.readouterr().err
    model = out / "model.safetensors"
    files = sorted(out.rglob("*"))
    assert run(*more, "--evaluate", str(model)) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": 0.5} and "train: error 0.5" in said.err
    assert sorted(out.rglob("*")) == files
    assert run("--evaluate", str(tmp_path / "none"), *more) == 1 and "no model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*more, "--resume", "--evaluate", str(model))
