"""From a few training steps to a manifest with a street view at every place: train/panogan.py and `synthesize`."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.cli import main as command_line
from geoloc_fast.data.availability import real_street_views
from geoloc_fast.data.datasets import PlaceDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.street_views import StreetViewDataset, learnable
from geoloc_fast.errors import ManifestError
from geoloc_fast.evaluation.report.pictures import ManifestPictures
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.images.satellite import satellite_square
from geoloc_fast.index import PlaceIndex
from geoloc_fast.models import Geolocalizer, PanoGAN, PanoGANConfig
from geoloc_fast.region import synthesize
from geoloc_fast.region.encode import add_places
from geoloc_fast.region.prepare import Settings as PrepareSettings
from geoloc_fast.region.prepare import prepare
from geoloc_fast.region.show import contact_sheet

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train"
NETWORK: dict[str, Any] = {
    "image_size": [32, 128],
    "condition": "polar",
    "channels": 4,
    "blocks": [1, 1],
    "discriminator_channels": 4,
    "features": 4,
}
OLD, NEW = datetime.date(2015, 1, 1), datetime.date(2024, 1, 1)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A city of 6 places, all with street views."""
    out = tmp_path_factory.mktemp("region")
    sizes = Sizes(satellite_px=64, panorama=(32, 128), photo=(48, 64))
    write_city(out, seed=5, cities=1, places=6, sizes=sizes, fov_range=(80.0, 100.0), capture=TIDY)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PanoGAN:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "panogan.safetensors"
    PanoGAN(PanoGANConfig(**NETWORK)).save(path)
    return PanoGAN.load(path)


@pytest.fixture
def gaps(region: Path, tmp_path: Path) -> Path:
    """The same city with trouble: place 0 has no street view, that of 1 is of 2015, that of 2 stands 60 m off."""
    root = tmp_path / "gaps"
    shutil.copytree(region, root)
    manifest = Manifest.load(root)
    rows = manifest.places.to_pylist()
    for row in rows:
        row["street_date"] = row["satellite_date"] = NEW
        row["street_lat"] = row["street_lon"] = None
    rows[0] |= dict.fromkeys(("street", "street_date", "street_column0_deg"))
    rows[1]["street_date"] = OLD
    rows[2] |= {"street_lat": rows[2]["lat"] + 60 / 111_195, "street_lon": rows[2]["lon"]}
    Manifest.from_rows(root, rows, manifest.photos.to_pylist()).save()
    return root


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- what is learned from ----------------------------------------------------------------------


def test_class_maps_lie_on_their_panoramas(region: Path, tmp_path: Path) -> None:
    """Turned and mirrored alike: a panorama whose pixels say their class, and its map."""
    shutil.copytree(region, tmp_path / "r")
    manifest = Manifest.load(tmp_path / "r")
    rows = manifest.places.to_pylist()
    for n, row in enumerate(rows):
        classes = cv2.imread(str(tmp_path / "r" / row["classes"]), cv2.IMREAD_GRAYSCALE)
        row["street"], row["street_column0_deg"] = f"{n}.png", 33.75 * n
        cv2.imwrite(str(tmp_path / "r" / f"{n}.png"), np.repeat(20 * classes[..., None], 3, 2))
    manifest = Manifest.from_rows(tmp_path / "r", rows, [])
    augment = Augmentation(mirror=0.5, brightness=0, contrast=0, saturation=0, tint=0, grey=0, blur=0, noise=0)
    given: dict[str, Any] = {"image_size": (32, 128), "satellite_size": 32, "extent_m": 50.0, "column0_deg": 180.0}
    for quarter_turns in (False, True):
        views = StreetViewDataset(manifest, classes=9, quarter_turns=quarter_turns, augment=augment, **given)
        samples = [views[n] for n in range(6)]
        assert len({(sample["turn_deg"], sample["mirrored"]) for sample in samples}) > 2
        assert all(sample["turn_deg"] % 90 == 0 for sample in samples) == quarter_turns
        for sample in samples:
            assert torch.equal(20 * sample["classes"].expand(3, -1, -1), sample["panorama"])
            assert sample["satellite"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"holds class \d; there are 3"):
        [StreetViewDataset(manifest, classes=3, **given)[n] for n in range(6)]


def test_only_real_near_and_recent_views_teach(gaps: Path, model: PanoGAN) -> None:
    manifest = Manifest.load(gaps)
    assert learnable(manifest)["id"].to_pylist() == manifest.places["id"].to_pylist()[3:]
    synthesize.synthesize(gaps, model, workers=1)
    assert len(learnable(Manifest.load(gaps))) == 3


def test_only_sure_headings_teach(gaps: Path, panogan: Any) -> None:
    rows = Manifest.load(gaps).places.to_pylist()
    for row, status in zip(rows[3:], ("measured", "low quality", "none"), strict=True):
        row |= {"street_column0_deg": None, "calibration_status": status}
        row["calibration_column0_deg"] = None if status == "none" else 10.0
    manifest = Manifest.from_rows(gaps, rows, [])
    assert learnable(manifest)["id"].to_pylist() == [rows[3]["id"]]
    # A column of true headings comes before what was measured.
    data = panogan.DataSettings(manifest=str(gaps), column0="true_column0_deg")
    found = panogan.chosen(manifest, {}, data).places
    assert found["id"].to_pylist() == [row["id"] for row in rows[3:]]
    assert found["calibration_column0_deg"].null_count == 3
    assert found["street_column0_deg"].to_pylist() == [row["true_column0_deg"] for row in rows[3:]]


def test_superseded_views_teach(gaps: Path, model: PanoGAN, panogan: Any) -> None:
    manifest = Manifest.load(gaps)
    rows = manifest.places.to_pylist()
    for row in rows[1:]:
        row |= {"street_date": datetime.date(2024, 1, 1), "satellite_date": datetime.date(2024, 6, 1)}
    Manifest.from_rows(gaps, rows, manifest.photos.to_pylist()).save()
    data = panogan.DataSettings(manifest=str(gaps))
    before = panogan.chosen(Manifest.load(gaps), {}, data).places
    assert before["id"].to_pylist() == [rows[n]["id"] for n in (1, 3, 4, 5)]
    assert synthesize.synthesize(gaps, model, date=datetime.date(2026, 1, 1), workers=1).superseded == 5
    manifest = Manifest.load(gaps)
    assert panogan.chosen(manifest, {}, data).places.equals(before)
    rows = manifest.places.to_pylist()
    rows[0]["satellite"] = None  # a synthetic view is all that is left
    assert panogan.chosen(Manifest.from_rows(gaps, rows, []), {}, data).places.equals(before)


def test_satellite_images_that_are_too_small() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    assert satellite_square(image, "a", 0.5, extent_m=50, size=64).shape == (64, 64, 3)
    assert satellite_square(image, "a", None, extent_m=50, size=200).shape == (200, 200, 3)
    with pytest.raises(ValueError, match="a: shows 40 m across; 50 m are needed"):
        satellite_square(image, "a", 0.4, extent_m=50, size=64)
    with pytest.raises(ValueError, match="a: has 100 pixels across 50 m; 128 are needed"):
        satellite_square(image, "a", 0.5, extent_m=50, size=256)


# -- training ----------------------------------------------------------------------------------


@pytest.fixture
def panogan() -> Any:
    pytest.importorskip("omegaconf", reason="the training scripts need omegaconf: pip install '.[train]'")
    if not TRAIN.is_dir():
        pytest.skip("not in a checkout: there are no scripts to train with")
    from geoloc_fast.training.recipes import panogan

    return panogan


def given(region: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.manifest={region}",
        f"out={out}",
        f"model={json.dumps(NETWORK)}",
        "data.train={city: 00-harbour}",
        "data.evaluate={split: val}",
        "data.column0=true_column0_deg",
        "data.max_distance_m=20",
        "data.augment={mirror: 0.5}",
        "step.bf16=false",
        "train.device=cpu",
        "train.batch=2",
        "train.log_every=1",
        "train.evaluate_every=0",
        *more,
    ]


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_step_is_the_sum_of_its_losses(panogan: Any, model: PanoGAN) -> None:
    """Gradients of generator and discriminators, against losses that are written down again and differentiated as a
    whole."""
    torch.manual_seed(1)
    network = PanoGAN(model.config)
    real, seen = 2 * torch.rand(2, 3, 32, 128) - 1, 2 * torch.rand(2, 3, 32, 128) - 1
    classes = panogan.signed_classes(torch.randint(0, 9, (2, 1, 32, 128)), 9)
    assert classes.shape == (2, 9, 32, 128) and bool((classes.sum(1) == -7).all())
    how = panogan.StepSettings(bf16=False, l1=10.0, adversarial=0.5)
    numbers = panogan.gradients(network, {"condition": seen, "panorama": real, "classes": classes}, how)
    grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    assert len(grads) == len(list(network.parameters()))

    def entropy(scores: list[list[torch.Tensor]], target: float) -> torch.Tensor:
        total = torch.zeros(())
        for own in scores:
            for level in own:
                p = level.sigmoid()
                total = total - (target * p.log() + (1 - target) * (1 - p).log()).mean() / len(own)
        return total

    made = network.passes(seen, discriminator_last=True)
    maker = sum(
        0.5 * entropy(network.scores(one.features), 1.0)
        + 10 * (one.image - real).abs().mean()
        + 10 * (one.classes - classes).abs().mean()
        for one in made
    ) / len(made)
    discriminator = entropy(network.scores(network.discriminator(real, classes, seen)), 0.9)
    for one in made:
        shown = network.discriminator(one.image.detach(), one.classes.detach(), seen)
        discriminator = discriminator + entropy(network.scores(shown), 0.0) / len(made)
    discriminators = {p for part in network.discriminators for p in part.parameters()}
    assert numbers["loss"] == pytest.approx(float(maker.detach()), rel=1e-4)
    assert numbers["discriminators"] == pytest.approx(float(discriminator.detach()) / 2, rel=1e-4)
    mine = torch.autograd.grad(maker, list(network.generator.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(discriminator / 2, [p for p in network.parameters() if p in discriminators])
    expected = torch.cat([g.flatten() for g in (*mine, *theirs)])
    found = torch.cat([g.flatten() for g in grads])
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def test_a_tiny_run_learns_and_an_interruption_leaves_no_trace(
    panogan: Any, region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("train.steps=9", "train.evaluate_every=4", "train.lr=5e-3")  # three epochs
    from geoloc_fast.training.trainer import Trainer

    Trainer(panogan.make_recipe(given(region, tmp_path / "whole", *more))).run()
    recipe = panogan.make_recipe(given(region, tmp_path / "parts", *more))
    before = recipe.gradients

    def interrupted(batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return before(batch, step=step, epoch=epoch)  # type: ignore[no-any-return]

    monkeypatch.setattr(recipe, "gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe).run()
    Trainer(panogan.make_recipe(given(region, tmp_path / "parts", *more)), resume=True).run()
    log = log_of(tmp_path / "whole")
    assert log == log_of(tmp_path / "parts")
    assert tree(tmp_path / "whole/samples") == tree(tmp_path / "parts/samples")
    assert sorted(path.name for path in (tmp_path / "whole/samples").iterdir()) == [
        f"step-{n:06d}.png" for n in (4, 8, 9)
    ]
    one, two = (PanoGAN.load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.fingerprint == two.fingerprint
    losses = [line["image"] for line in log if "image" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    *_, last = [line["evaluation"] for line in log if "evaluation" in line]
    assert set(last) == {"psnr", "ssim", "sharpness_difference", "classes_right"}
    assert PanoGAN.load(tmp_path / "whole/best.safetensors").config == one.config
    alone = panogan.evaluate_model(given(region, tmp_path / "alone", *more), tmp_path / "whole/model.safetensors")
    assert alone.numbers == pytest.approx(last) and not (tmp_path / "alone").exists()


def test_without_class_maps_it_trains_and_says_so(
    panogan: Any, region: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from geoloc_fast.training.trainer import Trainer

    root = tmp_path / "r"
    shutil.copytree(region, root)
    manifest = Manifest.load(root)
    rows = manifest.places.to_pylist()
    rows[0]["classes"] = None
    Manifest.from_rows(root, rows, manifest.photos.to_pylist()).save()
    recipe = panogan.make_recipe(given(root, tmp_path / "some", "train.steps=1"))
    assert recipe.model.config.classes == 9 and len(recipe.views) == 5
    assert "1 of 6 places have no class map and are left out" in capsys.readouterr().err
    half = [{**row, "classes": row["classes"] if n % 2 else None} for n, row in enumerate(rows)]
    of = {row["id"]: ("train" if row["classes"] else "val") for row in half}
    photos = [{**photo, "split": of[photo["place"]]} for photo in manifest.photos.to_pylist()]
    Manifest.from_rows(root, half, photos).save()
    split = ("data.train={split: train}", "data.evaluate={split: val}", "train.evaluate_every=1")
    with pytest.raises(ValueError, match=r"data\.evaluate: expected places with class maps"):
        panogan.make_recipe(given(root, tmp_path / "half", *split))
    manifest.replace(places=manifest.places.drop_columns(["classes"])).save(root)
    best = ("train.best=classes_right", "train.evaluate_every=1")
    with pytest.raises(
        ValueError, match=r"train\.best: expected psnr, ssim, .* without class maps, got 'classes_right'"
    ):
        panogan.make_recipe(given(root, tmp_path / "none", *best))
    recipe = panogan.make_recipe(given(root, tmp_path / "none", "train.steps=1"))
    assert "no place has a class map; training without" in capsys.readouterr().err
    Trainer(recipe).run()
    assert PanoGAN.load(tmp_path / "none/model.safetensors").config.classes == 0
    for wrong, message in (
        ("data.train={city: nowhere}", "got none of 6"),
        ("data.column0=north", "data.column0: expected a column"),
        ("model={channels: 0}", "channels: expected an integer"),
        ("model={width: 3}", "model: expected settings of PanoGANConfig"),
    ):
        with pytest.raises(ValueError, match=message):
            panogan.make_recipe(given(root, tmp_path / "wrong", wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("train.best=recall_at_1", r"train\.best: expected psnr, ssim, .*, classes_right, got 'recall_at_1'"),
        ("train.hard=1", "Key 'hard' not in"),
        ("step.l1=-1", r"step\.l1: expected at least 0, got -1\.0"),
        ("step.adversarial=nan", r"step\.adversarial: expected at least 0, got nan"),
        ("step.real=0", r"step\.real: expected above 0, at most 1, got 0\.0"),
        ("step.real=1.1", r"step\.real: expected above 0, at most 1, got 1\.1"),
    ],
)
def test_settings_that_are_refused(panogan: Any, wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panogan.read_settings(["out=x", "data.manifest=y", wrong])


@pytest.mark.parametrize(
    ("files", "size", "passes", "classes", "discriminators"),
    [
        (["panogan_small"], (128, 512), 2, 9, "pyramid"),
        (["panogan_small", "pix2pix_small"], (128, 512), 1, 0, "patch"),
        (["panogan"], (256, 1024), 2, 9, "pyramid"),
    ],
)
def test_the_configurations_that_ship(
    panogan: Any, files: list[str], size: tuple[int, int], passes: int, classes: int, discriminators: str
) -> None:
    paths = [str(TRAIN / f"configs/{name}.yaml") for name in files]
    settings = panogan.read_settings([*paths, "out=x", "data.manifest=y"])
    config = PanoGANConfig(**settings.model)
    assert (config.image_size, config.passes, config.classes, config.discriminators) == (
        size,
        passes,
        classes,
        discriminators,
    )
    Augmentation(**settings.data.augment)
    with torch.device("meta"):
        assert len(PanoGAN(config).discriminators) == (2 if classes else 1)


@pytest.mark.slow
def test_the_papers_size_takes_a_step_on_a_cpu(panogan: Any) -> None:
    """256 x 1024, one panorama: the memory of an ordinary machine is enough."""
    settings = panogan.read_settings([str(TRAIN / "configs/panogan.yaml"), "out=x", "data.manifest=y"])
    network = PanoGAN(PanoGANConfig(**settings.model))
    assert network.config.image_size == (256, 1024) and network.config.passes == 2
    batch = {name: 2 * torch.rand(1, 3, 256, 1024) - 1 for name in ("condition", "panorama")}
    batch["classes"] = panogan.signed_classes(torch.zeros(1, 1, 256, 1024, dtype=torch.uint8), network.config.classes)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.train.lr)
    begin = time.perf_counter()
    numbers = panogan.gradients(network, batch, settings.step)
    optimiser.step()
    seconds = time.perf_counter() - begin
    print(f"{seconds:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    assert np.isfinite(numbers["loss"])
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB


def test_table_b1(
    panogan: Any, region: Path, model: PanoGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import paper_tables as tables
    import street_view_table
    import table_lines

    monkeypatch.setattr(street_view_table, "_BATCH", 4)
    bundle, out = tmp_path / "model.safetensors", tmp_path / "tables.jsonl"
    PanoGAN(model.config).save(bundle)

    def run(*arguments: str) -> int:
        common = ("--column0", "true_column0_deg", "--where", "city=00-harbour")
        monkeypatch.setattr(sys, "argv", ["street_view_table.py", str(region), *arguments, *common])
        return int(street_view_table.main())

    assert run(f"panogan={bundle}", "--out", str(out)) == 0
    said = capsys.readouterr().out
    (found,) = table_lines.read(out).values()
    assert list(found["rows"]) == ["polar satellite image", "panogan"]
    assert list(found["rows"]["panogan"]) == ["SSIM", "PSNR", "SD"]
    line = "| panogan | " + " | ".join(found["rows"]["panogan"].values()) + " |"
    assert line in said and f"{found['places']} places" in said
    assert line in tables.page_of(tmp_path)
    assert "None has been made yet" in tables.page_of(tmp_path / "nowhere")
    assert run("panogan=nowhere") == 1 and "nowhere" in capsys.readouterr().err
    assert run("panogan") == 1 and "models: expected name=bundle, got 'panogan'" in capsys.readouterr().err
    assert run(f"panogan={bundle}", "--where", "area") == 1
    assert "--where: expected column=value, got 'area'" in capsys.readouterr().err


def test_table_b1_with_a_locator(
    panogan: Any, region: Path, model: PanoGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import street_view_table
    import table_lines

    bundle, out = tmp_path / "model.safetensors", tmp_path / "tables.jsonl"
    PanoGAN(model.config).save(bundle)

    def run(locator: Path) -> int:
        given = ("--column0", "true_column0_deg", "--locator", str(locator), "--out", str(out))
        given += ("--sheet", str(tmp_path / "sheet.png"))
        monkeypatch.setattr(sys, "argv", ["street_view_table.py", str(region), f"panogan={bundle}", *given])
        return int(street_view_table.main())

    locator = tmp_path / "locator.safetensors"
    Geolocalizer().save(locator)
    assert run(locator) == 0
    (found,) = table_lines.read(out).values()
    rows = {name: [row["R@1"], row["R@1 with satellite"]] for name, row in found["rows"].items()}
    assert list(rows) == ["polar satellite image", "panogan", "real street view", "no street view"]
    alone = {name: values[0] for name, values in rows.items()}
    assert alone["no street view"] == "-"
    sheet = cv2.imread(str(tmp_path / "sheet.png"))  # of one city: polar, made, real
    assert sheet.shape == (24 + 32, 3 * 128 + 2 * 6, 3)
    # A cut of a street view finds it; what an untrained generator made is as good as nothing.
    real, made = (float(alone[name].removesuffix(" %")) for name in ("real street view", "panogan"))
    assert real > 80 > 60 > made
    assert rows["real street view"][1] != rows["no street view"][1]
    assert run(bundle) == 1 and "street_view_table:" in capsys.readouterr().err
    assert found["rows"]["real street view"]["PSNR"] == "-"


def test_table_b1_with_a_classifier(
    panogan: Any, region: Path, model: PanoGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import street_view_table
    import table_lines

    bundle, weights, out = tmp_path / "model.safetensors", tmp_path / "classes.safetensors", tmp_path / "tables.jsonl"
    PanoGAN(model.config).save(bundle)
    torch.manual_seed(2)
    network = timm.create_model("test_vit", num_classes=6).eval()
    safetensors.torch.save_file(network.state_dict(), weights)
    images = torch.randint(0, 256, (2, 3, 32, 128), dtype=torch.uint8)
    scaled = F.interpolate(images.float(), (160, 160), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network(scaled / 127.5 - 1).softmax(1)  # its own mean and deviation are a half
    assert torch.allclose(street_view_table.classifier(weights, "test_vit")(images), expected, atol=1e-6)

    def run(path: Path, name: str) -> int:
        given = ("--classifier", str(path), "--classifier-name", name, "--out", str(out))
        monkeypatch.setattr(sys, "argv", ["street_view_table.py", str(region), f"panogan={bundle}", *given])
        return int(street_view_table.main())

    assert run(weights, "test_vit") == 0
    said, (found,) = capsys.readouterr().out, table_lines.read(out).values()
    rows = found["rows"]
    scores = ["IS all", "IS 1", "IS 5"]
    assert list(rows) == ["polar satellite image", "panogan", "real street view"]
    assert list(rows["panogan"]) == ["SSIM", "PSNR", "SD", *scores, "accuracy 1", "accuracy 5", "KL"]
    for name, row in rows.items():
        assert list(row) == list(rows["panogan"])
        assert f"| {name} | " + " | ".join(row.values()) + " |" in said
    for name, value in rows["real street view"].items():
        assert float(value) >= 1 if name in scores else value == "-"

    out.unlink()
    few = tmp_path / "few.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=4).state_dict(), few)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({**network.state_dict(), "more": torch.zeros(1)}, other)
    for path, name, message in (
        (weights, "resnet", "--classifier-name: expected the name of a timm model, got 'resnet'"),
        (weights, "resnet50.mine", "--classifier-name: expected the name of a timm model, got 'resnet50.mine'"),
        (weights, "test_efficientnet", "expected the weights of a test_efficientnet with classifier.weight"),
        (few, "test_vit", "expected a classifier of at least 5 classes, got 4"),
        (other, "test_vit", "expected the weights of a test_vit, got Unexpected key"),
        (region / "places.parquet", "test_vit", "expected a safetensors file"),
        (tmp_path / "nowhere", "test_vit", "nowhere"),
    ):
        assert run(path, name) == 1 and message in capsys.readouterr().err
    assert not out.exists()


# -- use ---------------------------------------------------------------------------------------


def test_training_and_synthesis_end_to_end(
    panogan: Any, gaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands: a city learns from the street views it has, and gets those it has not."""
    from geoloc_fast.training.command import main

    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["panogan.py", *given(gaps, out, "train.steps=2", "data.max_distance_m=3")])
    assert main("-", panogan.make_recipe, panogan.evaluate_model) == 0
    before, files = Manifest.load(gaps), tree(gaps)
    bundle = out / "model.safetensors"

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoloc-fast", "synthesize", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command_line()
        return int(caught.value.code or 0), *capsys.readouterr()

    code, text, _ = run(gaps, "--model", bundle, "--date", NEW)
    assert code == 0
    assert text.splitlines() == [
        "3 street views made, 0 were there already; 3 are real",
        "2 of them stand in for a real one that does not count",
    ]
    after = Manifest.load(gaps)
    assert after.validate(images=True) == []
    fingerprint = PanoGAN.load(bundle).fingerprint
    assert after.places["street_synthetic"].to_pylist() == [fingerprint] * 3 + [None] * 3
    assert after.places.slice(3).equals(before.places.slice(3))
    assert after.places["street"].null_count == 0
    now = tree(gaps)
    assert {name: now[name] for name in files if name != "places.parquet"} == {
        name: digest for name, digest in files.items() if name != "places.parquet"
    }
    made = sorted(set(now) - set(files))
    assert len(made) == 3 and all(name.startswith(f"synthetic/{str(fingerprint)[:12]}/") for name in made)
    for name in made:
        image = Image.open(gaps / name)
        assert image.size == (128, 32) and str(fingerprint).encode() in image.info["comment"]
    assert real_street_views(after.places).equals(before.places)
    code, text, _ = run(gaps, "--model", bundle, "--date", NEW, "--json")
    assert code == 0 and json.loads(text)["there_already"] == 3 and json.loads(text)["made"] == 0
    assert tree(gaps) == now
    # A date the old view counts for brings it back; the synthetic ones for the others stay.
    run(gaps, "--model", bundle, "--date", "2015-06-01")
    assert Manifest.load(gaps).places["street_date"].to_pylist()[1] == OLD


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    gaps: Path, model: PanoGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Manifest.load(gaps).places.to_pylist()
    for row in rows:
        row |= dict.fromkeys(("street", "street_date", "street_lat", "street_lon", "street_column0_deg"))
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    for name in ("cut", "two"):
        shutil.copytree(gaps, tmp_path / name)
    synthesize.synthesize(gaps, model, workers=1)
    whole = tree(gaps)
    assert len(set(whole) - set(tree(tmp_path / "two"))) == 6
    assert synthesize.synthesize(tmp_path / "two", model, workers=2).made == 6
    assert tree(tmp_path / "two") == whole

    def stop(done: int, total: int) -> None:
        assert total == 6
        if done == 2:
            raise KeyboardInterrupt

    before = (tmp_path / "cut/places.parquet").read_bytes()
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize(tmp_path / "cut", model, workers=1, progress=stop)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert (tmp_path / "cut/places.parquet").read_bytes() == before
    finished = sorted((tmp_path / "cut/synthetic").rglob("*.jpg"))
    assert 2 <= len(finished) < 6
    finished[0].write_bytes(finished[0].read_bytes()[:300])  # half-written by something else
    again = synthesize.synthesize(tmp_path / "cut", model, workers=2)
    assert again.there_already == len(finished) - 1 and again.made == 7 - len(finished)
    assert tree(tmp_path / "cut") == whole


def test_what_cannot_be_made_stays_as_it_was(gaps: Path, model: PanoGAN) -> None:
    manifest = Manifest.load(gaps)
    rows = manifest.places.to_pylist()
    rows[0]["metres_per_pixel"] = 0.1  # of 64 pixels
    rows[1]["satellite_date"] = OLD  # no nearer to the date than the street view
    rows[3] |= {"satellite": None, "street_date": OLD}
    rows[4] |= {"street_date": OLD, "metres_per_pixel": 0.1}
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    found = synthesize.synthesize(gaps, model, date=NEW, workers=1)
    assert (found.made, found.real, found.without_satellite, found.older_satellite) == (1, 2, 1, 1)
    names = [row["id"] for row in rows]
    assert len(found.problems) == 2 and all("shows 6.4 m across; 50 m are needed" in text for text in found.problems)
    assert [text.split(":")[0] for text in found.problems] == [f"place {names[0]}", f"place {names[4]}"]
    after = Manifest.load(gaps).places.to_pylist()
    assert [after[n]["street"] for n in (0, 1, 3, 4, 5)] == [rows[n]["street"] for n in (0, 1, 3, 4, 5)]
    assert "2 places are left as they were" in found.summary()


def test_a_view_that_cannot_be_made_again_stays(gaps: Path, model: PanoGAN, tmp_path: Path) -> None:
    """Another model needs more ground than the satellite images show; one of them is gone, with one there was."""
    synthesize.synthesize(gaps, model, date=NEW, workers=1)
    rows = Manifest.load(gaps).places.to_pylist()
    rows[2]["satellite"] = None
    rows[0]["metres_per_pixel"] = rows[1]["metres_per_pixel"] = 0.8
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    before = Manifest.load(gaps).places
    torch.manual_seed(1)
    PanoGAN(PanoGANConfig(**{**NETWORK, "extent_m": 80.0})).save(tmp_path / "wide.safetensors")
    found = synthesize.synthesize(gaps, PanoGAN.load(tmp_path / "wide.safetensors"), date=NEW, workers=1)
    assert (found.made, found.there_already, found.without_satellite, found.superseded) == (0, 0, 1, 0)
    assert len(found.problems) == 2
    assert Manifest.load(gaps).places.equals(before)
    assert before["street_synthetic"].to_pylist()[:3] == [model.fingerprint] * 3
    # A real street view that counts for another date takes its place back all the same.
    synthesize.synthesize(gaps, PanoGAN.load(tmp_path / "wide.safetensors"), date=OLD, workers=1)
    assert Manifest.load(gaps).places["street_synthetic"].is_valid().to_pylist()[:3] == [True, False, True]


def test_a_satellite_image_of_unknown_date_brings_nothing_up_to_date(gaps: Path, model: PanoGAN) -> None:
    rows = Manifest.load(gaps).places.to_pylist()
    rows[1]["satellite_date"] = None
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    found = synthesize.synthesize(gaps, model, date=NEW, workers=1)
    assert (found.made, found.real, found.older_satellite) == (2, 4, 1)
    assert Manifest.load(gaps).place(1)["street"] == rows[1]["street"]
    rows[1]["satellite"] = None
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    found = synthesize.synthesize(gaps, model, date=NEW, workers=1)
    assert (found.real, found.older_satellite, found.without_satellite) == (3, 0, 1)


@pytest.mark.parametrize("below", [".", "model"])
def test_images_are_written_through_no_link(gaps: Path, model: PanoGAN, tmp_path: Path, below: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = gaps / synthesize.FOLDER / (str(model.fingerprint)[:12] if below == "model" else ".")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    before = tree(gaps)
    with pytest.raises(ValueError, match="expected a folder, got a symbolic link"):
        synthesize.synthesize(gaps, model, workers=1)
    assert tree(gaps) == before and not list((tmp_path / "elsewhere").iterdir())


def test_a_link_among_what_was_made_is_left_alone(gaps: Path, model: PanoGAN, tmp_path: Path) -> None:
    shutil.copytree(gaps, tmp_path / "copy")
    synthesize.synthesize(tmp_path / "copy", model, workers=1)
    folder = (gaps / Manifest.load(tmp_path / "copy").place(0)["street"]).parent
    (tmp_path / "elsewhere").mkdir()
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tmp_path / "elsewhere")
    found = synthesize.synthesize(gaps, model, workers=1)
    assert "would be written through a symbolic link" in found.problems[0]
    assert not list((tmp_path / "elsewhere").iterdir()) and Manifest.load(gaps).place(0)["street"] is None


@pytest.mark.parametrize("spelled", ["{}", "./{}"])
@pytest.mark.parametrize("column", ["street", "street_views"])
def test_a_real_view_is_never_overwritten(
    gaps: Path, model: PanoGAN, tmp_path: Path, column: str, spelled: str
) -> None:
    """Place 3's real street view lies where place 0's synthetic one would be written."""
    shutil.copytree(gaps, tmp_path / "copy")
    synthesize.synthesize(tmp_path / "copy", model, workers=1)
    path = Manifest.load(tmp_path / "copy").places["street"].to_pylist()[0]
    rows = Manifest.load(gaps).places.to_pylist()
    own = rows[3]["street"]
    (gaps / path).parent.mkdir(parents=True)
    shutil.copy(gaps / own, gaps / path)
    there = spelled.format(path)
    rows[3] |= {"street": None, column: there if column == "street" else [own, own, own, there]}
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    before = Manifest.load(gaps).places
    found = synthesize.synthesize(gaps, model, workers=1)
    assert found.problems == [
        f"place {rows[0]['id']}: {path}: would be overwritten, and is in use as a real street view"
    ]
    after = Manifest.load(gaps).places
    assert after.slice(0, 1).equals(before.slice(0, 1)) and after.slice(3, 1).equals(before.slice(3, 1))
    assert (gaps / path).read_bytes() == (gaps / own).read_bytes()


def test_four_views_are_superseded_and_come_back(gaps: Path, model: PanoGAN) -> None:
    rows = Manifest.load(gaps).places.to_pylist()
    views = [f"north {degrees}.jpg" for degrees in (0, 90, 180, 270)]
    for view in views:
        cv2.imwrite(str(gaps / view), np.zeros((64, 64, 3), np.uint8))
    rows[1] |= {"street": None, "street_views": views, "street_column0_deg": None}
    Manifest.from_rows(gaps, rows, []).save(tables=("places",))
    before = Manifest.load(gaps).places
    assert synthesize.synthesize(gaps, model, date=NEW, workers=1).superseded == 2
    after = Manifest.load(gaps)
    place = after.place(1)
    assert place["street"].startswith("synthetic/") and place["street_views"] is None
    assert json.loads(place["street_superseded"])["street_views"] == views
    assert after.validate(images=True) == []
    assert real_street_views(after.places).equals(before)


def test_prepare_leaves_what_is_superseded_behind(gaps: Path, model: PanoGAN, tmp_path: Path) -> None:
    synthesize.synthesize(gaps, model, date=NEW, workers=1)
    manifest = Manifest.load(gaps)
    assert manifest.places["street_superseded"].is_valid().to_pylist() == [False, True, True, False, False, False]
    (gaps / manifest.place(0)["street"]).write_bytes(b"no image")
    settings = PrepareSettings(size=(32, 128), satellite_px=64)
    prepare(manifest, tmp_path / "ready", settings=settings, workers=1)
    ready = Manifest.load(tmp_path / "ready")
    assert ready.places["street_superseded"].null_count == 6
    assert ready.places["street_synthetic"].to_pylist() == [None, *[model.fingerprint] * 2, None, None, None]
    assert ready.place(0)["street"] is None and ready.validate(images=True) == []
    # A date that the old view of place 1 counts for: it is not there to come back.
    found = synthesize.synthesize(tmp_path / "ready", model, date=datetime.date(2015, 6, 1), workers=1)
    assert (found.made, found.superseded, found.problems) == (3, 0, [])
    completed = Manifest.load(tmp_path / "ready")
    assert completed.places["street"].null_count == 0 and completed.validate(images=True) == []


def test_the_mark_is_known_everywhere(gaps: Path, model: PanoGAN, tmp_path: Path) -> None:
    locator = Geolocalizer()
    locator.fingerprint = "f" * 64
    synthesize.synthesize(gaps, model, date=NEW, workers=1)
    manifest = Manifest.load(gaps)
    manifest.save(tmp_path / "csv", format="csv")
    assert Manifest.load(tmp_path / "csv").places["street_superseded"].equals(manifest.places["street_superseded"])
    settings = PrepareSettings(size=(32, 128), satellite_px=64)
    ready = prepare(manifest, tmp_path / "ready", settings=settings, workers=1)
    assert "3 street views are synthetic" in ready.summary() and ready.calibration["known"] >= 3
    prepared = Manifest.load(tmp_path / "ready")
    assert prepared.places["street_synthetic"].equals(manifest.places["street_synthetic"])
    assert "classes" not in prepared.places.column_names  # those were of other images
    sample = PlaceDataset(prepared, satellite_size=32, panorama_size=(32, 128))[0]
    assert sample["has_panorama"] and sample["heading_known"]
    names = manifest.places["id"].to_pylist()
    with PlaceIndex.create(tmp_path / "index", model=locator.fingerprint, layers=locator.layers) as index:
        added = add_places(index, locator, manifest)
        assert "6 places added (3 with a synthetic street view)" in added.summary()
        assert [place.attributes.get("street_synthetic") for place in index.places(range(6))] == [
            *[model.fingerprint] * 3, *[None] * 3
        ]  # fmt: skip
    pictures = ManifestPictures(manifest, [], dict(enumerate(names)))  # whatever an older index says
    assert [pictures.synthetic(place) for place in range(6)] == [True] * 3 + [False] * 3
    plain, _ = contact_sheet(manifest, places=names[3:4], settings=settings)
    marked, _ = contact_sheet(manifest, places=names[:1], settings=settings)
    count = [(np.abs(sheet.astype(int) - (150, 0, 150)).max(axis=2) < 12).sum() for sheet in (plain, marked)]
    assert count[1] > count[0] + 20
    other = PanoGANConfig(**{**NETWORK, "image_size": [64, 256]})
    torch.manual_seed(0)
    PanoGAN(other).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is prepared at 32 x 128, but the model makes 64 x 256"):
        synthesize.synthesize(tmp_path / "ready", PanoGAN.load(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="model: expected one loaded from a bundle"):
        synthesize.synthesize(gaps, PanoGAN(model.config))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "expected the columns of a street view as JSON"),
        ('{"id": "x"}', "expected only columns of a street view"),
        ('{"street_lat": "north"}', "expected a number, got 'north'"),
        ('{"street_date": 7}', "expected a date as YYYY-MM-DD"),
    ],
)
def test_a_superseded_view_is_checked(value: str, message: str) -> None:
    row = {"id": "a", "lat": 1.0, "lon": 2.0, "street": "a.jpg", "street_synthetic": "m", "street_superseded": value}
    with pytest.raises(ManifestError, match=message):
        Manifest.from_rows(".", [row], [])
    row |= {"street_superseded": "{}", "street_synthetic": None}
    with pytest.raises(ManifestError, match="no street_synthetic that stands in for it"):
        Manifest.from_rows(".", [row], [])
