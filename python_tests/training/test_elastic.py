"""A process of several is killed: torchrun starts all again, and the run is that of one that nobody disturbed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import given, log_of, trainer

KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from geoloc_fast.training.command import main
from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, evaluate_model, make_recipe
before = GeolocalizerRecipe.gradients

def gradients(self, batch, *, step, epoch):
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    if step == 4 and last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, batch, step=step, epoch=epoch)

GeolocalizerRecipe.gradients = gradients
sys.exit(main("-", make_recipe, evaluate_model))
"""


@pytest.mark.slow  # two to four processes import torch, twice
@pytest.mark.parametrize(("nodes", "each"), [(1, 2), (1, 4), (2, 2)])
def test_a_run_whose_process_was_killed_goes_on(region: Path, tmp_path: Path, nodes: int, each: int) -> None:
    more = ("train.steps=6", "train.save_every=2", "train.hard=1")
    trainer(region, tmp_path / "undisturbed", *more).run()
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(each),
        "--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}",
        "--monitor-interval", "0.1", str(script), *given(region, tmp_path / "killed", *more),
    ]  # fmt: skip
    said = [(tmp_path / f"node{n}.txt").open("w+") for n in range(nodes)]
    agents = [
        subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}) for file in said
    ]
    try:
        codes = [agent.wait(timeout=300) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # and with it its processes
    text = "".join(Path(file.name).read_text() for file in said)
    assert codes == [0] * nodes, text[-3000:]
    assert "SIGKILL" in text or "-9" in text
    expected, found = log_of(tmp_path / "undisturbed"), log_of(tmp_path / "killed")
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-6)
