"""The table of descriptions on synthetic cities: floors, the model, without each loss, every kind of query.

    python bench/text_table.py make --out cities/                    # 12 cities of 800 places, satellite tiles
    python bench/text_table.py run --cities cities/ --runs runs/ --out bench/results/text.jsonl
    python bench/text_table.py run --cities cities/ --runs runs/ --out bench/results/text.jsonl --test
    python bench/text_table.py show bench/results/text.jsonl

`run` does what is not done yet, step by step, and may be stopped anywhere: what is frozen is computed once and kept in
`runs`. The model learns on cities of the even styles (area train, splits train and val), as `train/text.py` with
`train/configs/text.yaml` does. Galleries: all places of a city of another style, as between continents; and the places
of the training cities that were held out (`world`). Choices were made on the cities of VALIDATION; those of TEST are
looked at with `--test`, once, when nothing is chosen any more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.city.captions import scenes_of
from geoloc_fast.city.matcher import SceneMatcher
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.data.captions import Caption
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.described import FIRST, PRIOR, Found, found_by_score, paired_interval, recall
from geoloc_fast.models.text.encoder import mean_state
from geoloc_fast.models.text.model import PHYSICAL, TextGeolocalizer
from geoloc_fast.signature import TileSignature
from geoloc_fast.training.canonical import closed_form
from geoloc_fast.training.closed_form import Moments, canonical_maps
from geoloc_fast.training.consistency import GLOBAL, TERMS
from geoloc_fast.training.recipes.text import (
    Described,
    Settings,
    TextRecipe,
    all_scores,
    looked_at,
    of_scenes,
    read_captions,
    read_settings,
    solve_sights,
)
from geoloc_fast.training.recipes.text import chosen as places_of
from geoloc_fast.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "train/configs"
VALIDATION = ("01-grid", "03-suburb", "05-mediterranean")
TEST = ("09-tropics", "11-nordic")
LEARN = {"area": "train", "split": "train|val"}
WORLD = {"area": "train", "split": "test"}
VARIANTS = {
    "contrastive alone": ("global",),
    "with the physical losses": TERMS,
    **{f"without {name}": tuple(term for term in TERMS if term != name) for name in PHYSICAL},
}
"""Steps of the text's side from the closed form on, by the losses they follow."""
CLOSED = "in closed form"
BLIND = ", without direction words"
_MATCHED = 400  # descriptions a city for the matcher


class Kept:
    """What is frozen, city by city, each from a file if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, model: TextGeolocalizer, manifest: Manifest, settings: Settings) -> Described:
        cities = []
        for city in dict.fromkeys(manifest.places["city"].to_pylist()):
            path = self.folder / f"{city}.safetensors"
            if not path.exists():
                save(looked_at(model, places_of(manifest, {"city": city}, scenes=True), settings), path)
            cities.append(load(path))
        return joined(cities)


def joined(cities: list[Described]) -> Described:
    """The places of several cities as those of one region."""
    places = np.cumsum([0, *(len(one.ids) for one in cities)])
    whole: dict[str, Any] = {}
    for name in Described._fields:
        values = [getattr(one, name) for one in cities]
        if name == "signature":
            whole[name] = TileSignature(*(torch.cat(part) for part in zip(*values, strict=True)))
        elif isinstance(values[0], Tensor):
            whole[name] = torch.cat(values)
        elif isinstance(values[0], np.ndarray):
            whole[name] = np.concatenate(values)
        else:
            whole[name] = [one for value in values for one in value]
    whole["captions"] = [
        Caption(caption.place + int(first), caption.text)
        for first, one in zip(places[:-1], cities, strict=True)
        for caption in one.captions
    ]
    whole["city"] = torch.repeat_interleave(torch.tensor([len(one.ids) for one in cities]))
    return Described(**whole)


def save(data: Described, path: Path) -> None:
    tensors: dict[str, Tensor] = {
        **{name: getattr(data, name) for name in ("fine", "coarse", "seen", "shown", "shares")},
        **{f"signature.{name}": part for name, part in data.signature._asdict().items()},
        "what": torch.cat([what for what, _ in data.told]),
        "where": torch.cat([where for _, where in data.told]),
        "sentences": torch.tensor([len(what) for what, _ in data.told]),
        "states": torch.cat([state for state in data.states if len(state)]),
        "numbers": torch.cat(data.numbers),
        "sentence": torch.cat(data.sentence),
        "tokens": torch.tensor([len(state) for state in data.states]),
        "lat": torch.from_numpy(data.lat),
        "lon": torch.from_numpy(data.lon),
    }
    told = {"ids": json.dumps(data.ids), "captions": json.dumps(data.captions)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, partial, told)
    partial.rename(path)


def load(path: Path) -> Described:
    with safetensors.safe_open(path, "pt") as file:
        told, one = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    counts = one["sentences"].tolist()
    return Described(
        json.loads(told["ids"]),
        [Caption(*caption) for caption in json.loads(told["captions"])],
        one["fine"],
        one["coarse"],
        one["seen"],
        TileSignature(*(one[f"signature.{name}"] for name in TileSignature._fields)),
        list(one["states"].split(one["tokens"].tolist())),
        list(one["numbers"].split(one["tokens"].tolist())),
        list(one["sentence"].split(one["tokens"].tolist())),
        list(zip(one["what"].split(counts), one["where"].split(counts), strict=True)),
        one["shown"],
        one["shares"],
        torch.zeros(len(one["lat"]), dtype=torch.int64),
        one["lat"].numpy(),
        one["lon"].numpy(),
    )


def settings_of(chosen: argparse.Namespace, config: str, out: str, *more: str | dict[str, Any]) -> Settings:
    here = {"out": str(chosen.runs / out), "data": {"manifest": str(chosen.cities), "scenes": str(chosen.cities)}}
    return read_settings([str(CONFIGS / config), here, {"data": {"train": LEARN}}, "train.evaluate_every=0", *more])


def trained(settings: Settings, look: Callable[[TextGeolocalizer, Manifest, Settings], Described]) -> TextGeolocalizer:
    last = Path(settings.out) / "model.safetensors"
    if not last.exists():
        Trainer(TextRecipe(settings, look=look), resume=(Path(settings.out) / "last.safetensors").exists()).run()
    return TextGeolocalizer.load(last)


def as_elsewhere(runs: Path, model: TextGeolocalizer, learn: Described) -> Described:
    """What the steps learn from: what the image's side sees of each training city if it was solved on the others. A
    model that was solved on them is surer than in any new region."""
    path, nothing = runs / "elsewhere.safetensors", torch.empty(0)
    if not path.exists():
        copy = TextGeolocalizer(model.config)
        copy.load_state_dict(model.state_dict())
        safetensors.torch.save_file({"seen": solve_sights(copy, learn).contiguous()}, path)
    seen = safetensors.torch.load_file(path)["seen"]
    return learn._replace(fine=nothing, coarse=nothing, shares=nothing, seen=seen)


# -- queries -----------------------------------------------------------------------------------


def kinds(chosen: argparse.Namespace, data: Described, name: str) -> dict[str, np.ndarray]:
    """Rows of the captions by what they are."""
    path = chosen.runs / f"{name}.kinds.json"
    if not path.exists():
        order = {place: row for row, place in enumerate(data.ids)}
        told = [
            (order[scene.place], one.text, one.heading_deg is None, one.wrong)
            for scene in scenes_of(chosen.cities, places=order)
            for one in scene.descriptions
        ]
        if [(place, text) for place, text, _, _ in told] != [tuple(caption) for caption in data.captions]:
            raise ValueError(f"{chosen.cities}: expected the descriptions that {chosen.runs} was made with, got others")
        path.write_text(json.dumps([one[2:] for one in told]))
    above, wrong = np.array(json.loads(path.read_text()), bool).T
    long = np.arange(len(above)) % 2 == 0
    words = np.array([len(caption.text.split()) for caption in data.captions])
    middle = np.median(words[long])
    return {
        "long": long,
        "short": ~long,
        "long, from above": long & above,
        "long, by somebody there": long & ~above,
        "long, the longer half": long & (words > middle),
        "long, the shorter half": long & (words <= middle),
        "long, with a wrong trait": long & wrong,
        "long, without a wrong trait": long & ~wrong,
    }


def ranks(score: Tensor, data: Described, rows: np.ndarray) -> Found:
    """Of scores [captions, places], for some of the captions."""
    at = np.flatnonzero(rows)
    return found_by_score(score[torch.from_numpy(at)], [data.captions[row].place for row in at], data.lat, data.lon)


# -- floors ------------------------------------------------------------------------------------


def pooled(data: Described) -> Tensor:
    """Mean and maximum of the frozen maps in 7 x 7 fields: [places, D]."""
    parts = []
    for maps in (data.fine, data.coarse):
        for some in maps.split(64):
            step = some.shape[-1] // 7
            parts.append(torch.cat([F.avg_pool2d(some.float(), step), F.max_pool2d(some.float(), step)], 1).flatten(1))
    count = -(-len(data.fine) // 64)
    return torch.cat([torch.cat(parts[:count]), torch.cat(parts[count:])], 1)


class Floors:
    """Linear maps of frozen features in closed form, fitted on what the model learns from."""

    NAMES = ("counts of words, linear maps", "frozen MiniLM, linear maps")

    def __init__(self, model: TextGeolocalizer, learn: Described) -> None:
        self.model = model
        wide = pooled(learn)
        self.mean, self.scale = wide.mean(0), 1 / (wide.std(0) + 1e-2)
        place = [caption.place for caption in learn.captions]
        read = [row for row, state in enumerate(learn.states) if len(state)]
        numbers = self.numbers(learn)
        standard = (wide - self.mean) * self.scale
        self.counts = closed_form(standard, place, numbers, 256, model.config.encoder.vocabulary)
        some = standard[:: -(-len(standard) // 4096)]
        values, vectors = torch.linalg.eigh(some @ some.T)
        self.axes = some.T @ (vectors[:, -768:] / values[-768:].clamp(min=1e-6).sqrt())
        moments = Moments()
        moments.add(self.means(learn)[read], (standard @ self.axes)[[place[row] for row in read]])
        self.mini = canonical_maps(moments, min(256, self.axes.shape[1]))

    def numbers(self, data: Described) -> list[Tensor]:
        tokens = self.model.tokens([caption.text for caption in data.captions])
        return [ids[:length] for ids, length in zip(tokens.id, tokens.length.tolist(), strict=True)]

    @torch.inference_mode()
    def means(self, data: Described) -> Tensor:
        """The sentence vector of the frozen encoder."""
        found_states = torch.zeros(len(data.states), self.model.config.encoder.width)
        order = np.argsort([len(state) for state in data.states], kind="stable")
        order = order[[len(data.states[row]) > 0 for row in order]]
        begin = self.model.config.encoder.layers - self.model.config.learned_layers
        for part in np.array_split(order, -(-len(order) // 64)):
            states = [data.states[row].float() for row in part]
            length = torch.tensor([len(state) for state in states])
            x = self.model.encoder.run(torch.nn.utils.rnn.pad_sequence(states, batch_first=True), length, begin)
            found_states[part] = mean_state(x, length)
        return found_states

    def scores(self, data: Described) -> Iterator[tuple[str, Tensor]]:
        """Name, and scores [captions, places]."""
        standard = (pooled(data) - self.mean) * self.scale
        image = F.normalize(standard @ self.counts.image.weight + self.counts.image.bias, dim=1)
        yield self.NAMES[0], self.counts.text_codes(self.numbers(data)) @ image.T
        text = F.normalize(self.means(data) @ self.mini.query.weight + self.mini.query.bias, dim=1)
        place = F.normalize(standard @ self.axes @ self.mini.place.weight + self.mini.place.bias, dim=1)
        yield self.NAMES[1], text @ place.T


def matched(chosen: argparse.Namespace, city: str) -> Iterator[tuple[str, Found]]:
    """The facts alone, by length, for some of a city's descriptions."""
    scenes = list(scenes_of(chosen.cities, places=Places(city)))
    matcher = SceneMatcher([scene.facts for scene in scenes])
    for nth, length in enumerate(("long", "short")):
        rank = []
        for row in range(0, len(scenes), max(1, len(scenes) // _MATCHED)):
            score = matcher.scores(scenes[row].descriptions[nth])
            rank.append(int((score > score[row]).sum()))
        yield length, Found(np.array(rank), np.full(len(rank), -1), np.full(len(rank), np.nan))


class Places:
    """All places of a city, by their names."""

    def __init__(self, city: str) -> None:
        self.city = city

    def __contains__(self, place: object) -> bool:
        return str(place).startswith(f"{self.city}-")


# -- the table ---------------------------------------------------------------------------------


def run(chosen: argparse.Namespace) -> None:
    out, runs = chosen.out, chosen.runs
    done = {(line["what"], line["seed"], line["gallery"], line["query"]) for line in lines(out)}
    manifest = Manifest.load(chosen.cities)
    cities = TEST if chosen.test else VALIDATION
    galleries = {**{name: {"city": name} for name in cities}, **({} if chosen.test else {"world": WORLD})}

    def say(what: str, seed: int, gallery: str, found_of: dict[str, Found]) -> None:
        for query, of in found_of.items():
            if (what, seed, gallery, query) in done:
                continue
            _, low, high = paired_interval((of.rank == 0).astype(float), np.zeros(len(of.rank)))
            line = {"what": what, "seed": seed, "gallery": gallery, "query": query, "recall_at_1_from": low}
            line |= {"recall_at_1_to": high, **recall(of)}
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a") as file:
                file.write(json.dumps(rounded(line)) + "\n")
            print(what, seed, gallery, query, line["recall_at_1"], line["mean_reciprocal_rank"], flush=True)
        values: dict[str, Any] = {query: one.rank for query, one in found_of.items()}
        np.savez(runs / f"{file_name(what)}.{seed}.{gallery}.npz", **values)

    see = settings_of(chosen, "text.yaml", "closed", *chosen.settings)
    model = trained(see, Kept(runs / "learn"))
    begin = {"step": {"begin": str(runs / "closed" / "model.safetensors")}}
    kept: dict[str, Described] = {}

    def learn() -> Described:
        if "learn" not in kept:
            kept["learn"] = Kept(runs / "learn")(model, places_of(manifest, LEARN, scenes=True), see)
        return kept["learn"]

    def of(name: str) -> Described:
        """A gallery, its features and all its descriptions."""
        step = {"step": {"image_rate": 1.0, "terms": list(TERMS)}}
        plain = settings_of(chosen, "text.yaml", "closed", *chosen.settings, step)
        return Kept(runs / ("held-out" if name == "world" else "cities"))(
            model, places_of(manifest, galleries[name], scenes=True), plain
        )

    def missing(what: str, seed: int) -> list[str]:
        return [name for name in galleries if not (runs / f"{file_name(what)}.{seed}.{name}.npz").exists()]

    def measure(what: str, seed: int, model: TextGeolocalizer) -> None:
        for name in missing(what, seed):
            data = of(name)
            score = all_scores(model, data, range(len(data.captions)))
            say(
                what, seed, name, {query: ranks(score, data, rows) for query, rows in kinds(chosen, data, name).items()}
            )

    floors: Floors | None = None
    for name in galleries:  # what needs no steps; a city is built once for all of it
        rows = [CLOSED, *Floors.NAMES]
        todo = [what for what in (*rows, *(f"{row}{BLIND}" for row in rows)) if name in missing(what, 0)]
        if name != "world" and name in missing("facts alone", 0):
            say("facts alone", 0, name, dict(matched(chosen, name)))
        for blind in (False, True):
            if not any(what.endswith(BLIND) == blind for what in todo):
                continue
            data = undirected(of(name), model, see) if blind else of(name)
            long = np.arange(len(data.captions)) % 2 == 0
            by = {"long": long, "short": ~long} if blind else kinds(chosen, data, name)
            score = all_scores(model, data, range(len(data.captions)))
            say(f"{CLOSED}{BLIND * blind}", 0, name, {query: ranks(score, data, some) for query, some in by.items()})
            if any(what.removesuffix(BLIND) in Floors.NAMES and what.endswith(BLIND) == blind for what in todo):
                floors = floors or Floors(model, learn())
                for what, score in floors.scores(data):
                    found_of = {query: ranks(score, data, some) for query, some in by.items()}
                    say(f"{what}{BLIND * blind}", 0, name, found_of)
    del floors
    for seed in range(chosen.seeds):
        for what, terms in VARIANTS.items():
            if not missing(what, seed):
                continue
            step = {"step": {"seed": seed, "terms": list(terms)}, "train": {"steps": chosen.steps}}
            own = settings_of(chosen, "text_region.yaml", f"{file_name(what)}.{seed}", begin, step)
            measure(what, seed, trained(own, lambda model, *_: as_elsewhere(runs, model, learn())))


def undirected(data: Described, model: TextGeolocalizer, settings: Settings) -> Described:
    """The same descriptions without the words that say where things are."""
    blind = replace(
        settings, data=replace(settings.data, directions=False), step=replace(settings.step, terms=[GLOBAL])
    )
    captions, told, *_ = of_scenes(blind, data.ids, None)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.step.bf16):  # as the others were read
        states, numbers, sentence = read_captions(model, captions)
    return data._replace(captions=captions, told=told, states=states, numbers=numbers, sentence=sentence)


def file_name(what: str) -> str:
    return what.replace(",", "").replace(" ", "-")


def rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in numbers.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(chosen: argparse.Namespace) -> None:
    """Percent; of several seeds mean and half range, of one the middle 95 % of a bootstrap over its queries."""
    read = lines(chosen.results)
    for gallery in dict.fromkeys(line["gallery"] for line in read):
        for query in dict.fromkeys(line["query"] for line in read if line["gallery"] == gallery):
            some = [line for line in read if (line["gallery"], line["query"]) == (gallery, query)]
            print(f"\n## {gallery}, {query}: {max(line['queries'] for line in some)} descriptions\n")
            print(f"| | R@1 | R@5 | R@10 | MRR | L@50 | L@100 | L@150 | R@1/5/10 of the nearest {PRIOR} |")
            print("|---|---|---|---|---|---|---|---|---|")
            for what in dict.fromkeys(line["what"] for line in some):
                seeds = [line for line in some if line["what"] == what]

                def cell(name: str, seeds: list[dict[str, Any]] = seeds) -> str:
                    values = [100 * line[name] for line in seeds if name in line]
                    if not values:
                        return ""
                    more = f" ± {np.ptp(values) / 2:.1f}" if len(values) > 1 else ""
                    if name == "recall_at_1" and len(seeds) == 1:
                        more = " [{:.1f}, {:.1f}]".format(*(100 * seeds[0][f"{name}_{end}"] for end in ("from", "to")))
                    return f"{np.mean(values):.1f}{more}"

                names = [f"recall_at_{k}" for k in FIRST]
                cells = [*map(cell, names), cell("mean_reciprocal_rank")]
                cells += [cell(f"within_{metres}_m") for metres in (50, 100, 150)]
                cells.append(" / ".join(filter(None, (cell(f"{name}_among_the_nearest_{PRIOR}") for name in names))))
                print(f"| {what} | {' | '.join(cells)} |")


def compare(chosen: argparse.Namespace) -> None:
    """Mean reciprocal rank and R@1 of one row minus another over the same descriptions of all cities, each the mean of
    its seeds: 95 %."""
    for query in ("long", "short"):
        both = []
        for what in (chosen.one, chosen.other):
            cities = []
            for name in TEST if chosen.test else VALIDATION:
                files = sorted(chosen.runs.glob(f"{file_name(what)}.[0-9].{name}.npz"))
                if not files:
                    raise FileNotFoundError(f"{chosen.runs}: expected ranks of {what!r} in {name}, got none")
                cities.append(np.mean([[1 / (1 + np.load(f)[query]), np.load(f)[query] == 0] for f in files], axis=0))
            both.append(np.concatenate(cities, axis=1))
        for nth, of in enumerate(("mean reciprocal rank", "R@1")):
            mean, low, high = paired_interval(both[0][nth], both[1][nth])
            print(f"{query}: {of} of {chosen.one} minus {chosen.other}: {mean:+.4f} ({low:+.4f} to {high:+.4f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--places", type=int, default=800)
    making.add_argument("--seed", type=int, default=8)
    running = verbs.add_parser("run")
    running.add_argument("--cities", type=Path, required=True)
    running.add_argument("--runs", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--steps", type=int, default=400, help="of the text's side, with and without each loss")
    running.add_argument("--test", action="store_true", help="the cities on which nothing was chosen")
    running.add_argument("settings", nargs="*", help="name=value for the training from scenes")
    showing = verbs.add_parser("show")
    showing.add_argument("results", type=Path)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("--runs", type=Path, required=True)
    comparing.add_argument("--test", action="store_true")
    comparing.add_argument("one", help="a row of the table")
    comparing.add_argument("other")
    chosen = parser.parse_args()
    if chosen.verb == "make":
        sizes = Sizes(satellite_px=224, panorama=(16, 64), photo=(16, 16))
        write_city(chosen.out, seed=chosen.seed, cities=12, places=chosen.places, sizes=sizes)
    else:
        {"run": run, "show": show, "compare": compare}[chosen.verb](chosen)


if __name__ == "__main__":
    main()
