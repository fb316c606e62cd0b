"""The tables of the main paper, at a scale of one's own: a table is a list of runs and a way to print them.

    geoloc-fast city make benchmark/ --places 400 --cities 12 --seed 2025     # or any manifest
    python bench/paper_tables.py run 6 --manifest benchmark/ --out runs/            # all runs of table 6
    python bench/paper_tables.py run all --manifest benchmark/ --out runs/ --jobs 2
    python bench/paper_tables.py time --out runs/                                   # table C1's, when nothing else runs
    python bench/paper_tables.py page --out runs/                                   # docs/paper_tables.md

Every run is a training with `geoloc.py` and an evaluation, and leaves `<variant>.<protocol>.<seed>.json`; one that is
there is not done again, and one that was interrupted goes on. Tables share runs: "ours" is in nearly all of them. The
scale is `configs/tables.yaml`; `--config` and name=value choose another one, for a GPU say, in another folder.

    same    trains on the split train of every city and asks about the photos of the split test
    cross   trains on the cities of the area train and asks about all photos of the others
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from geoloc_fast.data.availability import real_street_views
from geoloc_fast.data.datasets import PlaceDataset, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.files import write_atomically
from geoloc_fast.images.calibration import calibrate
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.polar import polar_resample
from geoloc_fast.training import trainer as geoloc
from geoloc_fast.training.street_choice import chosen_views

ROOT = Path(__file__).resolve().parents[1]
CONFIG, PAGE, RUNS = ROOT / "train/configs/tables.yaml", ROOT / "docs/paper_tables.md", ROOT / "bench/results/tables"
PROTOCOLS = {
    "same": {"data.train": {"split": "train"}, "data.evaluate": {"split": "test"}},
    "cross": {"data.train": {"area": "train"}, "data.evaluate": {"area": "test"}},
}
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent")
ONE_COLUMN = {"model.strip": [256, 1, 1], "step.loss.heading": 0.0, "step.loss.agreement": 0.3}
# Nothing has trained these networks before: they begin as `configs/small_first.yaml` does, and need as many steps.
FROM_NOTHING = {
    "pretrained": None,
    "train.steps": 1000,
    "model.initial_scale": GeolocalizerConfig.initial_scale,
    "train.lr": 2.5e-3,
    "data.field_of_view": "known",
    "step.without_panorama": 0.0,
}

COMMANDS = (
    "geoloc-fast city make benchmark/ --places 400 --cities 12 --seed 2025",
    "python train/panogan.py train/configs/panogan_small.yaml data.manifest=benchmark/ train.evaluate_every=0 "
    "out=runs/panogan",
    "geoloc-fast synthesize benchmark/ --model runs/panogan/model.safetensors --date 2025-01-01",
    "python bench/paper_tables.py run all --manifest benchmark/ --out runs/ --jobs 2",
    "python bench/paper_tables.py time --out runs/",
    "python bench/paper_tables.py page --out runs/",
)

# What each variant changes of the configuration; a value replaces what was there, dictionaries too.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "dsm": {"model.sources": "satellite", "model.sharing": "none", "step.loss.kind": "soft_margin_triplet"},
    "global": ONE_COLUMN,
    "projected": {"data.street": "projected", "model.fusion": "concat"},
    **{name: {"model.fusion": name} for name in ("concat", "fcl", "awa", "aff")},
    **{name: {"data.views": name} for name in ("strict", "hybrid", "nearest", "synthetic")},
    "uncalibrated": {"data.street": "as_is"},
    "orb": {"data.street": "orb"},
    "sift": {"data.street": "sift"},
    "street": {"model.sources": "street"},
    "satellite": {"model.sources": "satellite"},
    "fixed": {"step.loss.select": "fixed", "step.loss.heading": 0.0},
    "share_references": {"model.sharing": "references"},
    "share_all": {"model.sharing": "all"},
    "scratch": FROM_NOTHING,
    "resnet": {
        **FROM_NOTHING,
        "model.backbone": "resnet18",
        "model.backbone_kwargs": {"layers": [1, 1, 2, 1], "channels": [32, 64, 128, 128], "norm_layer": "groupnorm1"},
    },
    "mobilenet": {
        **FROM_NOTHING,
        "model.backbone": "mobilenetv4_conv_small_050",
        "model.backbone_kwargs": {},
    },
    "efficientnet": {**FROM_NOTHING, "model.backbone": "tinynet_e", "model.backbone_kwargs": {}},
    "triplet": {"step.loss.kind": "triplet"},
    "soft_margin": {"step.loss.kind": "soft_margin_triplet"},
}

AT_FULL_SIZE: dict[str, dict[str, Any]] = {
    "resnet": {"model.backbone": "resnet50", "model.backbone_kwargs": {}},
    "mobilenet": {"model.backbone": "mobilenetv4_conv_small"},
    "efficientnet": {"model.backbone": "efficientnet_b0"},
}

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Row:
    label: str
    variant: str | None  # None: only the paper has it
    same: Numbers = ()  # the paper's R@1, R@5, R@10, R@1 % in percent
    cross: Numbers = ()


@dataclass(frozen=True)
class Table:
    title: str
    rows: tuple[Row, ...]
    note: str = ""
    repeated: tuple[str, ...] = ()  # variants of three seeds; the others have one
    protocols: tuple[str, ...] = ("same", "cross")

    def runs(self) -> Iterator[Run]:
        for row in self.rows:
            if row.variant is not None:
                for protocol in self.protocols:
                    for seed in range(3 if row.variant in self.repeated else 1):
                        yield Run(row.variant, protocol, seed)


@dataclass(frozen=True, order=True)
class Run:
    variant: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}.{self.protocol}.{self.seed}"


OURS = ((54.27, 75.31, 84.64, 92.03), (32.12, 46.82, 63.51, 74.44))
TABLES: dict[str, Table] = {
    "2": Table(
        "Comparison with other methods",
        (
            Row("Regmi and Shah (2019)", None, (28.34, 49.27, 62.13, 79.02), (13.19, 28.70, 41.55, 53.41)),
            Row("SCN (Pro et al., 2024)", None, (38.12, 61.48, 75.34, 84.21), (19.44, 30.37, 46.28, 57.25)),
            Row("SAN (Pro et al., 2024)", None, (47.38, 71.06, 81.81, 88.37), (25.83, 36.55, 55.09)),
            Row("satellite only, as DSM (Shi et al., 2020)", "dsm"),
            Row("one descriptor, no azimuth, as Sample4Geo", "global"),
            Row(
                "polar and projected satellite, after Shi et al. (2022)",
                "projected",
                (44.51, 68.22, 79.76, 87.16),
                (23.67, 33.29, 52.44, 60.58),
            ),
            Row("ours", "ours", *OURS),
        ),
        "The first three rest on networks for segmentation or synthesis that nobody outside can run, so only the "
        "paper's figures stand here.",
    ),
    "3": Table(
        "Fusion",
        (
            Row("concatenation", "concat", (48.47, 68.00, 77.67, 88.98), (28.67, 41.14, 55.10, 70.27)),
            Row("FCL", "fcl", (44.04, 62.57, 71.53, 85.33), (26.03, 37.82, 50.72, 67.25)),
            Row("AWA", "awa", (48.36, 67.85, 77.41, 88.87), (28.62, 41.01, 54.92, 70.12)),
            Row("AFF", "aff", (48.93, 68.74, 78.26, 89.32), (28.92, 41.44, 55.63, 70.75)),
            Row("iAFF", "ours", *OURS),
        ),
        "Three seeds for iAFF and for those next to it at the first.",
        repeated=("fcl", "aff", "ours"),
    ),
    "4": Table(
        "Street views made from satellite images",
        (
            Row("strict", "strict", (60.62, 80.96, 90.51, 96.25), (37.90, 51.50, 68.37, 79.59)),
            Row("hybrid", "hybrid", (46.34, 64.78, 76.90, 85.32), (26.44, 39.95, 57.18, 67.10)),
            Row("nearest", "nearest", (48.18, 68.05, 78.23, 87.40), (28.57, 42.29, 58.92, 70.16)),
            Row("ours", "synthetic", *OURS),
        ),
        "Real street views count within 50 m and a year of the photo. Places without one: strict leaves them out with "
        "their photos, hybrid encodes the satellite image alone, nearest takes the next place's street view, ours "
        "has one made: first `geoloc-fast synthesize`, with `--date` in the middle of "
        "the photos' year. The paper covers 62.45 % of its photos with strict, all with the others, and "
        "trains a generator for every city; here one was trained for all, on cities of the area train. The last "
        "two columns say where the differences come from: made views in training teach that a street view says little, "
        "and photos of places with real ones pay for it, while those of places without one gain nothing. What a made "
        "view is worth by itself: [synthetic street views](synthetic_views.md#how-good).",
        repeated=("strict", "hybrid", "nearest", "synthetic"),
    ),
    "5": Table(
        "Spatial feature calibration (SFC)",
        (
            Row(
                "without: panoramas as they lie",
                "uncalibrated",
                (50.06, 70.09, 78.79, 88.97),
                (29.67, 43.19, 59.12, 71.06),
            ),
            Row("with", "ours", *OURS),
        ),
        "Half of the synthetic street views have no known heading; the other half is in the frame in both rows.",
        repeated=("uncalibrated", "ours"),
    ),
    "6": Table(
        "Sources",
        (
            Row("street view only", "street", (40.54, 60.12, 70.33, 85.25), (22.41, 34.92, 49.13, 62.37)),
            Row("satellite only", "satellite", (44.47, 66.12, 76.18, 88.24), (26.29, 40.08, 54.38, 68.13)),
            Row("both", "ours", *OURS),
        ),
        "38 % of the synthetic places have no street view: from street views alone they cannot be found, and can take "
        "no photo from another place either. In the same area both together find more photos among the first "
        "percent, everywhere fewer at once: the satellite image by itself finds one photo in forty, and the fusion, "
        "which begins with nothing, still weighs both about equally after these steps (AWA's weight of the satellite "
        "image in the run awa.cross.0 is 0.47: `Geolocalizer.load(...).fusion.logit.sigmoid()` of its "
        "model.safetensors).",
        repeated=("street", "satellite", "ours"),
    ),
    "7": Table(
        "Matching over azimuth (CBM)",
        (
            Row("without: a fixed window", "fixed", (36.32, 57.21, 61.67, 70.13), (22.54, 35.33, 52.62, 64.25)),
            Row("without: global pooling", "global", (36.32, 57.21, 61.67, 70.13), (22.54, 35.33, 52.62, 64.25)),
            Row("with", "ours", *OURS),
        ),
        "The paper does not say what its row without matching does instead; both readings stand here.",
        repeated=("fixed", "global", "ours"),
    ),
    "A1": Table(
        "Methods of calibration",
        (
            Row("SIFT", "sift", (37.92, 52.79, 59.23, 64.45), (22.41, 32.76, 44.48, 52.12)),
            Row("SuperPoint", None, (44.08, 61.14, 68.72, 74.76), (26.05, 38.03, 51.58, 60.47)),
            Row("ORB", "orb", *OURS),
            Row("correlation over azimuth (ours)", "ours"),
        ),
        "SuperPoint's weights may not be shipped. How often each method is right by itself is in the second part.",
    ),
    "C1": Table(
        "Backbones and sharing of weights",
        (
            Row("ResNet-50 / a small ResNet", "resnet", (41.93,)),
            Row("EfficientNet-B0 / TinyNet-E, a small one", "efficientnet", (40.98,)),
            Row("VGG16", None, (37.48,)),
            Row("ViT", None, (43.66,)),
            Row("- / MobileNetV4 small", "mobilenet"),
            Row("- / ConvNeXt, from nothing as the rows above", "scratch"),
            Row("ConvNeXt, nothing shared: ours", "ours", (48.37,)),
            Row("ConvNeXt, shared by satellite and street view", "share_references", (51.62,)),
            Row("ConvNeXt, shared by all: the paper's choice", "share_all", (54.27,)),
        ),
        "Times: `python bench/paper_tables.py time --out runs/`, one core, all models in turn. "
        "The backbones are of the size of this scale, not the paper's. MobileNetV4 and EfficientNet have norms over "
        "the batch. VGG16 has no form of this size in timm that gives a map of stride 16, and a ViT's positions break "
        "the circle. The last three rows begin with the model that ships, which shares nothing: those that share, with "
        "its encoder of photos for all, so that they have more to learn anew. The others begin with nothing, for 1,000 "
        "steps and with fields of view that are known in training, or they would learn next to nothing: compare those "
        "with each other, by their last recall, since all of them still stand at the beginning.",
        protocols=("same",),
    ),
    "D1": Table(
        "Losses",
        (
            Row("triplet", "triplet", (39.34, 47.14, 50.96, 55.55), (11.45, 16.42, 21.98, 28.05)),
            Row("soft-margin triplet", "soft_margin", (51.08, 72.56, 82.62, 90.67), (20.15, 33.89, 49.42, 61.36)),
            Row("InfoNCE", "ours", *OURS),
        ),
    ),
}


# -- runs --------------------------------------------------------------------------------------


def settings_of(run: Run, config: Path, manifest: Path, out: Path, more: Sequence[str]) -> geoloc.Settings:
    made: Any = OmegaConf.load(config)
    changes = {**PROTOCOLS[run.protocol], **VARIANTS[run.variant], "step.seed": run.seed}
    if made.get("pretrained") not in (None, "timm"):
        made.pretrained = str(ROOT / made.pretrained)
    if not made.model.get("backbone_kwargs"):  # no small network: those of the paper's size
        changes |= AT_FULL_SIZE.get(run.variant, {})
        changes.pop("train.steps", None)  # as many as this scale gives everything
    for name, value in changes.items():
        OmegaConf.update(made, name, value, merge=False, force_add=True)
    given = {"out": str(out / str(run)), "data": {"manifest": str(manifest)}}
    return geoloc.read_settings([OmegaConf.to_container(made), given, *more])


def record_of(settings: geoloc.Settings) -> dict[str, Any]:
    """What decides a run's figures beside the manifest, without the paths of this machine."""
    record: dict[str, Any] = json.loads(json.dumps(geoloc.deciding(settings)))
    del record["data"]["manifest"]
    if settings.data.views in ("given", "synthetic"):
        made = Manifest.load(settings.data.manifest).places["street_synthetic"]
        record["street_synthetic"] = sorted(pc.unique(made.drop_null()).to_pylist())
    if settings.pretrained not in (None, "timm"):
        record["pretrained"] = hashlib.sha256(Path(str(settings.pretrained)).read_bytes()).hexdigest()
    return record


def is_made(run: Run, out: Path, record: dict[str, Any]) -> bool:
    """Whether the run's JSON is there and of these settings; what was made with others is removed."""
    path = out / f"{run}.json"
    if not path.exists():
        return False
    if json.loads(path.read_text()).get("settings") == record:
        return True
    print(f"{run}: was made with other settings, or another pretrained model; it is made again", flush=True)
    shutil.rmtree(out / str(run), ignore_errors=True)
    path.unlink()
    return False


def do(run: Run, config: Path, manifest: Path, out: Path, more: Sequence[str]) -> None:
    """Trains, evaluates and writes the run's JSON. Goes on where an interrupted one stopped."""
    torch.set_num_threads(1)
    settings = settings_of(run, config, manifest, out, more)
    whole = geoloc.load_region(manifest)
    if geoloc.prepared(whole):
        raise ValueError(f"{manifest}: expected photos as they are, got prepared ones: their field of view is fixed")
    trainer = geoloc.Trainer(settings, resume=(Path(settings.out) / "last.safetensors").exists())
    trainer.run()
    began = time.perf_counter()
    held_out = geoloc.chosen(chosen_views(whole, settings.data.views), settings.data.evaluate)
    found = geoloc.evaluate(trainer.model, held_out, settings.data, trainer.device, window=trainer.window)
    line = {
        "variant": run.variant,
        "protocol": run.protocol,
        "seed": run.seed,
        "steps": settings.train.steps,
        "batch": settings.train.batch,
        "pairs": len(trainer.sampler.place),
        "coverage": len(held_out.photos) / len(geoloc.chosen(whole, settings.data.evaluate).photos),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "seconds": round(trainer.seconds + time.perf_counter() - began),
        "config": config.name,
        "more": list(more),
        "settings": record_of(settings),
        "evaluation": found,
    }
    write_atomically(out / f"{run}.json", json.dumps(line, indent=1) + "\n")


@torch.inference_mode()
def time_queries(runs: Sequence[Run], out: Path, rounds: int = 40) -> None:
    """To encode one photo of the assumed field of view on one core: of all runs in turn, the median into their JSON."""
    torch.set_num_threads(1)
    models = {run: Geolocalizer.load(out / str(run) / "model.safetensors") for run in runs}
    spent: dict[Run, list[float]] = {run: [] for run in runs}
    for _ in range(rounds + 3):
        for run, model in models.items():
            height, columns = model.config.image_size
            photo = torch.randn(1, 3, height, round(columns * model.config.assumed_fov_deg / 360))
            begin = time.perf_counter()
            model.encode_photo(photo)
            spent[run].append(time.perf_counter() - begin)
    for run, seconds in spent.items():
        path = out / f"{run}.json"
        line = json.loads(path.read_text()) | {"query_ms": 1000 * statistics.median(seconds[3:])}
        write_atomically(path, json.dumps(line, indent=1) + "\n")


def calibrations(manifest: Path, out: Path) -> None:
    """How often each method of calibration is right, for the street views of the area test whose heading the manifest
    does not give but the generator knows."""
    path = out / "calibration.json"
    whole = Manifest.load(manifest)
    if path.exists() or "true_column0_deg" not in whole.places.column_names:
        return
    whole = whole.replace(places=real_street_views(whole.places))
    whole = geoloc.chosen(whole, PROTOCOLS["cross"]["data.evaluate"])
    truth = np.array(whole.places["true_column0_deg"].to_pylist(), np.float64)
    places = PlaceDataset(whole)
    found: dict[str, dict[str, float]] = {}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in ("azimuth", "orb", "sift")}
    spent = dict.fromkeys(errors, 0.0)
    for batch in tqdm(loader(places, 64), desc="calibration"):
        todo = batch["has_panorama"] & ~batch["heading_known"]
        polar = polar_resample(batch["satellite"][todo], (128, 512), border="replicate")
        for name in errors:
            begin = time.process_time()
            got = calibrate(batch["panorama"][todo], polar, method=name).column0_deg
            spent[name] += time.process_time() - begin
            error = (got - truth[batch["place_row"][todo].numpy()] + 180) % 360 - 180
            errors[name].append(np.abs(error))
    if not any(map(len, errors["azimuth"])):
        return
    for name, parts in errors.items():
        error = np.concatenate(parts)
        right = error <= 22.5  # NaN, where nothing could be measured, is wrong
        found[name] = {"street_views": len(error), "right": float(right.mean()), "ms": 1000 * spent[name] / len(error)}
    cities = sorted(set(whole.places["city"].to_pylist()))
    write_atomically(path, json.dumps({"cities": cities, "methods": found}, indent=1) + "\n")


# -- the page ----------------------------------------------------------------------------------


def read(out: Path) -> dict[Run, dict[str, Any]]:
    lines = [json.loads(path.read_text()) for path in sorted(out.glob("*.*.*.json"))]
    return {Run(line["variant"], line["protocol"], line["seed"]): line for line in lines}


def figures(lines: Sequence[dict[str, Any]], name: str) -> tuple[float, float, float] | None:
    """Percent: the mean over seeds, and the interval (that of photos, averaged, widened to all seeds)."""
    found = [line["evaluation"]["assumed"] for line in lines]
    if not found or found[0].get(name) is None:
        return None
    values = [100 * one[name] for one in found]
    ends = [[100 * end for end in one["interval"][name]] for one in found]
    low, high = (statistics.mean(side) for side in zip(*ends, strict=True))
    return statistics.mean(values), min(low, *values), max(high, *values)


def cells(lines: Sequence[dict[str, Any]], paper: Numbers) -> list[str]:
    made = []
    for n, name in enumerate(FIGURES):
        ours = figures(lines, name)
        text = "-" if ours is None else f"{ours[0]:.1f} [{ours[1]:.1f}, {ours[2]:.1f}]"
        made.append(text + (f" / {paper[n]:.1f}" if n < len(paper) else " / -"))
    return made


def where(line: dict[str, Any], street_view: str) -> float:
    of = line["evaluation"]["assumed"]["by"]["street_view"]
    return 100 * float(of.get(street_view, {}).get("recall_at_1", math.nan))


MORE_COLUMNS: dict[str, dict[str, Callable[[dict[str, Any]], float]]] = {
    "4": {
        "photos covered, %": lambda line: 100 * line["coverage"],
        "R@1 where a real view": lambda line: where(line, "available"),
        "R@1 where no real view": lambda line: where(line, "none"),
    },
    "C1": {"ms a photo": lambda line: line.get("query_ms", math.nan)},
}


def mean_of(lines: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
    mean = statistics.mean(map(value, lines)) if lines else math.nan
    return "-" if math.isnan(mean) else f"{mean:.1f}"


def lines_of(table: Table, row: Row, protocol: str, done: dict[Run, dict[str, Any]]) -> list[dict[str, Any]]:
    """The row's runs: of one seed, or of all where the table repeats it."""
    runs = [run for run in table.runs() if (run.variant, run.protocol) == (row.variant, protocol)]
    return [done[run] for run in sorted(runs) if run in done]


def order(table: Table, protocol: str, done: dict[Run, dict[str, Any]]) -> str:
    """Of how many pairs of rows, trained alike, the paper's order at R@1 comes out here, over the seeds that both have,
    and of which not."""
    known = []
    for row in table.rows:
        paper = getattr(row, protocol)
        lines = {line["seed"]: line for line in lines_of(table, row, protocol, done)}
        if paper and lines:
            known.append((paper[0], row.label, lines))
    pairs, beyond, turned = 0, 0, []
    for (less, low, of_low), (more, high, of_high) in itertools.combinations(sorted(known, key=lambda k: k[:2]), 2):
        seeds = sorted(of_low.keys() & of_high.keys())
        ours = [figures([lines[seed] for seed in seeds], "recall_at_1") for lines in (of_low, of_high)]
        alike = len({line["steps"] for lines in (of_low, of_high) for line in lines.values()}) == 1
        if less == more or not alike or ours[0] is None or ours[1] is None:
            continue
        pairs += 1
        beyond += ours[1][1] > ours[0][2]
        if ours[1][0] < ours[0][0]:
            turned.append(f"{high} over {low}")
    if not pairs:
        return ""
    said = f"{pairs - len(turned)} of {pairs} pairs come out, {beyond} of them by more than the intervals"
    return said + (f"; does NOT come out: {', '.join(turned)}" if turned else "")


def section(number: str, done: dict[Run, dict[str, Any]], out: Path) -> list[str]:
    table = TABLES[number]
    page = [f"## Table {number}: {table.title}", ""]
    wanted = list(table.runs())
    if wanted:
        page += [f"`python bench/paper_tables.py run {number} --manifest benchmark/ --out runs/`", ""]
    if table.note:
        page += [table.note, ""]
    more = MORE_COLUMNS.get(number, {})
    for protocol in table.protocols:
        titles = [f"{protocol} area", "seeds", "R@1", "R@5", "R@10", "R@1 %", *more]
        page += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for row in table.rows:
            lines = lines_of(table, row, protocol, done)
            made = [row.label, str(len(lines) or "-"), *cells(lines, getattr(row, protocol))]
            made += [mean_of(lines, value) for value in more.values()]
            page.append(f"| {' | '.join(made)} |")
        said = order(table, protocol, done)
        page += ["", *([f"The paper's order at R@1, {protocol} area: {said}.", ""] if said else [])]
    if number == "A1" and (out / "calibration.json").exists():
        measured = json.loads((out / "calibration.json").read_text())
        page += [f"By themselves, on {', '.join(measured['cities'])}:", ""]
        page += ["| method | street views | heading within 22.5 degrees | ms |", "|---|---|---|---|"]
        page += [
            f"| {name} | {one['street_views']} | {100 * one['right']:.1f} % | {one['ms']:.1f} |"
            for name, one in measured["methods"].items()
        ]
        page.append("")
    missing = [str(run) for run in wanted if run not in done]
    if missing:
        page += [f"Not run yet ({len(missing)} of {len(wanted)}): {', '.join(missing)}.", ""]
    return page


PAPER_B1 = (
    "Pix2pix | 0.381 | 19.84 | 18.88 | 3.55 | 2.42 | 3.85 | 22.9 | 43.2 | 10.51",
    "X-Fork | 0.453 | 20.90 | 19.63 | 3.86 | 2.82 | 4.16 | 31.7 | 64.2 | 6.26",
    "X-Seq | 0.443 | 20.79 | 19.52 | 3.35 | 2.65 | 3.65 | 27.1 | 60.3 | 7.05",
    "SelectionGAN | 0.455 | 21.75 | 20.46 | 3.68 | 2.72 | 3.98 | 29.9 | 62.1 | 6.14",
    "PanoGAN | 0.454 | 22.28 | 20.37 | 3.95 | 2.94 | 4.25 | 38.5 | 73.5 | 4.30",
    "real street views | | | | 4.95 | 3.35 | 5.03 | | |",
)


def views_section(out: Path) -> list[str]:
    """Table B1, of what `street_view_table.py` left."""
    command = (
        "street_view_table.py benchmark/ panogan=runs/panogan/model.safetensors pix2pix=runs/pix2pix/model.safetensors "
        "--where area=test --column0 true_column0_deg --locator geoloc_fast/assets/small.safetensors "
        "--out runs/b1.test.json"
    )
    page = [
        "## Table B1: Generated street views against real ones",
        "",
        f"`python train/{command}`",
        "",
        "The paper's rows; X-Fork, X-Seq and SelectionGAN are not rebuilt here. Accuracy and inception score need a "
        "classifier of streets, given with `--classifier`; none may be shipped. R@1: of cuts of 90 degrees of the real "
        "street views, among the same places, known from the view alone and from it and the satellite image. Every "
        "other row is one more NAME=BUNDLE: [their training](synthetic_views.md#training).",
        "",
        "| the paper | SSIM | PSNR | SD | IS all | IS 1 | IS 5 | accuracy 1 | accuracy 5 | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(f"| {row} |" for row in PAPER_B1),
        "",
    ]
    paths = sorted(out.glob("b1.*.json"))
    for path in paths:
        found = json.loads(path.read_text())
        names = list(next(iter(found["rows"].values())))
        page += [
            f"| {found['places']} places, {found['where']} | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        page += [f"| {name} | {' | '.join(row.values())} |" for name, row in found["rows"].items()] + [""]
    return page if paths else [*page, "None has been made yet.", ""]


def page_of(out: Path) -> str:
    done = read(out)
    page = [
        "# The paper's tables, on synthetic cities",
        "",
        "**Figures on synthetic cities say nothing about real ones**, and the "
        "paper's figures, behind the stroke, are of other data and a network 100 times as large: only the order of "
        "rows can be compared. Percent; field of view and heading unknown; in brackets the middle 95 % of a bootstrap "
        "over photos, widened to the least and the greatest seed where there are several. Under each table stands how "
        "much of the paper's order comes out, between rows of as many steps, over the seeds that both have.",
        "",
    ]
    page += ["```", *COMMANDS, "```", ""]
    if done:
        scales = sorted({(line["config"], line["steps"], line["batch"], *line["more"]) for line in done.values()})
        said = [f"`{' '.join(map(str, s[:1] + s[3:]))}`, {s[1]} steps of {s[2]} pairs" for s in scales]
        for protocol in PROTOCOLS:
            pairs = sorted({line["pairs"] for line in done.values() if line["protocol"] == protocol})
            said += [f"{' or '.join(map(str, pairs))} pairs to train on in the {protocol} area"] if pairs else []
        spent = [line["seconds"] for line in done.values()]
        said.append(
            f"{statistics.median(spent) / 60:.0f} minutes a run on one core, {sum(spent) / 3600:.1f} hours for all"
        )
        page += [f"Scale: {'; '.join(said)}.", ""]
        page += [
            "All but the rows that say so begin with the encoders of [the model that ships](model_card.md), which were "
            "trained with both sources, matching and InfoNCE: the steps here let a variant adapt, not begin anew. That "
            "favours the rows that do as it does, ours among them; a head of another shape (tables 2 and 7, without "
            "azimuth) and fusion begin with nothing.",
            "",
        ]
    else:
        page += ["No run has been made yet.", ""]
    for number in sorted([*TABLES, "B1"]):
        page += views_section(out) if number == "B1" else section(number, done, out)
    return "\n".join(page).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="make the runs of a table")
    running.add_argument("table", choices=[*TABLES, "all"])
    running.add_argument("more", nargs="*", help="name=value, for all runs")
    running.add_argument("--manifest", type=Path, required=True)
    running.add_argument("--config", type=Path, default=CONFIG)
    running.add_argument("--protocol", choices=list(PROTOCOLS), help="one of them; cross needs a column area")
    running.add_argument("--jobs", type=int, default=1, help="runs at the same time, of one core each")
    timing = commands.add_parser(
        "time", help="time the models of table C1 in turn, on a machine that does nothing else"
    )
    writing = commands.add_parser("page", help="write the page of what has been run")
    writing.add_argument("--page", type=Path, default=PAGE)
    for one in (running, timing, writing):
        one.add_argument("--out", type=Path, default=RUNS, help="folder of the runs")
    given = parser.parse_args()
    if given.command == "page":
        write_atomically(given.page, page_of(given.out))
        return 0
    if given.command == "time":
        try:
            time_queries(sorted(set(TABLES["C1"].runs()) & set(read(given.out))), given.out)
        except OSError as error:
            print(f"tables: {error}; time runs where they were made", file=sys.stderr)
            return 1
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    tables = list(TABLES) if given.table == "all" else [given.table]
    # The first seed of everything before the second of anything.
    wanted = sorted({run for name in tables for run in TABLES[name].runs()}, key=lambda run: (run.seed, run))
    todo = []
    for run in wanted:
        if given.protocol in (None, run.protocol):
            record = record_of(settings_of(run, given.config, given.manifest, given.out, given.more))
            todo += [run] * (not is_made(run, given.out, record))
    if "A1" in tables:
        calibrations(given.manifest, given.out)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(do, run, given.config, given.manifest, given.out, given.more) for run in todo]
        failed = 0
        for run, future in zip(todo, futures, strict=True):
            try:
                future.result()
            except (OSError, ValueError, geoloc.TrainingStopped) as error:
                failed += 1
                print(f"{run}: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{run}: done", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
