"""The log of a run: log.jsonl, TensorBoard if it is installed, and the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from geoloc_fast.files import write_atomically

__all__ = ["Display", "Log", "cut_log"]


class Log:
    """log.jsonl, and TensorBoard where it is installed. Only process 0 writes."""

    def __init__(self, out: Path, rank: int, step: int) -> None:
        self._file = (out / "log.jsonl").open("a") if rank == 0 else None
        self._board: Any = None
        if rank == 0:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                # What an interrupted run wrote after its checkpoint does not count.
                self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _flat(line):
                self._board.add_scalar(name, value, line["step"])

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


class Display:
    """A bar on a terminal; where output goes to a file or a pipe, a line for every line of the log."""

    def __init__(self, steps: int, step: int, shown: tuple[str, ...], rank: int) -> None:
        self._steps, self._shown = steps, shown
        self._lines = rank == 0 and not sys.stdout.isatty()
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=None if rank == 0 else True)

    def step(self, numbers: dict[str, float]) -> None:
        self._bar.update(1)
        self._bar.set_postfix({name: f"{numbers[name]:.3f}" for name in self._shown if name in numbers})

    def logged(self, step: int, seconds: float, means: dict[str, float]) -> None:
        if self._lines:
            rate = f"loss {means['loss']:.4g}, rate {means['lr']:.3g}"
            print(f"step {step} of {self._steps}: {rate}, {seconds:.0f} s", flush=True)

    def say(self, text: str) -> None:
        self._bar.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()


def cut_log(path: Path, step: int, *, due: bool) -> None:
    """Without what came after the checkpoint that a run goes on from, its evaluation if that is still due, or after a
    line that was not finished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            found = json.loads(line)
            if found["step"] < step or (found["step"] == step and not (due and "evaluation" in found)):
                kept.append(line)
        except ValueError:
            break
    write_atomically(path, "".join(kept))


def _flat(values: dict[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("by", "interval"):
            yield from _flat(value, f"{name}{key}/")
        elif isinstance(value, int | float):
            yield name + key, value
