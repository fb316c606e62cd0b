"""Prototypes spread over two processes: gradients, a whole run, and going on with either number of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cells_recipe import recipe

from geoloc_fast.city.continent import write_continent
from geoloc_fast.models.cells import CellGeolocalizer
from geoloc_fast.training.bank import bank_log_sum
from geoloc_fast.training.recipes.cells import CellsRecipe
from geoloc_fast.training.trainer import Trainer

WORKER = """
import sys
sys.path[:0] = [{tests!r}]
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
import test_cells_two_processes as t
t.in_each_process({continent!r}, {out!r})
dist.destroy_process_group()
"""
# Within a process: the pair of photo and tile, what is left out of a photo, and the statistics of `alike`.
SAME = {"step.ground_aerial": 0.0, "step.dropout": 0.0}
RUN = {"train.steps": 4, "train.log_every": 1, "train.evaluate_every": 4, "train.save_every": 1, "train.clip": 0.05}
RUN |= {"step.least": 0.0}  # gradients of the prototypes are sparse


def alike(made: CellsRecipe) -> CellsRecipe:
    """Normalised by kept statistics in training too: those of a batch are of a process's own part."""
    made.model.train = lambda mode=True: torch.nn.Module.train(made.model, False)  # type: ignore[method-assign]
    return made


def gradients(continent: Path, out: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Of the network and of the prototypes this process has, for the first batch."""
    made = alike(recipe(continent, out, **SAME, **changes))
    numbers = made.gradients(next(iter(made.batches(0, 0))), step=0, epoch=0)
    table = made.model.prototypes.weight
    assert table.grad is not None
    network = [p.grad.flatten() for p in made.model.parameters() if p.grad is not None and p is not table]
    found = {"network": torch.cat(network), "table": table.grad.to_dense(), "loss": torch.tensor(numbers["loss"])}
    return found | {"rows": torch.tensor(len(table))}


def run(continent: Path, out: Path, *, stop: int | None = None, **how: Any) -> None:
    """Four steps, or up to a Ctrl-C in step `stop`."""
    made = alike(recipe(continent, out, **SAME, **RUN))
    before = made.gradients

    def stopping(batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        if step == stop:
            raise KeyboardInterrupt
        return before(batch, step=step, epoch=epoch)

    made.gradients = stopping  # type: ignore[method-assign]
    Trainer(made, **how).run()


def in_each_process(continent: str, out: str) -> None:
    rank = torch.distributed.get_rank()
    for name, least in (("dense", -1.0), ("sparse", 0.0)):
        found = gradients(Path(continent), Path(out) / "none", **{"step.least": least})
        torch.save(found, f"{out}/{name}.{rank}.pt")
    run(Path(continent), Path(out) / "two")
    run(Path(continent), Path(out) / "parts", resume=True)  # begun by one process
    with pytest.raises(ValueError, match=r"step\.loss: expected one that is summed block by block, got 'haversine'"):
        recipe(Path(continent), Path(out) / "none", **{"step.loss": "haversine"})


@pytest.fixture(scope="module")
def continent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continent") / "small"
    write_continent(folder, cities=2, places=40, photos_per_cell=3.0, photo_size=(48, 64), tile_px=48)
    return folder


@pytest.fixture(scope="module")
def done(continent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    run(continent, out / "one")
    with pytest.raises(KeyboardInterrupt):
        run(continent, out / "parts", stop=2)
    script = out / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), continent=str(continent), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    return out


def test_gradients_are_those_of_one_process(done: Path, continent: Path) -> None:
    expected = gradients(continent, done / "none")
    for name in ("dense", "sparse"):
        found = [torch.load(done / f"{name}.{rank}.pt") for rank in (0, 1)]
        count = int(expected["rows"])
        assert [int(part["rows"]) for part in found] == [count // 2, count - count // 2]
        torch.testing.assert_close(
            torch.cat([part["table"] for part in found]), expected["table"], atol=1e-6, rtol=1e-4
        )
        assert float(expected["table"].abs().max()) > 1e-3
        for part in found:
            torch.testing.assert_close(part["network"], expected["network"], atol=1e-6, rtol=1e-3)
            assert float(part["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-4)


def test_a_run_of_two_processes_is_that_of_one_whoever_began_it(done: Path) -> None:
    one = CellGeolocalizer.load(done / "one" / "model.safetensors")
    for name in ("two", "parts"):
        other = CellGeolocalizer.load(done / name / "model.safetensors")
        assert len(other.prototypes) == len(one.prototypes)
        torch.testing.assert_close(other.prototypes.weight, one.prototypes.weight, atol=2e-3, rtol=0)
        assert other.config.kappa == pytest.approx(one.config.kappa, rel=0.05)
        assert (done / name / "best.safetensors").exists()


def test_a_run_of_two_is_gone_on_with_by_one(done: Path, continent: Path) -> None:
    before = CellGeolocalizer.load(done / "two" / "model.safetensors")
    run(continent, done / "two", resume=True)  # nothing is left to do; all of the table is there
    made = recipe(continent, done / "two", **SAME, **RUN)
    Trainer(made, resume=True)
    loaded = CellGeolocalizer.load(done / "two" / "model.safetensors")
    assert loaded.fingerprint == before.fingerprint  # kappa, fitted in the run that is over, included
    torch.testing.assert_close(made.model.prototypes.weight.detach(), loaded.prototypes.weight)
    state = made.optimiser.state[made.model.prototypes.weight]["sum"]
    assert len(state) == len(loaded.prototypes)
    assert float(state.min()) > 0


def test_a_part_of_a_bank_ignores_rows_of_the_others() -> None:
    """What two processes put together, by hand: sums over halves with their own rows ignored."""
    torch.manual_seed(0)
    query, bank = torch.randn(5, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    ignored = torch.tensor([[0, 8], [4, -1], [3, 5], [-1, -1], [4, 4]])
    halves = []
    for first, end in ((0, 4), (4, 9)):
        own = torch.where((ignored >= first) & (ignored < end), ignored - first, -1)
        halves.append(bank_log_sum(query, bank[first:end], own, 3.0))
    torch.testing.assert_close(torch.stack(halves).logsumexp(0), bank_log_sum(query, bank, ignored, 3.0))
