"""train/: steps whose gradients are those of plain ones, runs that go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("omegaconf")
ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train"
if not TRAIN.is_dir():
    pytest.skip("not in a checkout: there are no scripts to train with", allow_module_level=True)
sys.path.insert(0, str(TRAIN))

import geoloc  # noqa: E402
import step as steps  # noqa: E402

from geoloc_fast.data.city.views import TIDY, Sizes  # noqa: E402
from geoloc_fast.data.city.write import write_city  # noqa: E402
from geoloc_fast.losses import info_nce  # noqa: E402
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig  # noqa: E402
from geoloc_fast.ops.choose import force_backend  # noqa: E402

pytestmark = pytest.mark.checkout

NETWORK: dict[str, Any] = {
    "backbone": "convnext_atto",
    "backbone_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 32], "ls_init_value": None},
    "image_size": [32, 128],
    "strip": [8, 2, 8],
}


def network(**kwargs: Any) -> Geolocalizer:
    torch.manual_seed(0)
    model = Geolocalizer(GeolocalizerConfig(**{**NETWORK, "backbone_kwargs": {**NETWORK["backbone_kwargs"], **kwargs}}))
    with torch.no_grad():  # a fresh network hardly looks at its image
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


def some_batch(count: int, part: slice = slice(None)) -> dict[str, Any]:
    """Pairs like those of `finish`, two of them within 25 m, some without heading, panorama or satellite image."""
    generator = torch.Generator().manual_seed(1)

    def images(columns: int) -> Tensor:
        return torch.randn(count, 3, 32, columns, generator=generator)

    row = torch.arange(count)
    lat = 48 + 1e-3 * row.double()
    lat[1] = lat[0] + 1e-4
    heading = torch.rand(count, generator=generator, dtype=torch.float64) * 360
    heading[3] = float("nan")
    batch = {
        "photo": images(44),
        "photo_width": 28 + 2 * (row % 9),
        "polar": images(128),
        "panorama": images(128),
        "has_satellite": row != 2,
        "has_panorama": row % 5 != 4,
        "heading_known": row != 5,
        "heading_deg": heading,
        "turn_deg": 45.0 * row.double(),
        "photo_lat": lat,
        "photo_lon": torch.full((count,), 11.0, dtype=torch.float64),
        "place_lat": lat,
        "place_lon": torch.full((count,), 11.0, dtype=torch.float64),
        "place_row": row,
        "photo_row": row,
    }
    return {name: value[part] for name, value in batch.items()}


def settings(**given: Any) -> steps.StepSettings:
    return steps.StepSettings(bf16=False, **given)


def gradients(model: Geolocalizer, how: steps.StepSettings, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    numbers = steps.gradients(model, batch, how, step=7, epoch=2)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), numbers


def assert_same(one: Tensor, two: Tensor, tolerance: float = 1e-4) -> None:
    assert one.shape == two.shape
    assert float((one - two).norm()) < tolerance * float(one.norm())


# -- one step ----------------------------------------------------------------------------------


def test_a_step_is_the_sum_of_its_losses() -> None:
    model, how, batch = network(), settings(without_panorama=0.0), some_batch(8)
    grads, numbers = gradients(model, how, batch)
    model.zero_grad()
    has_satellite, has_panorama = steps.sources_used(batch, how, 2)
    assert has_satellite.tolist() == (torch.arange(8) != 2).tolist()
    assert has_panorama.tolist() == [True, True, True, True, False, False, True, True]
    above, street = model.encode_sources(batch["polar"], batch["panorama"])
    places = model.fuse(above, street, has_satellite=has_satellite, has_panorama=has_panorama)
    photo = model.encode_photo(batch["photo"], batch["photo_width"])
    noise = steps._window_noise(how, 7, 8, 8, 8, places)
    from geoloc_fast import azimuth_match
    from geoloc_fast.losses import shift_cross_entropy

    match = azimuth_match(
        photo.strips, places, query_width=photo.width, select="gumbel", scale=model.scale, noise=noise
    )
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    loss = info_nce(match.score, temperature=model.temperature, mask=near)
    both = has_satellite & has_panorama
    cosine = above[both].flatten(1) @ street[both].flatten(1).T
    loss = loss + 0.3 * info_nce(cosine, temperature=model.temperature, mask=near[both][:, both])
    known = torch.arange(8) != 3
    truth = ((batch["heading_deg"] - 180 - batch["turn_deg"]) / 45 - photo.width / 2) % 8
    loss = loss + shift_cross_entropy(
        photo.strips[known],
        places[known],
        truth[known],
        query_width=photo.width[known],
        temperature=model.temperature,
    )
    assert float(loss.detach()) == pytest.approx(numbers["loss"], rel=1e-5)
    loss.backward()
    assert_same(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), grads)
    window = (match.shift.diagonal() - truth + 4) % 8 - 4
    assert numbers["true_window"] == pytest.approx(float((window[known].abs() <= 1).float().mean()))


@pytest.mark.parametrize("kind", steps.KINDS)
def test_gradient_cache_is_the_plain_step(kind: str) -> None:
    model, batch = network(), some_batch(10)
    loss = steps.LossSettings(kind=kind)
    plain, numbers = gradients(model, settings(loss=loss), batch)
    cached, cached_numbers = gradients(model, settings(loss=loss, chunk=3), batch)
    assert_same(plain, cached)
    assert numbers == pytest.approx(cached_numbers, rel=1e-4)


def test_gradient_cache_replays_the_networks_noise() -> None:
    """With stochastic depth: the same as a graph of all chunks at once, drawn from the same seeds."""
    model, how, batch = network(drop_path_rate=0.5), settings(chunk=4), some_batch(10)
    cached, _ = gradients(model, how, batch)
    model.zero_grad()
    used = steps.sources_used(batch, how, 2)
    parts = []
    for n, chunk in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        with steps._noise_of(torch.device("cpu"), how.seed, 7, n, steps._NETWORK):
            parts.append(steps._encode(model, batch, chunk, used, how))
    strips = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss, _ = steps._losses(model, strips, batch, used, how, 7)
    loss.backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_same(whole, cached)
    other = steps.gradients(model, batch, how, step=8, epoch=2)
    assert other  # another step, another noise
    again = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float((again - whole).norm()) > 1e-2 * float(whole.norm())


def test_reference_operators_give_the_same_step() -> None:
    model, batch = network(), some_batch(8)
    fast, numbers = gradients(model, settings(), batch)
    with force_backend("reference"):
        slow, slow_numbers = gradients(model, settings(), batch)
    assert_same(fast, slow)
    assert numbers == pytest.approx(slow_numbers, rel=1e-4)


WORKER = """
import sys
sys.path[:0] = [{tests!r}, {train!r}]
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
import test_training as t
rank = dist.get_rank()
model = t.network()
for chunk in (0, 2):
    grads, numbers = t.gradients(model, t.settings(chunk=chunk), t.some_batch(10, slice(5 * rank, 5 * rank + 5)))
    torch.save((grads, numbers), f"{out}/{{rank}}_{{chunk}}.pt")
dist.destroy_process_group()
"""


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), train=str(TRAIN), out=tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    expected, numbers = gradients(network(), settings(), some_batch(10))
    for rank in (0, 1):
        for chunk in (0, 2):
            grads, theirs = torch.load(tmp_path / f"{rank}_{chunk}.pt")
            assert_same(expected, grads)
            assert numbers == pytest.approx(theirs, rel=1e-4)


# -- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cities of 20 places."""
    out = tmp_path_factory.mktemp("region")
    sizes = Sizes(satellite_px=64, panorama=(32, 128), photo=(48, 64))
    write_city(out, seed=5, cities=2, places=20, sizes=sizes, fov_range=(80.0, 100.0), capture=TIDY)
    return out


def configured(region: Path, out: Path, *more: str) -> geoloc.Settings:
    return geoloc.read_settings(given(region, out, *more))


def given(region: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.manifest={region}",
        f"out={out}",
        f"model={json.dumps(NETWORK)}",
        "data.train={split: train}",
        "data.evaluate={split: train}",
        "data.satellite_size=64",
        "step.bf16=false",
        "train.device=cpu",
        "train.batch=8",
        "train.log_every=1",
        "train.evaluate_every=0",
        *more,
    ]


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_tiny_run_learns(region: Path, tmp_path: Path) -> None:
    more = ("train.steps=60", "train.lr=3e-3", "train.warmup=5", "train.evaluate_every=30", "train.batch=12")
    quiet = "data.augment={turn: true, brightness: 0.1, contrast: 0.1, saturation: 0.1, tint: 0, grey: 0, blur: 0}"
    trainer = geoloc.Trainer(configured(region, tmp_path, *more, quiet, "data.search_fov_deg=[80, 100]"))
    trainer.run()
    log = log_of(tmp_path)
    assert {"assumed", "known", "search"} == log[-1]["evaluation"].keys()
    found = [line["evaluation"]["assumed"] for line in log if "evaluation" in line]
    assert len(found) == 2
    places = found[0]["places"]
    assert found[-1]["recall_at_5"] > 2 * 5 / places  # chance is about 5 of all places
    losses = [line["loss"] for line in log if "loss" in line]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert {"true_window", "right", "scale", "temperature", "gradient_norm", "lr"} <= log[0].keys()
    best = max(part["recall_at_1"] for part in found)
    assert trainer.best == best
    for name in ("best.safetensors", "model.safetensors"):
        assert Geolocalizer.load(tmp_path / name).config == trainer.model.config


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C in the middle of step 4."""
    before = geoloc.Trainer._one_step

    def one_step(self: geoloc.Trainer, batch: dict[str, Any]) -> dict[str, float]:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return before(self, batch)

    monkeypatch.setattr(geoloc.Trainer, "_one_step", one_step)
    yield
    monkeypatch.undo()


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Over epochs (of three batches), and from neighbours on the ground to similar ones."""
    more = ("train.steps=8", "train.hard=2", "train.similar_every=1", "step.chunk=5")
    geoloc.Trainer(configured(region, tmp_path / "whole", *more)).run()
    request.getfixturevalue("interrupted")
    with pytest.raises(KeyboardInterrupt):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more)).run()
    monkeypatch.undo()
    assert [line["step"] for line in log_of(tmp_path / "parts")] == [1, 2, 3, 4, 5]
    with pytest.raises(FileExistsError, match="add --resume"):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more))
    with pytest.raises(ValueError, match=r"got another train\.lr"):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more, "train.lr=1e-2"), resume=True)
    geoloc.Trainer(configured(region, tmp_path / "parts", *more), resume=True).run()
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    assert max(line["epoch"] for line in whole) == 2
    assert parts == whole
    one, two = (Geolocalizer.load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.fingerprint == two.fingerprint


def test_a_loss_that_is_not_finite_stops_the_run(region: Path, tmp_path: Path) -> None:
    trainer = geoloc.Trainer(configured(region, tmp_path, "train.steps=4", "train.save_every=1"))
    before = trainer._one_step

    def one_step(batch: dict[str, Any]) -> dict[str, float]:
        if trainer.step == 2:
            batch["photo"][0] = float("nan")
        return before(batch)

    trainer._one_step = one_step  # type: ignore[method-assign]
    with pytest.raises(geoloc.TrainingStopped, match="at step 2"):
        trainer.run()
    ids = json.loads((tmp_path / "not_finite.0.json").read_text())
    assert len(ids["photo_id"]) == len(ids["place_id"]) == 8
    resumed = geoloc.Trainer(configured(region, tmp_path, "train.steps=4", "train.save_every=1"), resume=True)
    assert resumed.step == 2
    assert all(bool(p.isfinite().all()) for p in resumed.model.parameters())


def test_torchrun_trains_like_one_process_with_reference_operators(
    region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script itself, both ways; a checkpoint of either goes on."""
    more = ("train.steps=4", "train.hard=1", "train.evaluate_every=2", "step.chunk=3", "data.workers=1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(TRAIN / "geoloc.py"), *given(region, tmp_path / "two", *more)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["geoloc.py", *arguments])
        return geoloc.main()

    assert run(*given(region, tmp_path / "one", *more), "--ops", "reference") == 0
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 2, 3, 4, 4]
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert a == pytest.approx(b, rel=2e-3, abs=1e-6)
    assert run(*given(region, tmp_path / "two", *more), "--resume") == 0  # nothing is left to do
    last = tmp_path / "two" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    capsys.readouterr()
    assert run(*given(region, tmp_path / "two", *more), "--resume") == 1
    assert "expected a checkpoint" in capsys.readouterr().err
    assert run(*given(region, tmp_path / "three", "train.speed=9")) == 1
    assert "speed" in capsys.readouterr().err


def test_wrong_settings_are_named(region: Path, tmp_path: Path) -> None:
    for more, message in (
        ("train.stpes=3", "stpes"),
        ("train.steps=many", "train.steps=many"),
        ("step.loss.kind=hinge", "loss.kind: expected one of"),
        ("data.field_of_view=guessed", "data.field_of_view: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(region, tmp_path, more)
    with pytest.raises(ValueError, match="out: expected a value"):
        geoloc.read_settings(["data.manifest=x"])
    for more, message in (
        ("model.bakcbone=x", "model: expected settings"),
        ("data.train={split: never}", "data: expected photos with"),
        ("data.train={colour: red}", "data: expected a column of the photos"),
        ("train.batch=64", "batch_size: expected at most the"),
    ):
        with pytest.raises(ValueError, match=message):
            geoloc.Trainer(configured(region, tmp_path, more))
    for name in ("small", "base"):
        given = geoloc.read_settings([str(TRAIN / f"configs/{name}.yaml"), "out=x", "data.manifest=y"])
        GeolocalizerConfig(**given.model)
    assert not list(tmp_path.iterdir())
