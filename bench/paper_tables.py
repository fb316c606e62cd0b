"""The tables of the main paper, at a scale of one's own: a table is a list of runs and a way to print them.

    geoloc-fast city make benchmark/ --places 400 --cities 12 --seed 2025     # or any manifest
    python bench/paper_tables.py run 6 --manifest benchmark/ --out runs/            # all runs of table 6
    python bench/paper_tables.py run all --manifest benchmark/ --out runs/ --jobs 2
    python bench/paper_tables.py time --out runs/                                   # table C1's, when nothing else runs
    python bench/paper_tables.py page --out runs/                                   # docs/notes/paper_tables.md

Every run is a training with `geoloc.py` and an evaluation, and adds a line to `tables.jsonl`; one that is there is not
done again, and one that was interrupted goes on. Tables share runs: "ours" is in nearly all of them. What the runs are
and what the paper prints is in `paper_tables.yaml`. The scale is `train/configs/tables.yaml`; `--config` and name=value
choose another one, for a GPU say, in another folder.

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
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import table_lines
import torch
import yaml
from omegaconf import OmegaConf
from pages import wrapped
from tqdm import tqdm

from geoloc_fast.data.availability import real_street_views
from geoloc_fast.data.datasets import PlaceDataset, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import GeolocError
from geoloc_fast.files import write_atomically
from geoloc_fast.images.calibration import calibrate
from geoloc_fast.models import Geolocalizer
from geoloc_fast.polar import polar_resample
from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, Settings, read_settings
from geoloc_fast.training.recipes.geolocalizer.recipe import held_out_of, measured, region_of
from geoloc_fast.training.region import chosen, load_region, prepared
from geoloc_fast.training.settings import deciding
from geoloc_fast.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CONFIG, PAGE = ROOT / "train/configs/tables.yaml", ROOT / "docs/notes/paper_tables.md"
RESULTS = ROOT / "bench/results"
LINES = "tables.jsonl"
PAPER: dict[str, Any] = yaml.safe_load((ROOT / "bench/paper_tables.yaml").read_text())
PROTOCOLS: dict[str, dict[str, Any]] = PAPER["protocols"]
VARIANTS: dict[str, dict[str, Any]] = PAPER["variants"]
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent")

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


def table_of(given: dict[str, Any]) -> Table:
    rows = [
        Row(r["label"], r.get("variant"), tuple(r.get("same", ())), tuple(r.get("cross", ()))) for r in given["rows"]
    ]
    more = {name: tuple(given[name]) for name in ("repeated", "protocols") if name in given}
    return Table(given["title"], tuple(rows), given.get("note", ""), **more)


TABLES = {number: table_of(given) for number, given in PAPER["tables"].items()}


# -- runs --------------------------------------------------------------------------------------


def settings_of(run: Run, config: Path, manifest: Path, out: Path, more: Sequence[str]) -> Settings:
    made: Any = OmegaConf.load(config)
    changes = {**PROTOCOLS[run.protocol], **VARIANTS[run.variant], "step.seed": run.seed}
    if made.get("pretrained") not in (None, "timm"):
        made.pretrained = str(ROOT / made.pretrained)
    if not made.model.get("backbone_kwargs"):  # no small network: those of the paper's size
        changes |= PAPER["full_size"].get(run.variant, {})
        changes.pop("train.steps", None)  # as many as this scale gives everything
    for name, value in changes.items():
        OmegaConf.update(made, name, value, merge=False, force_add=True)
    given = {"out": str(out / str(run)), "data": {"manifest": str(manifest)}}
    merged: Any = OmegaConf.to_container(made)
    return read_settings([merged, given, *more])


def record_of(settings: Settings) -> dict[str, Any]:
    """What decides a run's figures beside the manifest, without the paths of this machine."""
    record: dict[str, Any] = json.loads(json.dumps(deciding(settings)))
    del record["data"]["manifest"]
    if settings.data.views in ("given", "synthetic"):
        made = Manifest.load(settings.data.manifest).places["street_synthetic"]
        record["street_synthetic"] = sorted(pc.unique(made.drop_null()).to_pylist())
    if settings.pretrained not in (None, "timm"):
        record["pretrained"] = hashlib.sha256(Path(str(settings.pretrained)).read_bytes()).hexdigest()
    return record


def digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def is_made(run: Run, out: Path, made: dict[str, dict[str, Any]], record: dict[str, Any]) -> bool:
    """Whether there is a line of the run and these settings; what is left of a run with others is removed."""
    if str(run) not in made:
        return False
    if made[str(run)]["settings"] == digest(record):
        return True
    print(f"{run}: was made with other settings, or another pretrained model; it is made again", flush=True)
    shutil.rmtree(out / str(run), ignore_errors=True)
    return False


def do(run: Run, config: Path, manifest: Path, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """Trains, evaluates and returns the run's line. Goes on where an interrupted one stopped."""
    torch.set_num_threads(1)
    settings = settings_of(run, config, manifest, out, more)
    whole = load_region(manifest)
    if prepared(whole):
        raise ValueError(f"{manifest}: expected photos as they are, got prepared ones: their field of view is fixed")
    recipe = GeolocalizerRecipe(settings)
    trainer = Trainer(recipe, resume=(Path(settings.out) / "last.safetensors").exists())
    trainer.run()
    began = time.perf_counter()
    held_out = held_out_of(region_of(settings), settings)
    assumed = measured(recipe.model, held_out, settings, recipe.device).numbers["assumed"]
    line = {
        "name": str(run),
        "steps": settings.train.steps,
        "batch": settings.train.batch,
        "pairs": len(recipe.pairs.photo_rows),
        "coverage": len(held_out.photos) / len(held_out_of(whole, settings).photos),
        "seconds": round(trainer.seconds + time.perf_counter() - began),
        "config": config.name,
        "more": list(more),
        "settings": digest(record_of(settings)),
        "figures": {name: [assumed[name], *assumed["interval"][name]] for name in FIGURES if name in assumed},
    }
    if "street_view" in assumed["by"]:
        line["by_street_view"] = {name: part["recall_at_1"] for name, part in assumed["by"]["street_view"].items()}
    return line


@torch.inference_mode()
def time_queries(runs: Sequence[Run], out: Path, rounds: int = 40) -> None:
    """To encode one photo of the assumed field of view on one core: the median, of all runs in turn."""
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
    made = table_lines.read(out / LINES)
    for run, seconds in spent.items():
        table_lines.append(out / LINES, made[str(run)] | {"query_ms": 1000 * statistics.median(seconds[3:])})


def calibrations(manifest: Path, out: Path) -> None:
    """How often each method of calibration is right, for the street views of the area test whose heading the manifest
    does not give but the generator knows."""
    whole = Manifest.load(manifest)
    if "calibration" in table_lines.read(out / LINES) or "true_column0_deg" not in whole.places.column_names:
        return
    whole = whole.replace(places=real_street_views(whole.places))
    whole = chosen(whole, PROTOCOLS["cross"]["data.evaluate"])
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
    table_lines.append(out / LINES, {"name": "calibration", "cities": cities, "methods": found})


# -- the page ----------------------------------------------------------------------------------


def runs_of(made: dict[str, dict[str, Any]]) -> dict[Run, dict[str, Any]]:
    named = [(name.split("."), line) for name, line in sorted(made.items())]
    return {Run(name[0], name[1], int(name[2])): line for name, line in named if len(name) == 3}


def figures(lines: Sequence[dict[str, Any]], name: str) -> tuple[float, float, float] | None:
    """Percent: the mean over seeds, and the interval (that of photos, averaged, widened to all seeds)."""
    found = [[100 * value for value in line["figures"][name]] for line in lines if name in line["figures"]]
    if not found:
        return None
    values, lows, highs = zip(*found, strict=True)
    return statistics.mean(values), min(statistics.mean(lows), *values), max(statistics.mean(highs), *values)


def cells(lines: Sequence[dict[str, Any]], paper: Numbers) -> list[str]:
    made = []
    for n, name in enumerate(FIGURES):
        ours = figures(lines, name)
        text = "-" if ours is None else f"{ours[0]:.1f} [{ours[1]:.1f}, {ours[2]:.1f}]"
        made.append(text + (f" / {paper[n]:.1f}" if n < len(paper) else " / -"))
    return made


def where(line: dict[str, Any], street_view: str) -> float:
    return 100 * float(line["by_street_view"].get(street_view, math.nan))


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


def runs_of_row(table: Table, row: Row, protocol: str, done: dict[Run, dict[str, Any]]) -> list[Run]:
    """The row's runs that are done: of one seed, or of all where the table repeats it."""
    return sorted(run for run in table.runs() if (run.variant, run.protocol) == (row.variant, protocol) and run in done)


def order(table: Table, protocol: str, done: dict[Run, dict[str, Any]]) -> str:
    """Of how many pairs of rows, trained alike, the paper's order at R@1 comes out here, over the seeds that both have,
    and of which not."""
    known = []
    for row in table.rows:
        paper = getattr(row, protocol)
        lines = {run.seed: done[run] for run in runs_of_row(table, row, protocol, done)}
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


def section(number: str, made: dict[str, dict[str, Any]]) -> list[str]:
    table, done = TABLES[number], runs_of(made)
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
            lines = [done[run] for run in runs_of_row(table, row, protocol, done)]
            shown = [row.label, str(len(lines) or "-"), *cells(lines, getattr(row, protocol))]
            shown += [mean_of(lines, value) for value in more.values()]
            page.append(f"| {' | '.join(shown)} |")
        said = order(table, protocol, done)
        page += ["", *([f"The paper's order at R@1, {protocol} area: {said}.", ""] if said else [])]
    if number == "A1" and "calibration" in made:
        measured = made["calibration"]
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


def views_section(made: dict[str, dict[str, Any]]) -> list[str]:
    """Table B1, of what `street_view_table.py` left."""
    paper = PAPER["views"]
    page = ["## Table B1: Generated street views against real ones", "", f"`{paper['command']}`", "", paper["note"], ""]
    page += [f"| the paper | {' | '.join(paper['columns'])} |", "|---" * (len(paper["columns"]) + 1) + "|"]
    page += [f"| {' | '.join([name, *row])} |".replace("  ", " ") for name, row in paper["rows"].items()] + [""]
    measured = {name.removeprefix("B1 "): line for name, line in made.items() if name.startswith("B1 ")}
    for where, line in measured.items():
        names = list(next(iter(line["rows"].values())))
        page += [f"| {line['places']} places, {where} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        page += [f"| {name} | {' | '.join(row.values())} |" for name, row in line["rows"].items()] + [""]
    return page if measured else [*page, "None has been made yet.", ""]


def page_of(out: Path) -> str:
    made = table_lines.read(out / LINES)
    done = runs_of(made)
    page = ["# The paper's tables, on synthetic cities", "", PAPER["intro"], ""]
    page += ["```", *PAPER["commands"], "```", ""]
    if done:
        scales = sorted({(line["config"], line["steps"], line["batch"], *line["more"]) for line in done.values()})
        said = [f"`{' '.join(map(str, s[:1] + s[3:]))}`, {s[1]} steps of {s[2]} pairs" for s in scales]
        for protocol in PROTOCOLS:
            pairs = sorted({line["pairs"] for run, line in done.items() if run.protocol == protocol})
            said += [f"{' or '.join(map(str, pairs))} pairs to train on in the {protocol} area"] if pairs else []
        spent = [line["seconds"] for line in done.values()]
        said.append(
            f"{statistics.median(spent) / 60:.0f} minutes a run on one core, {sum(spent) / 3600:.1f} hours for all"
        )
        page += [f"Scale: {'; '.join(said)}.", "", PAPER["begun"], ""]
    else:
        page += ["No run has been made yet.", ""]
    for number in sorted([*TABLES, "B1"]):
        page += views_section(made) if number == "B1" else section(number, made)
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
        one.add_argument("--out", type=Path, default=RESULTS, help="folder of the runs")
    given = parser.parse_args()
    if given.command == "page":
        write_atomically(given.page, wrapped(page_of(given.out)))
        return 0
    if given.command == "time":
        try:
            done = runs_of(table_lines.read(given.out / LINES))
            time_queries(sorted(set(TABLES["C1"].runs()) & set(done)), given.out)
        except OSError as error:
            print(f"tables: {error}; time runs where they were made", file=sys.stderr)
            return 1
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    tables = list(TABLES) if given.table == "all" else [given.table]
    # The first seed of everything before the second of anything.
    wanted = sorted({run for name in tables for run in TABLES[name].runs()}, key=lambda run: (run.seed, run))
    todo, made = [], table_lines.read(given.out / LINES)
    for run in wanted:
        if given.protocol in (None, run.protocol):
            record = record_of(settings_of(run, given.config, given.manifest, given.out, given.more))
            todo += [run] * (not is_made(run, given.out, made, record))
    if "A1" in tables:
        calibrations(given.manifest, given.out)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        futures = {pool.submit(do, run, given.config, given.manifest, given.out, given.more): run for run in todo}
        failed = 0
        for future in as_completed(futures):
            try:
                table_lines.append(given.out / LINES, future.result())
            except (OSError, ValueError, GeolocError) as error:
                failed += 1
                print(f"{futures[future]}: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{futures[future]}: done", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
