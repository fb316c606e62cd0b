"""Two processes do what one does: gradients of both recipes, and a whole run, gone on with by either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import LossSettings, assert_same, configured, given, gradients, log_of, network, settings, some_batch

from geoloc_fast.models import PanoGAN, PanoGANConfig
from geoloc_fast.training.command import main
from geoloc_fast.training.recipes import panogan
from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, evaluate_model, make_recipe
from geoloc_fast.training.trainer import Trainer

WORKER = """
import sys
sys.path[:0] = [{tests!r}]
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
import test_two_processes as t
for chunk in (0, 2):
    torch.save(t.geolocalizer_gradients(chunk, slice(5 * rank, 5 * rank + 5)), f"{out}/{{rank}}_{{chunk}}.pt")
torch.save(t.panogan_gradients(slice(rank, rank + 1)), f"{out}/{{rank}}_panogan.pt")
for name, more in (("two", ()), ("parts", ("--resume",))):
    sys.argv = ["geoloc.py", *t.arguments({region!r}, {out!r}, name), *more]
    assert t.main("-", t.make_recipe, t.evaluate_model) == 0
dist.destroy_process_group()
"""


def geolocalizer_gradients(chunk: int, part: slice) -> tuple[torch.Tensor, dict[str, float]]:
    how = settings(chunk=chunk, loss=LossSettings(alone=0.5, cuts=0.5))
    return gradients(network(), how, some_batch(10, part))


def panogan_gradients(part: slice) -> tuple[torch.Tensor, dict[str, float]]:
    torch.manual_seed(1)
    config = PanoGANConfig(
        image_size=(32, 128), condition="polar", channels=4, blocks=(1, 1), discriminator_channels=4, features=4
    )
    model = PanoGAN(config)
    batch = {name: 2 * torch.rand(2, 3, 32, 128) - 1 for name in ("condition", "panorama")}
    batch["classes"] = panogan.signed_classes(torch.randint(0, 9, (2, 1, 32, 128)), 9)
    own = {name: value[part] for name, value in batch.items()}
    numbers = panogan.gradients(model, own, panogan.StepSettings(bf16=False))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), numbers


def arguments(region: str, out: str, name: str) -> list[str]:
    more = ("train.steps=4", "train.hard=1", "train.evaluate_every=2", "step.chunk=3")
    return given(Path(region), Path(out) / name, *more)


@pytest.fixture(scope="module")
def done(region: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of two processes leaves; `parts` was begun by one, which Ctrl-C stopped."""
    out = tmp_path_factory.mktemp("two")
    begun = GeolocalizerRecipe(configured(region, out / "parts", *arguments(str(region), str(out), "parts")))
    before = begun.gradients

    def interrupted(batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return before(batch, step=step, epoch=epoch)

    begun.gradients = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Trainer(begun).run()
    script = out / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), region=str(region), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    return out


def test_gradients_of_the_geolocalizer(done: Path) -> None:
    expected, numbers = geolocalizer_gradients(0, slice(None))
    for rank in (0, 1):
        for chunk in (0, 2):
            grads, theirs = torch.load(done / f"{rank}_{chunk}.pt")
            assert_same(expected, grads)
            assert theirs == pytest.approx(numbers, rel=1e-4)


def test_gradients_of_panogan(done: Path) -> None:
    expected, numbers = panogan_gradients(slice(None))
    for rank in (0, 1):
        grads, theirs = torch.load(done / f"{rank}_panogan.pt")
        assert_same(expected, grads, 1e-3)
        assert theirs == pytest.approx(numbers, rel=1e-4)


def test_a_run_of_two_processes_is_that_of_one_with_reference_operators(
    done: Path, region: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["geoloc.py", *arguments(str(region), str(done), name), *more])
        return main("-", make_recipe, evaluate_model)

    assert run("one", "--ops", "reference") == 0
    logs = [log_of(done / name) for name in ("one", "two", "parts")]
    assert [[line["step"] for line in log] for log in logs] == 3 * [[1, 2, 2, 3, 4, 4]]
    for one, *others in zip(*logs, strict=True):
        for other in others:
            if "loss" in one:
                assert one == pytest.approx(other, rel=2e-3, abs=1e-6)
    assert run("two", "--resume") == 0  # nothing is left to do
    assert run("three", "train.speed=9") == 1
    assert "speed" in capsys.readouterr().err
