"""Trains the geolocalizer on synthetic cities.

    python train/geoloc.py --out model.safetensors --seconds 1200

Every evaluation is on a city that training never sees, and writes the model, atomically, and a line
to the log (the model's name with .jsonl). Ctrl-C stops; the last model written stays whole. Numbers
on synthetic cities say nothing about real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from geoloc_fast import StripBank, azimuth_match, polar_resample, shift_to_heading, strip_topk
from geoloc_fast.data.augment import Augmentation, change_colours_of_batch, turn_strips
from geoloc_fast.data.city import make_city
from geoloc_fast.data.cylindrical import to_cylindrical
from geoloc_fast.geo import great_circle_m
from geoloc_fast.losses import info_nce, shift_cross_entropy
from geoloc_fast.metrics import heading_error_deg, recall_at_k
from geoloc_fast.models import IMAGE_MEAN, IMAGE_STD, Geolocalizer, GeolocalizerConfig

THRESHOLD_M = 25.0
AUGMENT = Augmentation(brightness=0.3, contrast=0.3, saturation=0.6, tint=0.1, grey=0.0)
FRESH_SEED = 10_000  # the cities of evaluation begin here, those of training at 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the model, *.safetensors")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs/small.json")
    parser.add_argument("--seconds", type=float, default=1200, help="of training, data not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cities", type=int, default=6)
    parser.add_argument("--places", type=int, default=700, help="in each training city")
    parser.add_argument("--test-places", type=int, default=300, help="in the unseen city")
    parser.add_argument("--cache", type=Path, help="folder that keeps the cities between runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes that make cities")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--variants", type=int, default=6, help="reprojections of each photo")
    parser.add_argument("--no-panorama", type=float, default=0.2, help="share of places")
    parser.add_argument("--agreement", type=float, default=0.3, help="weight of that loss")
    parser.add_argument("--heading", type=float, default=1.0, help="weight of that loss")
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--half", action="store_true", help="store the model in float16")
    return parser.parse_args()


# -- data --------------------------------------------------------------------------------------


@dataclass
class Views:
    """Cities as the network sees them; images uint8 `[N, 3, H, W]`, one frame for all."""

    city: Tensor  # [N], which of the cities
    lat: Tensor
    lon: Tensor
    polar: Tensor
    panorama: Tensor
    has_panorama: Tensor  # bool [N]
    photo_lat: Tensor
    photo_lon: Tensor
    heading_deg: Tensor
    photo: Tensor  # [N, V, 3, H, w], each photo reprojected in V ways, zero beyond its width
    photo_width: Tensor  # [N, V]
    mirrored: Tensor  # bool [N, V]

    def __len__(self) -> int:
        return len(self.lat)


City = dict[str, np.ndarray]  # the fields of CityViews that training needs

FIELDS = (
    *("lat", "lon", "satellite", "panorama", "photo", "photo_lat", "photo_lon", "heading_deg", "fov_deg"),
    *("street_missing", "street_heading_known", "street_column0_deg"),
)


def load_cities(seeds: range, places: int, config: GeolocalizerConfig, cache: Path | None, jobs: int) -> list[City]:
    tasks = [(seed, places, config.image_size, cache) for seed in seeds]
    with ProcessPoolExecutor(min(jobs, len(tasks))) as pool:
        return list(tqdm(pool.map(_load_city, tasks), total=len(tasks), desc="cities"))


def _load_city(task: tuple[int, int, tuple[int, int], Path | None]) -> City:
    seed, places, size, cache = task
    path = cache and cache / f"city_{seed}_{places}_{size[0]}x{size[1]}.npz"
    if path and path.exists():
        with np.load(path) as stored:
            return {name: stored[name] for name in FIELDS}
    views = make_city(seed, places=places, panorama_size=size)
    city = {name: getattr(views, name) for name in FIELDS}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **city)
        partial.replace(path)
    return city


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def prepare(cities: list[City], config: GeolocalizerConfig, fovs: list[list[tuple[float, float, bool]]]) -> Views:
    """`fovs[n]` lists the ways to reproject photo n: what share of its width to keep, the factor
    on the assumed field of view (0: the true one is known), and whether to mirror it."""
    rows, columns = config.image_size
    photos = [photo for city in cities for photo in city["photo"]]
    true_fov = np.concatenate([city["fov_deg"] for city in cities])
    count, ways = len(photos), len(fovs[0])
    reprojected = [
        [
            reproject(photos[n], true_fov[n], keep, factor * config.assumed_fov_deg, mirror, config)
            for keep, factor, mirror in fovs[n]
        ]
        for n in tqdm(range(count), desc="photos")
    ]
    width = torch.tensor([[way.shape[1] for way in photo] for photo in reprojected])
    photo = torch.zeros(count, ways, 3, rows, int(width.max()), dtype=torch.uint8)
    for n in range(count):
        for v, way in enumerate(reprojected[n]):
            photo[n, v, :, :, : way.shape[1]] = torch.from_numpy(way).permute(2, 0, 1)
    polar = [
        polar_resample(channels_first(part), (rows, columns), column0_deg=config.column0_deg)
        for city in cities
        for part in np.array_split(city["satellite"], math.ceil(len(city["lat"]) / 64))
    ]

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([city[name] for city in cities]))

    # Panoramas come in frames of their own; rolling brings them into the model's. One whose heading
    # is unknown would have to be calibrated first, so it counts as missing here.
    turn = (config.column0_deg - joined("street_column0_deg")) / 360 * columns
    panorama = torch.cat([channels_first(city["panorama"]) for city in cities])
    panorama = turn_strips(panorama, turn.round().long(), torch.zeros(count, dtype=torch.bool), column0_deg=0.0)

    return Views(
        city=torch.cat([torch.full((len(city["lat"]),), i) for i, city in enumerate(cities)]),
        lat=joined("lat"),
        lon=joined("lon"),
        polar=torch.cat(polar),
        panorama=panorama,
        has_panorama=joined("street_heading_known") & ~joined("street_missing"),
        photo_lat=joined("photo_lat"),
        photo_lon=joined("photo_lon"),
        heading_deg=joined("heading_deg"),
        photo=photo,
        photo_width=width,
        mirrored=torch.tensor([[mirror for _, _, mirror in ways] for ways in fovs]),
    )


def reproject(
    photo: np.ndarray,
    fov_deg: float,
    keep: float,
    assumed_deg: float,
    mirror: bool,
    config: GeolocalizerConfig,
) -> np.ndarray:
    height, width = photo.shape[:2]
    cut = round(width * (1 - keep) / 2), round(height * (1 - keep) / 2)
    kept = photo[cut[1] : height - cut[1], cut[0] : width - cut[0]]
    tangent = math.tan(math.radians(fov_deg) / 2) * kept.shape[1] / width
    fov_deg = assumed_deg or 2 * math.degrees(math.atan(tangent))
    if mirror:
        kept = np.ascontiguousarray(kept[:, ::-1])
    return to_cylindrical(np.ascontiguousarray(kept), fov_deg, size=config.image_size)


def random_fovs(count: int, ways: int, seed: int) -> list[list[tuple[float, float, bool]]]:
    """Half of the reprojections know the field of view, half assume one, roughly."""
    rng = np.random.default_rng(seed)
    return [
        [
            (
                rng.uniform(0.75, 1.0) if rng.random() < 0.5 else 1.0,
                rng.uniform(0.9, 1.1) if v % 2 else 0.0,
                bool(rng.random() < 0.5),
            )
            for v in range(ways)
        ]
        for _ in range(count)
    ]


# -- one batch ---------------------------------------------------------------------------------


@dataclass
class Batch:
    polar: Tensor  # normalised float
    panorama: Tensor
    has_panorama: Tensor  # bool [B]
    photo: Tensor
    photo_width: Tensor  # on the CPU
    false_negative: Tensor  # bool [B, B], photo to another place in range
    same_place: Tensor  # bool [B, B], place to another place in range
    true_shift: Tensor  # fractional strip column where each photo lies in its own place


def batches(views: Views, config: GeolocalizerConfig, size: int, device: str) -> Iterator[Batch]:
    """Random batches without end. Geometry stays true: mirrored photos meet mirrored places, and a
    place's two images are rolled together."""
    columns, frame = config.image_size[1], {"column0_deg": config.column0_deg}
    cell = columns // config.strip[2]
    strip_width = (views.photo_width + cell // 2) // cell
    ways = [(strip_width == n).nonzero() for n in strip_width.unique()]
    while True:
        # Photos of one strip width together: the network then sees few shapes, and convolution
        # libraries prepare code for every new one.
        parts = [part for way in ways for part in way[torch.randperm(len(way))].split(size)]
        for i in torch.randperm(len(parts)):
            pick, way = parts[i].unbind(1)
            if len(pick) < size:
                continue
            mirrored = views.mirrored[pick, way]
            turn = torch.randint(columns, (size,))
            heading = torch.where(mirrored, -1, 1) * views.heading_deg[pick]
            width = views.photo_width[pick, way]
            left = ((heading - config.column0_deg) / 360 * columns - turn) - width / 2
            city, lat, lon = views.city[pick], views.lat[pick], views.lon[pick]
            same_city = (city[:, None] == city) & ~torch.eye(size, dtype=torch.bool)
            photo_m = great_circle_m(views.photo_lat[pick, None], views.photo_lon[pick, None], lat, lon)
            place_m = great_circle_m(lat[:, None], lon[:, None], lat, lon)
            yield Batch(
                polar=varied(turn_strips(views.polar[pick], turn, mirrored, **frame).to(device)),
                panorama=varied(turn_strips(views.panorama[pick], turn, mirrored, **frame).to(device)),
                has_panorama=views.has_panorama[pick].to(device),
                photo=varied(views.photo[pick, way].to(device)),
                photo_width=width,
                false_negative=((photo_m <= THRESHOLD_M) & same_city).to(device),
                same_place=((place_m <= THRESHOLD_M) & same_city).to(device),
                true_shift=(left / columns * config.strip[2]) % config.strip[2],
            )


def varied(images: Tensor) -> Tensor:
    """Colours drawn anew for every image, then normalised."""
    x = change_colours_of_batch(images, AUGMENT)
    mean = torch.tensor(IMAGE_MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=x.device).view(1, 3, 1, 1)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def circular_distance(a: Tensor, b: Tensor, turn: int) -> Tensor:
    return ((a - b + turn / 2) % turn - turn / 2).abs()


# -- evaluation --------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(model: Geolocalizer, views: Views, device: str) -> dict[str, float]:
    """All photos of a city against all its places. Way 0 of `views` has the field of view unknown,
    way 1 known."""
    config = model.config
    columns = config.strip[2]
    model.eval()
    strips = {
        "": torch.cat(
            [
                model.encode_place(p.to(device), q.to(device), has_panorama=has.to(device)).cpu()
                for p, q, has in zip(
                    views.polar.split(64), views.panorama.split(64), views.has_panorama.split(64), strict=True
                )
            ]
        ),
        "_satellite_only": torch.cat([model.encode_place(p.to(device)).cpu() for p in views.polar.split(64)]),
    }
    result = {}
    for source, places in strips.items():
        bank = StripBank.pack(places, column0_deg=config.column0_deg)
        for way, known in enumerate(("", "_fov_known")):
            encoded = [
                model.encode_photo(photo.to(device), width)
                for photo, width in zip(views.photo[:, way].split(64), views.photo_width[:, way].split(64), strict=True)
            ]
            widest = max(strip.strips.shape[-1] for strip in encoded)
            query = torch.cat(
                [torch.nn.functional.pad(e.strips, (0, widest - e.strips.shape[-1])).cpu() for e in encoded]
            )
            width = torch.cat([e.width for e in encoded]).cpu()
            found = strip_topk(query, bank, 10, query_width=width)
            recall = recall_at_k(
                found.index,
                query_lat=views.photo_lat,
                query_lon=views.photo_lon,
                lat=views.lat,
                lon=views.lon,
                k=(1, 5, 10),
                threshold_m=THRESHOLD_M,
            )
            # The window in the photo's own place, whether or not that place was found.
            own = torch.cat(
                [
                    azimuth_match(q[None], p[None], query_width=w[None]).shift[0]
                    for q, p, w in zip(query, places, width, strict=True)
                ]
            )
            heading = shift_to_heading(own, width, columns, column0_deg=config.column0_deg)
            error = heading_error_deg(heading, views.heading_deg)
            within = error.abs() <= 360 / columns
            name = source + known
            result |= {f"recall_at_{k}{name}": round(v, 4) for k, v in recall.at.items()}
            result[f"heading_within_a_bin{name}"] = round(within.double().mean().item(), 4)
            result[f"heading_bias_deg{name}"] = round(error[within].mean().item(), 2)
    return result


# -- training ----------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    config = GeolocalizerConfig.from_json(args.config.read_text())
    cities = load_cities(range(1, 1 + args.cities), args.places, config, args.cache, args.jobs)
    fresh = load_cities(range(FRESH_SEED, FRESH_SEED + 1), args.test_places, config, args.cache, args.jobs)
    count = sum(len(city["lat"]) for city in cities)
    views = prepare(cities, config, random_fovs(count, args.variants, args.seed))
    test = prepare(fresh, config, [[(1.0, 1.0, False), (1.0, 0.0, False)]] * len(fresh[0]["lat"]))

    model = Geolocalizer(config).to(args.device, memory_format=torch.channels_last)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": args.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{config.backbone}, {size:.2f} M parameters, {count} places in {len(cities)} cities")

    log = args.out.with_suffix(".jsonl").open("w")
    source = batches(views, config, args.batch, args.device)
    seen, evaluated, step = 0.0, 0, 0
    sums: dict[str, float] = {}
    bar = tqdm(total=round(args.seconds), unit="s")
    try:
        while seen < args.seconds:
            start = time.perf_counter()
            progress = seen / args.seconds
            rate = min(progress / 0.03, 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimiser.param_groups:
                group["lr"] = args.lr * max(rate, 1e-3)
            numbers = train_step(model, optimiser, next(source), args)
            step += 1
            if not math.isfinite(numbers["loss"]):
                raise SystemExit(f"loss is {numbers['loss']} at step {step}; {args.out} is kept")
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + value
            sums["steps"] = sums.get("steps", 0.0) + 1
            took = time.perf_counter() - start
            bar.update(round(seen + took) - bar.n)
            bar.set_postfix(step=step, **{k: f"{numbers[k]:.2f}" for k in ("loss", "agreement", "heading", "right")})
            seen += took
            if seen >= args.seconds * (evaluated + 1) / args.evaluations:
                evaluated = int(seen * args.evaluations / args.seconds)  # a stall may skip some
                line = {"step": step, "seconds": round(seen, 1), "places": step * args.batch}
                steps = sums.pop("steps")
                line |= {f"train_{name}": round(v / steps, 4) for name, v in sums.items()}
                line |= evaluate(model, test, args.device)
                sums = {}
                model.save(args.out, dtype=torch.float16 if args.half else torch.float32)
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.write(json.dumps(line))
    except KeyboardInterrupt:
        written = f"{args.out} is as evaluation {evaluated} left it" if evaluated else "nothing was written"
        bar.write(f"stopped at step {step}; {written}")
    finally:
        bar.close()
        log.close()


def train_step(
    model: Geolocalizer, optimiser: torch.optim.Optimizer, batch: Batch, args: argparse.Namespace
) -> dict[str, float]:
    """InfoNCE through the window that the model selects, and two losses that get it going: from
    scratch nearly every selected window is wrong, and InfoNCE alone then teaches next to nothing.
    The two sources of a place must agree as they lie (both are in one frame), and the photo's window
    must be where its heading says."""
    model.train()
    size = len(batch.polar)
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=not args.fp32):
        above, street = model.encoder(torch.cat((batch.polar, batch.panorama)), circular=True).chunk(2)
        used = batch.has_panorama & (torch.rand(size, device=above.device) >= args.no_panorama)
        strips = model.fusion(above, torch.where(used[:, None, None, None], street, above))
        query = model.encode_photo(batch.photo, batch.photo_width)
    match = azimuth_match(query.strips, strips, query_width=query.width, select="gumbel", scale=model.scale)
    loss = info_nce(match.score, temperature=model.temperature, mask=batch.false_negative)
    both = batch.has_panorama
    agreement = info_nce(
        above[both].flatten(1) @ street[both].flatten(1).T,
        temperature=model.temperature,
        mask=batch.same_place[both][:, both],
    )
    heading = shift_cross_entropy(
        query.strips,
        strips,
        batch.true_shift.to(strips),
        query_width=query.width,
        temperature=model.temperature,
    )
    total = loss + args.heading * heading
    if both.any():
        total = total + args.agreement * agreement
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    columns = model.config.strip[2]
    window = circular_distance(match.shift.diagonal().cpu(), batch.true_shift, columns)
    return {
        "loss": loss.item(),
        "agreement": agreement.item(),
        "heading": heading.item(),
        "right": (match.score.argmax(1).cpu() == torch.arange(size)).double().mean().item(),
        "true_window": (window <= 1).double().mean().item(),
        "scale": model.scale.item(),
        "temperature": model.temperature.item(),
    }


if __name__ == "__main__":
    train(arguments())
