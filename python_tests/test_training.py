"""train/: steps whose gradients are those of plain ones, runs that go on as if nothing had happened."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

pytest.importorskip("omegaconf", reason="the training scripts need omegaconf: pip install '.[train]'")
ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train"
if not TRAIN.is_dir():
    pytest.skip("not in a checkout: there are no scripts to train with", allow_module_level=True)
import paper_tables as tables  # noqa: E402
import table_lines  # noqa: E402

from geoloc_fast import strip_topk  # noqa: E402
from geoloc_fast.city.views import TIDY, Sizes  # noqa: E402
from geoloc_fast.city.write import write_city  # noqa: E402
from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset, collate, finish  # noqa: E402
from geoloc_fast.data.manifest import Manifest  # noqa: E402
from geoloc_fast.geo.sphere import great_circle_m  # noqa: E402
from geoloc_fast.images.augment import Augmentation, generator_of  # noqa: E402
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig  # noqa: E402
from geoloc_fast.ops.choose import force_backend  # noqa: E402
from geoloc_fast.region.prepare import Settings as PrepareSettings  # noqa: E402
from geoloc_fast.region.prepare import prepare  # noqa: E402
from geoloc_fast.training import step as steps  # noqa: E402
from geoloc_fast.training import trainer as geoloc  # noqa: E402
from geoloc_fast.training.losses import info_nce  # noqa: E402
from geoloc_fast.training.memory import PairsInMemory  # noqa: E402
from geoloc_fast.training.street_choice import chosen_street, chosen_views  # noqa: E402

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
    model, batch = network(), some_batch(8)
    how = settings(loss=steps.LossSettings(cuts=0.5), without_panorama=0.0)
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
    from geoloc_fast.training.losses import shift_cross_entropy

    match = azimuth_match(
        photo.strips, places, query_width=photo.width, select="gumbel", scale=model.scale, noise=noise
    )
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    loss = info_nce(match.score, temperature=model.temperature, mask=near)
    both = has_satellite & has_panorama
    cosine = above[both].flatten(1) @ street[both].flatten(1).T
    loss = loss + 0.3 * info_nce(cosine, temperature=model.temperature, mask=near[both][:, both])
    start = torch.from_numpy(generator_of(how.seed, 7, 0, steps._CUTS).integers(8, size=8))[both]
    width = photo.width[both]
    cut = torch.zeros(len(start), *street.shape[1:3], int(width.max()))
    for row, (begin, wide) in enumerate(zip(start.tolist(), width.tolist(), strict=True)):
        cut[row, ..., :wide] = street[both][row].roll(-begin, 2)[..., :wide]
    cut = cut / cut.flatten(1).norm(dim=1)[:, None, None, None]
    score = azimuth_match(cut, above[both], query_width=width).score
    loss = loss + 0.5 * info_nce(score, temperature=model.temperature, mask=near[both][:, both])
    turned = shift_cross_entropy(cut, above[both], start, query_width=width, temperature=model.temperature)
    loss = loss + 0.5 * turned
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


def test_a_photo_without_a_position_stands_at_its_place() -> None:
    """Two of the places lie within the threshold: neither may be a negative of the other's photo."""
    batch = some_batch(10)
    expected, numbers = gradients(network(), settings(), batch)
    unknown = torch.full_like(batch["photo_lat"], float("nan"))
    grads, theirs = gradients(network(), settings(), batch | {"photo_lat": unknown, "photo_lon": unknown})
    assert_same(expected, grads, 1e-6)
    assert theirs == pytest.approx(numbers, rel=1e-6)


def test_each_source_alone_answers_photos_too() -> None:
    """What the weight adds: photos against one source, only of places that have it."""
    model, batch = network(), some_batch(8)
    photo, (above, street) = (
        model.encode_photo(batch["photo"], batch["photo_width"]),
        model.encode_sources(batch["polar"], batch["panorama"]),
    )
    truth = ((batch["heading_deg"] - 180 - batch["turn_deg"]) / 45 - photo.width / 2) % 8
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    added = torch.zeros(())
    for strips, has in ((above, torch.arange(8) != 2), (street, torch.tensor([1, 1, 1, 1, 0, 0, 1, 1]).bool())):
        score = steps.azimuth_match(photo.strips, strips, query_width=photo.width, select="cosine").score
        one = info_nce(score[has][:, has], temperature=model.temperature, mask=near[has][:, has])
        known = has & (torch.arange(8) != 3)
        turned = steps.shift_cross_entropy(
            photo.strips[known], strips[known], truth[known], query_width=photo.width[known], temperature=0.07
        )
        added = added + one + turned
    _, without = gradients(model, settings(loss=steps.LossSettings(select="cosine")), batch)
    _, numbers = gradients(model, settings(loss=steps.LossSettings(select="cosine", alone=0.5)), batch)
    assert numbers["loss"] - without["loss"] == pytest.approx(0.5 * float(added.detach()), rel=1e-4)


def test_without_matching_only_the_middle_of_a_strip_counts() -> None:
    model, batch = network(), some_batch(8)
    batch["photo_width"][:] = 32  # two columns of eight
    how = settings(loss=steps.LossSettings(select="fixed", heading=0.0, agreement=0.0), without_panorama=0.0)
    _, numbers = gradients(model, how, batch)
    photo = model.encode_photo(batch["photo"], batch["photo_width"]).strips
    used = steps.sources_used(batch, how, 2)
    places = model.encode_place(batch["polar"], batch["panorama"], has_satellite=used[0], has_panorama=used[1])
    window = torch.nn.functional.normalize(places[..., 3:5].flatten(1), dim=1)
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    loss = info_nce(photo.flatten(1) @ window.T, temperature=model.temperature, mask=near)
    assert numbers["contrast"] == pytest.approx(float(loss.detach()), rel=1e-4)
    batch["photo_width"][0] = 44
    with pytest.raises(ValueError, match=r"loss\.select: expected photos of one width"):
        gradients(model, how, batch)


@pytest.mark.parametrize("kind", steps.KINDS)
def test_gradient_cache_is_the_plain_step(kind: str) -> None:
    model, batch = network(), some_batch(10)
    loss = steps.LossSettings(kind=kind, alone=0.5, cuts=0.5)
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
sys.path[:0] = [{tests!r}, {bench!r}]
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
import test_training as t
rank = dist.get_rank()
model = t.network()
for chunk in (0, 2):
    part = t.some_batch(10, slice(5 * rank, 5 * rank + 5))
    grads, numbers = t.gradients(model, t.settings(chunk=chunk, loss=t.steps.LossSettings(alone=0.5, cuts=0.5)), part)
    torch.save((grads, numbers), f"{out}/{{rank}}_{{chunk}}.pt")
dist.destroy_process_group()
"""


def test_a_model_of_one_source_is_not_denied_it() -> None:
    batch = some_batch(10)
    how = settings(without_panorama=0.9, without_satellite=0.9)
    satellite, panorama = steps.sources_used(batch, how, 0, "street")
    assert not satellite.any() and torch.equal(panorama, batch["has_panorama"] & batch["heading_known"])
    satellite, panorama = steps.sources_used(batch, how, 0, "satellite")
    assert not panorama.any() and torch.equal(satellite, batch["has_satellite"])
    # A place that it sees nothing of changes nothing: not its own photo's gradient, nor that of others.
    torch.manual_seed(0)
    model = Geolocalizer(GeolocalizerConfig(**{**NETWORK, "sources": "street"}))
    photo = batch["photo"].clone()
    _, numbers = gradients(model, how, batch)
    batch["photo"] = photo.clone()
    batch["photo"][4] = 0.0  # of a place without a panorama
    assert gradients(model, how, batch)[1]["contrast"] == pytest.approx(numbers["contrast"], rel=1e-6)


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), bench=str(ROOT / "bench"), out=tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    expected, numbers = gradients(network(), settings(loss=steps.LossSettings(alone=0.5, cuts=0.5)), some_batch(10))
    for rank in (0, 1):
        for chunk in (0, 2):
            grads, theirs = torch.load(tmp_path / f"{rank}_{chunk}.pt")
            assert_same(expected, grads)
            assert numbers == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_the_papers_network_takes_a_step_on_a_cpu() -> None:
    """ConvNeXt-Base at 128 x 512, four pairs at once: the memory of an ordinary machine is enough."""
    made = geoloc.read_settings([str(TRAIN / "configs/base.yaml"), "out=x", "data.manifest=y", "step.chunk=0"])
    model = Geolocalizer(GeolocalizerConfig(**made.model))
    batch = some_batch(4)
    for name in ("photo", "polar", "panorama"):
        batch[name] = torch.randn(4, 3, 128, 128 if name == "photo" else 512)
    batch["photo_width"][:] = 128
    optimiser = torch.optim.AdamW(model.parameters(), lr=made.train.lr)
    begin = time.perf_counter()
    numbers = steps.gradients(model, batch, made.step, step=0, epoch=0)
    optimiser.step()
    seconds = time.perf_counter() - begin
    print(f"{seconds:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    assert math.isfinite(numbers["loss"])
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB


# -- pairs in memory ---------------------------------------------------------------------------


PLAIN = Augmentation(turn=False, brightness=0, contrast=0, saturation=0, tint=0, grey=0, blur=0, noise=0)


def in_memory(region: Path, augment: Augmentation, **how: Any) -> tuple[PairsInMemory, PairDataset]:
    manifest = Manifest.load(region)
    photos = PhotoDataset(manifest, panorama_size=(32, 128))
    pairs = PairDataset(photos, PlaceDataset(manifest, satellite_size=64, panorama_size=(32, 128)))
    return PairsInMemory(pairs, [photos], augment, **how), pairs


def drawn(ready: PairsInMemory, rows: list[int], epoch: int = 0) -> dict[str, Any]:
    return ready.batch(rows, (epoch, 0), torch.device("cpu"))


def test_pairs_in_memory_are_those_of_the_loader(region: Path) -> None:
    ready, pairs = in_memory(region, PLAIN)
    rows = [3, 0, 21]
    expected = finish(collate([pairs[row] for row in rows]), "cpu")
    got = drawn(ready, rows)
    assert got.keys() == expected.keys() - {"calibration", "column0_deg", "fov_deg", "fov_known"}
    for name, value in got.items():
        if isinstance(value, Tensor):
            # Bytes of the polar image are rounded before they are normalised.
            torch.testing.assert_close(value, expected[name], atol=0.011 if name == "polar" else 1e-4, rtol=0)
        else:
            assert value == expected[name]


def test_in_memory_a_batch_has_one_reading_however_it_is_shared_out(region: Path) -> None:
    _, pairs = in_memory(region, PLAIN)
    how: dict[str, Any] = {"panorama_size": (32, 128), "use_fov": False}
    readings = [PhotoDataset(pairs.photos.manifest, assumed_fov_deg=fov, **how) for fov in (60, 120)]
    ready = PairsInMemory(pairs, readings, PLAIN)
    widths = set()
    for number in range(8):
        whole, *parts = (
            ready.batch(rows, (1, number), torch.device("cpu"))["photo_width"].tolist()
            for rows in ([4, 1, 7], [4], [1], [7])
        )
        assert whole == [width for part in parts for width in part]
        widths |= set(whole)
    assert widths == {round(60 * 128 / 360), round(120 * 128 / 360)}


def test_in_memory_turns_mirrors_and_cuts_keep_geometry(region: Path) -> None:
    ready, _ = in_memory(region, replace(PLAIN, turn=True, mirror=0.5), cut=0.5)
    plain = drawn(in_memory(region, PLAIN)[0], list(range(8)))
    got = drawn(ready, list(range(8)), epoch=3)
    again = drawn(ready, [5, 2], epoch=3)
    assert torch.equal(again["polar"], got["polar"][[5, 2]])
    assert torch.equal(again["heading_deg"], got["heading_deg"][[5, 2]])
    assert got["mirrored"].any() and not got["mirrored"].all()
    assert (got["photo_width"] < plain["photo_width"]).any()
    for n in range(8):
        turn = round(float(got["turn_deg"][n]) * 128 / 360)
        mirrored = bool(got["mirrored"][n])
        for name in ("polar", "panorama"):
            image = plain[name][n]
            image = image.flip(2).roll(1, 2) if mirrored else image  # column 0 looks south, and does in the mirror
            torch.testing.assert_close(got[name][n], image.roll(-turn, 2))
        # Where the photo's first column looks, from its heading, is where that column was before.
        width, whole = int(got["photo_width"][n]), int(plain["photo_width"][n])
        photo = plain["photo"][n, :, :, :whole]
        photo = photo.flip(2) if mirrored else photo
        heading = float(plain["heading_deg"][n])
        heading = 360 / 128 - heading if mirrored else heading
        ahead = (float(got["heading_deg"][n]) - heading + 180) % 360 - 180
        first = round(ahead * 128 / 360 + whole / 2 - width / 2)
        torch.testing.assert_close(got["photo"][n, :, :, :width], photo[:, :, first : first + width])
        assert not got["photo"][n, :, :, width:].any()


def test_street_views_as_an_experiment_wants_them(region: Path) -> None:
    ready, _ = in_memory(region, PLAIN)
    street, polar = (images.permute(0, 3, 2, 1) for images in (ready.panorama, ready.polar))
    count = len(street)
    unknown = torch.arange(count) % 4 == 0
    lies = torch.stack([one.roll(-20, 2) if u else one for one, u in zip(street, unknown, strict=True)])
    has = {"has_panorama": torch.arange(count) != 1, "has_satellite": torch.arange(count) != 2}

    def chosen(how: str) -> tuple[Tensor, Tensor, Tensor]:
        return chosen_street(
            how, lies, polar, heading_known=~unknown & (torch.arange(count) != 1), column0_deg=180.0, **has
        )

    image, there, known = chosen("as_is")
    assert torch.equal(image, lies) and torch.equal(there, has["has_panorama"]) and torch.equal(known, there)
    image, there, known = chosen("azimuth")
    assert torch.equal(there, has["has_panorama"]) and torch.equal(known, there)
    assert torch.equal(image[~unknown], lies[~unknown])
    better = (image[unknown].float() - street[unknown].float()).abs().mean((1, 2, 3))
    worse = (lies[unknown].float() - street[unknown].float()).abs().mean((1, 2, 3))
    assert (better < 0.7 * worse).float().mean() > 0.6
    image, there, known = chosen("projected")
    assert torch.equal(known, has["has_satellite"]) and torch.equal(there, known)
    assert not image[:, :, :16].any()  # the sky
    down = math.radians(8.5 * 360 / 128)
    row = round(31 - 1.65 / math.tan(down) / 25 * 32)
    assert torch.equal(image[:, :, 24], polar[:, :, row])


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


def test_a_tiny_run_learns_about_photos_it_has_not_seen(tmp_path: Path) -> None:
    sizes = Sizes(satellite_px=64, panorama=(32, 128), photo=(48, 64))
    write_city(tmp_path / "region", seed=5, cities=2, places=100, sizes=sizes, fov_range=(80.0, 100.0), capture=TIDY)
    more = ("train.steps=100", "train.batch=32", "train.lr=3e-3", "train.warmup=5", "data.evaluate={split: test}")
    more += ("data.in_memory=true", "data.field_of_view=known", "train.evaluate_every=100")
    trainer = geoloc.Trainer(configured(tmp_path / "region", tmp_path / "run", *more))
    trainer.run()
    trainer.model.eval()
    data, held_out = trainer.settings.data, trainer.held_out
    assert held_out is not None and set(held_out.photos["split"].to_pylist()) == {"test"}
    places = geoloc.place_batches(held_out, trainer.model.config, data, trainer.device)
    bank = geoloc.encode_places(trainer.model, places)
    photos = list(geoloc.photo_batches(trainer.model, held_out, data, trainer.device, known=True))
    readings = [photo.readings[0] for photo in photos]
    index = torch.cat([strip_topk(strips, bank, 200, query_width=width).index for strips, width in readings])
    own = torch.from_numpy(np.concatenate([photo.place for photo in photos]))
    assert bool((own >= 0).all()) and bool((index == own[:, None]).any(1).all())
    rank = (index == own[:, None]).float().argmax(1) / 200  # evenly from 0 to 1 if nothing was learned
    assert len(rank) == 40
    assert float(rank.mean()) < 0.5 - 3 / math.sqrt(12 * 40)


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
    """Over epochs (of three batches), and from neighbours on the ground to similar ones. It stops before an evaluation,
    is gone on with, and is ended by force right after that, before and after it is saved."""
    more = ("train.steps=8", "train.hard=2", "train.similar_every=1", "step.chunk=5")
    more += ("train.log_every=2", "train.evaluate_every=5")  # it stops between lines, before an evaluation
    geoloc.Trainer(configured(region, tmp_path / "whole", *more)).run()
    request.getfixturevalue("interrupted")
    with pytest.raises(KeyboardInterrupt):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more)).run()
    monkeypatch.undo()
    assert [line["step"] for line in log_of(tmp_path / "parts")] == [2, 4]
    with pytest.raises(FileExistsError, match="add --resume"):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more))
    with pytest.raises(ValueError, match=r"got another train\.lr"):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more, "train.lr=1e-2"), resume=True)
    for ended_in in ("save", "_one_step"):
        resumed = geoloc.Trainer(configured(region, tmp_path / "parts", *more), resume=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resumed, ended_in, lambda *given: pytest.exit("no power"))
            with pytest.raises(pytest.exit.Exception):
                resumed.run()
        assert [line["step"] for line in log_of(tmp_path / "parts") if "evaluation" in line] == [5]
    geoloc.Trainer(configured(region, tmp_path / "parts", *more), resume=True).run()
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    assert max(line.get("epoch", 0) for line in whole) == 2
    assert [line["step"] for line in whole if "evaluation" in line] == [5, 8]
    assert parts == whole
    one, two = (Geolocalizer.load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.fingerprint == two.fingerprint


def test_tensorboard_shows_what_the_log_holds(region: Path, tmp_path: Path) -> None:
    """After an end by force as well: what came after the checkpoint does not count."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(name, reason="tensorboard is not installed: pip install '.[train]'")
    settings = configured(region, tmp_path, "train.steps=4", "train.save_every=2")
    cut_off = geoloc.Trainer(settings)
    before = cut_off._one_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cut_off, "_one_step", lambda batch: before(batch) if cut_off.step < 3 else pytest.exit("no power")
        )
        with pytest.raises(pytest.exit.Exception):
            cut_off.run()
    geoloc.Trainer(settings, resume=True).run()
    board = events.EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    shown = {event.step: event.value for event in board.Scalars("loss")}
    assert len(board.Scalars("loss")) == 4
    assert shown == pytest.approx({line["step"]: line["loss"] for line in log_of(tmp_path)})


def test_a_torn_log_and_damaged_checkpoints(region: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    geoloc.Trainer(configured(region, out, "train.steps=2")).run()
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the disk was full
    more = configured(region, out, "train.steps=2")
    geoloc.Trainer(more, resume=True)
    assert [line["step"] for line in log_of(out)] == [1, 2]
    last = out / "last.safetensors"
    whole = last.read_bytes()
    with geoloc.safetensors.safe_open(last, framework="pt") as file:
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
    for what, (left, said) in written.items():
        geoloc.safetensors.torch.save_file(left, last, said)
        with pytest.raises(ValueError, match="expected what training wrote"):
            geoloc.Trainer(more, resume=True)
        assert what
    last.write_bytes(whole)
    geoloc.Trainer(more, resume=True)


def test_no_value_of_the_best_yet_is_no_end(region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no place is right, headings have no value; and batches without headings have no true window."""
    real = geoloc.evaluate

    def evaluate(*arguments: Any, **more: Any) -> dict[str, Any]:
        found = real(*arguments, **more)
        found["assumed"]["heading_within_22.5_deg"] = None
        return found

    monkeypatch.setattr(geoloc, "evaluate", evaluate)
    rows = Manifest.load(region).photos.to_pylist()
    shutil.copytree(region, tmp_path / "r")
    photos = [{**row, "heading_deg": None} for row in rows]
    Manifest.from_rows(tmp_path / "r", Manifest.load(region).places.to_pylist(), photos).save()
    more = ("train.steps=2", "train.evaluate_every=1", "train.best=heading_within_22.5_deg")
    geoloc.Trainer(configured(tmp_path / "r", tmp_path / "run", *more)).run()
    assert not (tmp_path / "run/best.safetensors").exists()
    steps_logged = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert len(steps_logged) == 2 and not any("true_window" in line for line in steps_logged)


def test_prepared_photos_train_as_they_are(region: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = PrepareSettings(size=(32, 128), satellite_px=64)
    prepare(Manifest.load(region), tmp_path / "ready", settings=settings, workers=1, progress=False)
    trainer = geoloc.Trainer(
        configured(tmp_path / "ready", tmp_path / "run", "train.steps=2", "train.evaluate_every=2")
    )
    assert "photos have the field of view that they were prepared with" in capsys.readouterr().err
    trainer.run()
    (found,) = [line["evaluation"] for line in log_of(tmp_path / "run") if "evaluation" in line]
    assert list(found) == ["as prepared"] and found["as prepared"]["photos"] == len(trainer.training.photos)
    assert (tmp_path / "run/best.safetensors").exists()
    memory = ("data.in_memory=true", "data.field_of_view=mixed")
    mixed = configured(tmp_path / "ready", tmp_path / "other", *memory)
    with pytest.raises(ValueError, match=r"data\.field_of_view: expected assumed or known for photos that are"):
        geoloc.Trainer(mixed)


def test_photos_that_go_all_the_way_round_train_in_cuts(region: Path, tmp_path: Path) -> None:
    """The published protocols: the street view of one place is the photo of another, cut."""
    manifest = Manifest.load(region)
    places = {place["id"]: place for place in manifest.places.to_pylist()}
    photos = []
    for photo in manifest.photos.to_pylist():
        place = places[photo["place"]]
        if place["street_column0_deg"] is not None:
            heading = place["street_column0_deg"] + 180
            photos.append({**photo, "image": place["street"], "heading_deg": heading % 360, "fov_deg": 360.0})
    table = pa.Table.from_pylist(photos, schema=manifest.photos.schema)
    shutil.copytree(region, tmp_path / "around")
    manifest.replace(photos=table).save(tmp_path / "around")
    for reading, width, memory in (("assumed", 32, "true"), ("known", 64, "true"), ("known", 64, "false")):
        out = tmp_path / f"{reading}.{memory}"
        more = ("data.crop_fov_deg=180", f"data.field_of_view={reading}", f"data.in_memory={memory}")
        trainer = geoloc.Trainer(configured(tmp_path / "around", out, *more, "train.steps=2", "train.evaluate_every=2"))
        source = trainer._batches()
        batch = next(source)
        source.close()
        assert batch["photo"].shape[3] == width and set(batch["photo_width"].tolist()) == {width}
        assert len(set(batch["heading_deg"].tolist())) > 5
        trainer.run()
        (found,) = [line["evaluation"] for line in log_of(out) if "evaluation" in line]
        assert found["assumed"]["photos"] == found["known"]["photos"] == len(trainer.training.photos)
    known, assumed = (
        next(geoloc.photo_batches(trainer.model, trainer.training, trainer.settings.data, trainer.device, known=way))
        for way in (True, False)
    )
    widths = [int(batch.readings[0][1].max()) for batch in (known, assumed)]
    assert widths == [4, 2] and np.array_equal(known.heading_deg, assumed.heading_deg)
    with pytest.raises(ValueError, match="crop_fov_deg: expected at least one column"):
        geoloc.Trainer(configured(tmp_path / "around", tmp_path / "x", "data.crop_fov_deg=400"))


def test_the_end_may_move_until_the_rate_falls(region: Path, tmp_path: Path) -> None:
    more = ("train.warmup=1", "train.decay=2", "data.in_memory=true")
    geoloc.Trainer(configured(region, tmp_path / "whole", *more, "train.steps=5")).run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geoloc.Trainer, "_anyone_stops", lambda self: self.step == 3)
        with pytest.raises(KeyboardInterrupt):
            geoloc.Trainer(configured(region, tmp_path / "parts", *more, "train.steps=9")).run()
    with pytest.raises(ValueError, match=r"got another train\.steps"):
        geoloc.Trainer(configured(region, tmp_path / "parts", *more, "train.steps=4"), resume=True)
    geoloc.Trainer(configured(region, tmp_path / "parts", *more, "train.steps=5"), resume=True).run()
    whole = log_of(tmp_path / "whole")
    assert log_of(tmp_path / "parts") == whole
    assert [line["lr"] for line in whole] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 5e-4])


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
    region: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """The script itself, both ways; a checkpoint of either goes on in the other."""
    more = ("train.steps=6", "train.hard=1", "train.evaluate_every=2", "step.chunk=3", "data.workers=1")

    def two_processes(out: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(TRAIN / "geoloc.py"), *given(region, out, *more), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["geoloc.py", *arguments])
        return geoloc.main()

    assert run(*given(region, tmp_path / "one", *more), "--ops", "reference") == 0
    two_processes(tmp_path / "two")
    request.getfixturevalue("interrupted")
    assert run(*given(region, tmp_path / "parts", *more)) == 130
    two_processes(tmp_path / "parts", "--resume")
    logs = [log_of(tmp_path / name) for name in ("one", "two", "parts")]
    assert [[line["step"] for line in log] for log in logs] == 3 * [[1, 2, 2, 3, 4, 4, 5, 6, 6]]
    for one, *others in zip(*logs, strict=True):
        for other in others:
            if "loss" in one:
                assert one == pytest.approx(other, rel=2e-3, abs=1e-6)
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
        ("data.field_of_view=mixed", "data.field_of_view: expected"),
        ("data.cut=0.2", r"data\.cut: expected 0\.0 without data\.in_memory"),
        ("data.street=orb", r"data\.street: expected 'known' without"),
        ("data.street=paved", r"data\.street: expected one of"),
        ("data.views=some", r"data\.views: expected one of"),
        ("train.log_every=0", r"train\.log_every: expected at least 1"),
        ("train.similar_every=-1", r"train\.similar_every: expected at least 0"),
        ("train.best=median_error_m", r"train\.best: expected one of recall_at_1, "),
        ("train.best=recall_at_7", r"train\.best: expected one of recall_at_1, "),
        ("step.chunk=-1", r"step\.chunk: expected at least 0"),
        ("step.without_panorama=2", r"step\.without_panorama: expected a share"),
        ("step.loss.cuts=-1", r"loss\.cuts: expected at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(region, tmp_path, more)
    with pytest.raises(ValueError, match="out: expected a value"):
        geoloc.read_settings(["data.manifest=x"])
    (tmp_path / "broken.yaml").write_text("train: {steps: [")
    with pytest.raises(ValueError, match=r"broken\.yaml: "):
        configured(region, tmp_path, str(tmp_path / "broken.yaml"))
    (tmp_path / "broken.yaml").unlink()
    for more, message in (
        ("model.bakcbone=x", "model: expected settings"),
        ("model.backbone=nosuch", "model: expected a network that can be built, got RuntimeError: Unknown model"),
        ("model.backbone_kwargs={colour: red}", "model: expected a network that can be built"),
        ("model.backbone_kwargs={depths: [1]}", "model: expected a network that can be built, got IndexError"),
        ("model.column0_deg=.nan", "column0_deg: expected an angle"),
        ("train.device=abacus", r"train\.device: expected auto, or one of \['cpu'.*\], got 'abacus'"),
        ("data.train={split: never}", "data: expected photos with"),
        ("data.train={colour: red}", "data: expected a column of the photos"),
        ("train.batch=64", "batch_size: expected at most the"),
    ):
        with pytest.raises(ValueError, match=message):
            geoloc.Trainer(configured(region, tmp_path, more))
    for names in (
        ("small",),
        ("small", "small_first"),
        ("small", "small_last"),
        ("base",),
        ("tables",),
        ("tables_base",),
    ):
        files = [str(TRAIN / f"configs/{name}.yaml") for name in names]
        GeolocalizerConfig(**geoloc.read_settings([*files, "out=x", "data.manifest=y"]).model)
    assert not list(tmp_path.iterdir())


def test_a_choice_of_photos_replaces_the_one_before() -> None:
    base = [str(TRAIN / "configs/base.yaml"), "out=x", "data.manifest=y"]
    made = geoloc.read_settings([*base, "data.train={area: train}", "data.workers=3"])
    assert (made.data.train, made.data.evaluate) == ({"area": "train"}, {"split": "val"})
    assert geoloc.read_settings([*base, "data.train={}"]).data.train == {}


def test_a_run_starts_from_a_trained_model(region: Path, tmp_path: Path) -> None:
    trained = Geolocalizer(GeolocalizerConfig(**NETWORK))
    trained.save(tmp_path / "trained.safetensors")
    start = f"start={tmp_path / 'trained.safetensors'}"
    trainer = geoloc.Trainer(configured(region, tmp_path / "run", start, "train.steps=1"))
    for own, theirs in zip(trainer.model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(own, theirs)
    trainer.run()
    assert not torch.equal(trainer.model.log_scale, trained.log_scale)
    other = json.dumps({**NETWORK, "fusion": "concat"})
    with pytest.raises(ValueError, match="start: expected a model of these settings, got one with fusion: 'iaff'"):
        geoloc.Trainer(configured(region, tmp_path / "other", start, f"model={other}"))
    with pytest.raises(ValueError, match="pretrained: expected none beside start"):
        geoloc.Trainer(configured(region, tmp_path / "both", start, "pretrained=timm"))


def test_what_nothing_has_trained_has_a_rate_of_its_own(region: Path, tmp_path: Path) -> None:
    Geolocalizer(GeolocalizerConfig(**NETWORK)).save(tmp_path / "trained.safetensors")
    pretrained = f"pretrained={tmp_path / 'trained.safetensors'}"
    more = ("train.fresh=4", "train.steps=1", "train.warmup=0", "train.lr=1e-3")
    one_column = json.dumps({**NETWORK, "strip": [32, 1, 1]})  # of another head
    for out, given, fresh in (
        ("same", (pretrained,), {"fusion", "log_scale", "log_temperature"}),
        (
            "other",
            (pretrained, f"model={one_column}"),
            {"fusion", "log_scale", "log_temperature", "encoder.network.head"},
        ),
        ("nothing", (), set()),
    ):
        trainer = geoloc.Trainer(configured(region, tmp_path / out, *given, *more))
        trainer.run()
        rate = {id(p): group["lr"] for group in trainer.optimiser.param_groups for p in group["params"]}
        base = min(rate.values())
        assert len(rate) == len(list(trainer.model.parameters()))
        for name, p in trainer.model.named_parameters():
            assert rate[id(p)] == pytest.approx(base * (4 if name.startswith(tuple(fresh)) else 1)), name


def test_a_manifest_that_cannot_be_trained_on_is_named(region: Path, tmp_path: Path) -> None:
    whole = Manifest.load(region)
    for name, places, photos, message in (
        ("no_photos", whole.places, whole.photos.slice(0, 0), "data: expected photos with"),
        ("one_place", whole.places.slice(0, 1), whole.photos.slice(0, 1), "place: expected at least two"),
    ):
        Manifest.from_rows(region, places.to_pylist(), photos.to_pylist()).save(tmp_path / name)
        more = ("train.batch=1", f"data.manifest={tmp_path / name}", "data.train={city: 00-harbour}")
        with pytest.raises(ValueError, match=message):
            geoloc.Trainer(configured(region, tmp_path / "out", *more))


def test_what_a_manifest_need_not_know(region: Path, tmp_path: Path) -> None:
    """Cities of places, positions of photos, positions at all."""
    whole = Manifest.load(region)
    one = geoloc.chosen(whole, {"city": "00-harbour"})
    assert set(one.places["city"].to_pylist()) == {"00-harbour"} and len(one.places) == 20
    places, photos = whole.places.to_pylist(), whole.photos.to_pylist()
    moved = [{**row, "city": "01-grid"} if n == 0 else row for n, row in enumerate(places)]
    kept = geoloc.chosen(Manifest.from_rows(region, moved, photos), {"city": "00-harbour"})
    assert len(kept.places) == 20  # with the one that its photo is of
    without = [{**row, "city": None} for row in places]
    assert len(geoloc.chosen(Manifest.from_rows(region, without, photos), {"city": "00-harbour"}).places) == 40

    nowhere = {"lat": None, "lon": None}
    shutil.copytree(region, tmp_path / "region")
    manifest = Manifest.from_rows(region, [row | nowhere for row in places], [row | nowhere for row in photos])
    manifest.save(tmp_path / "region")
    more = ("train.steps=2", "train.evaluate_every=2", "data.in_memory=true")
    trainer = geoloc.Trainer(configured(tmp_path / "region", tmp_path / "run", *more))
    trainer.run()
    (found,) = [line["evaluation"]["known"] for line in log_of(tmp_path / "run") if "evaluation" in line]
    # As if every place were alone, which in this city they are not all.
    expected = geoloc.evaluate(
        trainer.model, geoloc.chosen(whole, {"split": "train"}), trainer.settings.data, trainer.device
    )["known"]
    assert found["photos_with_no_place_in_range"] == 0
    assert 0 < found["recall_at_10"] <= expected["recall_at_10"]


def test_a_disk_that_is_full_leaves_the_last_checkpoint(
    region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("train.steps=4", "train.save_every=2")
    before = geoloc.write_atomically

    def full(path: Path, content: Any) -> None:
        if path.name == "last.safetensors" and path.exists():
            raise OSError(28, "No space left on device", str(path))
        before(path, content)

    monkeypatch.setattr(geoloc, "write_atomically", full)
    monkeypatch.setattr(sys, "argv", ["geoloc.py", *given(region, tmp_path / "run", *more)])
    assert geoloc.main() == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(geoloc, "write_atomically", before)
    assert geoloc.Trainer(configured(region, tmp_path / "run", *more), resume=True).step == 2


def test_tables_run_once_go_on_and_print(
    region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of one table at toy size, from the command line."""
    small = tables.Table("Toy", (tables.Row("aff", "aff", (9.0,), (9.0,)), tables.Row("iAFF", "ours", (8.0,), (8.0,))))
    small = replace(small, protocols=("cross",))
    views = replace(small, rows=(tables.Row("hybrid", "hybrid", (9.0,), (9.0,)),))
    monkeypatch.setattr(tables, "TABLES", {"3": small, "4": views})
    monkeypatch.setattr(tables, "ProcessPoolExecutor", _InThisProcess)
    config = tmp_path / "toy.yaml"
    toy = {
        "model": NETWORK,
        "data": {"satellite_size": 64, "in_memory": True, "street": "azimuth"},
        "step": {"bf16": False},
        "train": {"steps": 2, "batch": 8, "device": "cpu", "evaluate_every": 0},
    }
    config.write_text(json.dumps(toy))
    out, page = tmp_path / "runs", tmp_path / "page.md"

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tables.py", *arguments, "--out", str(out)])
        return tables.main()

    assert run("page", "--page", str(page)) == 0
    assert "No run has been made yet" in page.read_text()
    command = ("run", "3", "--manifest", str(region), "--config", str(config))
    assert run(*command) == 0
    made = table_lines.read(out / "tables.jsonl")
    assert sorted(made) == ["aff.cross.0", "ours.cross.0"]
    one = made["aff.cross.0"]
    assert one["pairs"] == 20 and str(tmp_path) not in json.dumps(one)
    (out / "tables.jsonl").write_text(json.dumps(made["ours.cross.0"]) + "\n")  # interrupted before its evaluation
    capsys.readouterr()
    assert run(*command) == 0
    assert capsys.readouterr().out.splitlines() == ["aff.cross.0: done"]
    again = table_lines.read(out / "tables.jsonl")["aff.cross.0"]
    assert again["figures"] == one["figures"] and again["settings"] == one["settings"]
    assert run(*command, "--protocol", "same") == 0 and capsys.readouterr().out == ""
    assert run("run", "3", "train.lr=0.002", *command[2:]) == 0  # every run's settings have changed
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1][:9] for line in said] == ["was made "] * 2 + ["done"] * 2
    other = table_lines.read(out / "tables.jsonl")["aff.cross.0"]
    assert other["settings"] != one["settings"] and other["figures"] != one["figures"]
    assert run(*command) == 0  # and back
    capsys.readouterr()
    gaps = tmp_path / "gaps"
    shutil.copytree(region, gaps)
    rows = [{**row, "street": None} if n % 2 else row for n, row in enumerate(Manifest.load(gaps).places.to_pylist())]
    Manifest.from_rows(gaps, rows, Manifest.load(gaps).photos.to_pylist()).save()
    assert run("run", "4", "--manifest", str(gaps), "--config", str(config)) == 0
    assert run("page", "--page", str(page)) == 0
    text = page.read_text()
    assert "| R@1 % | photos covered, % | R@1 where a real view | R@1 where no real view |" in text
    assert re.search(r"\| hybrid \| 1 \| .* \| 100\.0 \| \d+\.\d \|", text)
    recall = 100 * one["figures"]["recall_at_1"][0]
    assert f"| aff | 1 | {recall:.1f} [" in text and " / 9.0 |" in text
    assert "The paper's order at R@1, cross area" in text and "Not run yet" not in text
    tables.time_queries([tables.Run("aff", "cross", 0)], out, rounds=1)
    timed = table_lines.read(out / "tables.jsonl")["aff.cross.0"]
    assert timed.pop("query_ms") > 0 and timed.keys() == one.keys()


class _InThisProcess:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def submit(self, what: Any, *arguments: Any) -> Any:
        done: Any = Future()
        done.set_result(what(*arguments))
        return done


def test_street_views_of_table_4(region: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(region)
    places, photos = manifest.places.to_pylist(), manifest.photos.to_pylist()
    taken = {photo["place"]: photo["date"] for photo in photos}
    for row in places:
        row |= {"street_date": taken[row["id"]], "street_lat": None, "street_lon": None}
    # No view, one too old, one too far away, and one that a generator made in the place of a real one.
    places[0]["street"] = places[0]["street_date"] = None
    places[1]["street_date"] -= datetime.timedelta(days=800)
    places[2] |= {"street_lat": places[2]["lat"] + 0.001, "street_lon": places[2]["lon"]}
    real = places[3]["street"]
    places[3] |= {"street_superseded": json.dumps({"street": real, "street_date": "2001-02-03"})}
    places[3] |= {"street": "made.jpg", "street_synthetic": "f00d"}
    manifest = Manifest.from_rows(region, places, photos)

    def street(how: str) -> list[str | None]:
        return chosen_views(manifest, how).places["street"].to_pylist()

    rest = [row["street"] for row in places[4:]]
    assert street("given") == [row["street"] for row in places]
    assert street("synthetic") == [None] * 3 + ["made.jpg", *rest]
    assert street("real") == [None, places[1]["street"], places[2]["street"], real, *rest]
    assert street("hybrid") == [None] * 4 + rest
    assert street("strict") == rest
    nearest = street("nearest")
    assert nearest[4:] == rest and nearest[0] is not None and nearest[1] == places[1]["street"] and nearest[3] == real
    at = chosen_views(manifest, "nearest").places.to_pylist()[0]
    source = next(row for row in places if row["street"] == at["street"])
    away = [great_circle_m(places[0]["lat"], places[0]["lon"], row["lat"], row["lon"]) for row in places[1:]]
    assert places[1 + int(np.argmin(away))] is source and at["street_column0_deg"] == source["street_column0_deg"]
    strict = chosen_views(manifest, "strict")
    assert set(strict.photos["place"].to_pylist()) == {row["id"] for row in places[4:]}
    assert set(strict.photos["street_view"].to_pylist()) == {"available"}
    lacking = {p["place"] for p in chosen_views(manifest, "hybrid").photos.to_pylist() if p["street_view"] == "none"}
    assert lacking == {row["id"] for row in places[:4]}
    with pytest.raises(ValueError, match=r"data\.views: expected synthetic street views"):
        chosen_views(Manifest.load(region), "synthetic")
    settings = configured(region, tmp_path / "run", "data.views=hybrid", "train.steps=1")
    found = geoloc.evaluate(
        geoloc.Trainer(settings).model, chosen_views(manifest, "hybrid"), settings.data, torch.device("cpu")
    )
    assert set(found["assumed"]["by"]["street_view"]) == {"available", "none"}


def test_every_run_of_the_tables_has_settings_and_a_model() -> None:
    runs = {run for table in tables.TABLES.values() for run in table.runs()}
    assert {run.variant for run in runs} == set(tables.VARIANTS)
    full_size = tables.settings_of(
        tables.Run("resnet", "same", 0), TRAIN / "configs/tables_base.yaml", Path("m"), Path("o"), ()
    )
    assert full_size.train.steps == 10_000 and full_size.model["backbone"] == "resnet50"
    for run in sorted(runs):
        made = tables.settings_of(run, tables.CONFIG, Path("m"), Path("o"), ())
        assert made.step.seed == run.seed
        if run.seed == 0 and run.protocol == "same":
            with torch.device("meta"):
                Geolocalizer(GeolocalizerConfig(**made.model))
