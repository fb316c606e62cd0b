"""The cell model: transport, prototypes between cells, what is missing, kappa, the bundle, rows that move, recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoloc_fast.errors import BundleError
from geoloc_fast.evaluation.cells import hit_ranks, nearby_cells, oracle_recall, random_recall, recall_of
from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.models.cells import CellGeolocalizer, CellsConfig, Prototypes, Salad, fit_kappa, transport
from geoloc_fast.models.contract import Model, Photo, PlaceBatch, Text, load_model
from geoloc_fast.training.rows import AdamWithRows

LEVEL = 15
SMALL = CellsConfig(clusters=6, cluster_dim=4, global_dim=8, hidden=16, photo_size=(48, 64), tile_px=48)


def region(side: int = 4) -> np.ndarray:
    """side x side prototypes' cells round a point, uint64."""
    middle = s2.from_lat_lon(50.0, 8.0, LEVEL)
    return np.unique(s2.from_lat_lon(*grid(side), LEVEL)) if side > 1 else np.array([middle])


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(side) - side / 2) * 250.0
    east, north = np.meshgrid(at, at)
    return move_m(50.0, 8.0, east.ravel(), north.ravel())


@pytest.fixture(scope="module")
def model() -> CellGeolocalizer:
    torch.manual_seed(0)
    return CellGeolocalizer(SMALL, region()).eval()


# --- transport ---


def test_the_plan_gives_every_cluster_one_and_every_token_at_most_one() -> None:
    draw = torch.Generator().manual_seed(1)
    plan = transport(torch.randn(2, 40, 6, generator=draw) * 3, 1.0, iterations=200)
    torch.testing.assert_close(plan.sum(1), torch.ones(2, 6), rtol=1e-3, atol=1e-3)
    assert float(plan.sum(2).max()) <= 1 + 1e-5
    # Against the plain form: matrix scaling of exp(scores) in float64.
    scores = torch.randn(1, 40, 6, generator=draw)
    kernel = torch.cat([scores[0].double(), torch.full((40, 1), 0.7).double()], dim=1).exp()
    column = torch.tensor([1.0] * 6 + [34.0], dtype=torch.float64)
    for _ in range(3):
        kernel = kernel / kernel.sum(0) * column
        kernel = kernel / kernel.sum(1, keepdim=True)
    torch.testing.assert_close(transport(scores, 0.7)[0].double(), kernel[:, :6], rtol=1e-5, atol=1e-7)


def test_large_scores_stay_finite_and_half_precision_is_lifted() -> None:
    plan = transport(torch.tensor([[[60000.0, -60000.0]] * 5]).half(), 1.0)
    assert plan.dtype == torch.float32
    assert bool(plan.isfinite().all())


def test_more_tokens_than_clusters_or_it_says_so() -> None:
    with pytest.raises(ValueError, match="more tokens than clusters, got 6 tokens and 6 clusters"):
        transport(torch.zeros(1, 6, 6), 1.0)
    with pytest.raises(ValueError, match="photo_size: expected more tokens than clusters, got 12 tokens"):
        CellsConfig(clusters=12, photo_size=(48, 64))


def test_codes_have_unit_length_and_know_no_order_of_tokens() -> None:
    torch.manual_seed(0)
    head = Salad(10, clusters=5, cluster_dim=4, global_dim=6, hidden=8)
    tokens = torch.randn(3, 20, 10)
    codes = head(tokens)
    assert codes.shape == (3, head.dim) == (3, 26)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(head(tokens[:, torch.randperm(20)]), codes)


# --- prototypes ---


def test_a_prototype_at_a_centre_is_the_row_and_on_a_border_the_mean() -> None:
    torch.manual_seed(0)
    bank = Prototypes(region(), 16, LEVEL)
    rows = torch.nn.functional.normalize(bank.weight.detach(), dim=1)
    inner = bank.ids[[5]]
    at = bank.interpolated(*bank.stencil(*s2.center(inner)))
    torch.testing.assert_close(at[0], rows[5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bank.of(s2.children(inner)[0]), rows[5].expand(4, 16))
    lat, lon = s2.corners(inner)
    middle_of_edge = lat[:, :2].mean(1), lon[:, :2].mean(1)
    stencil, weights = bank.stencil(*middle_of_edge)
    near, share = stencil[0][weights[0] > 0.01], weights[0][weights[0] > 0.01]
    torch.testing.assert_close(share, torch.full((2,), 0.5), rtol=1e-2, atol=1e-2)
    expected = torch.nn.functional.normalize(rows[near].mean(0), dim=0)
    torch.testing.assert_close(bank.interpolated(stencil, weights)[0], expected, rtol=2e-2, atol=2e-2)


def test_missing_cells_drop_out_and_the_gradient_reaches_those_that_are_there() -> None:
    torch.manual_seed(0)
    ids = region()
    bank = Prototypes(ids[::2], 16, LEVEL)
    lat, lon = grid(4)
    rows, weights = bank.stencil(lat + 5e-4, lon + 5e-4)
    assert set(bank.rows(ids[1::2]).tolist()) == {-1}
    assert (weights[rows < 0] == 0).all()
    total = weights.sum(1)
    assert torch.isclose(total, torch.ones_like(total)).logical_or(total == 0).all()
    some = (weights > 0).sum(1) == 2
    bank.interpolated(rows[some][:1], weights[some][:1])[0, :3].sum().backward()
    moved = (bank.weight.grad != 0).any(1).nonzero()[:, 0]  # type: ignore[union-attr]
    assert moved.tolist() == sorted(rows[some][0][weights[some][0] > 0].tolist())
    nowhere = bank.interpolated(*bank.stencil(np.array([10.0]), np.array([10.0])))
    assert float(nowhere.norm().detach()) == 0
    assert float(bank.of(s2.from_lat_lon([10.0], [10.0], 16)).norm().detach()) == 0


def test_cells_of_another_level_are_refused() -> None:
    with pytest.raises(ValueError, match="ids: expected cells of level 15, got levels 14"):
        Prototypes(s2.parent(region(), 14), 8, LEVEL)
    with pytest.raises(ValueError, match="got levels 14, 15"):
        Prototypes(np.concatenate([region(), s2.parent(region(), 14)]), 8, LEVEL)
    with pytest.raises(ValueError, match="cell_level: expected at least prototype_level"):
        CellsConfig(prototype_level=16, cell_level=15)


# --- the model ---


def batch(ids: np.ndarray, has: list[bool]) -> PlaceBatch:
    lat, lon = s2.center(ids)
    draw = torch.Generator().manual_seed(2)
    count, nothing = len(ids), torch.empty(0)
    tiles = torch.randint(0, 256, (count, 3, 48, 48), generator=draw, dtype=torch.uint8)
    return PlaceBatch(
        tiles, torch.tensor(has), nothing, nothing, torch.zeros(count).bool(), torch.tensor(lat), torch.tensor(lon)
    )


def test_it_keeps_the_contract(model: CellGeolocalizer) -> None:
    assert isinstance(model, Model)
    (layer,) = model.layers
    assert (layer.name, layer.strip, layer.score, layer.column0_deg) == ("cell", (32, 1, 1), "dot", None)
    photos = [Photo(np.full((60, 80, 3), shade, np.uint8)) for shade in (10, 200)]
    strips = model.encode_queries(photos)["cell"].strips
    assert strips.shape == (2, 32, 1, 1)
    torch.testing.assert_close(strips.flatten(1).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.encode_queries(photos[1:])["cell"].strips[0], strips[1])
    with pytest.raises(TypeError, match="expected decoded photos, got Text"):
        model.encode_queries([Text("a mill")])


def test_a_code_is_aerial_plus_kappa_times_the_parents_prototype(model: CellGeolocalizer) -> None:
    known = s2.children(region()[3])
    elsewhere = s2.from_lat_lon([55.0], [3.0], 16)
    ids = np.concatenate([known[:2], elsewhere, elsewhere])
    given = batch(ids, [True, False, True, False])
    mean = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    model.calibrated(2.5, 0.1, mean)
    rows = model.encode_places(given)["cell"]
    assert rows.place is not None
    assert rows.place.tolist() == [0, 1, 2]  # of the last nothing is known
    codes = rows.strips.flatten(1)
    above = [model.aerial(model.tokens(given.satellite[n : n + 1], aerial=True))[0].detach() for n in (0, 2)]
    prototype = torch.nn.functional.normalize(model.prototypes.weight[3].detach(), dim=0)
    torch.testing.assert_close(codes[0], above[0] + 2.5 * prototype, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes[1], mean[0] + 2.5 * prototype, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes[2], above[1] + 2.5 * mean[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="ids: expected cells of level 16, got \\[15\\]"):
        model.codes(region(), torch.zeros(16, 32), torch.zeros(16).bool())


def test_the_bundle_keeps_everything_and_another_kappa_is_another_model(
    model: CellGeolocalizer, tmp_path: Path
) -> None:
    path = tmp_path / "cells.safetensors"
    fingerprint = model.save(path)
    again = load_model(path)
    assert isinstance(again, CellGeolocalizer)
    assert (again.kind, again.fingerprint, again.config) == ("cells", fingerprint, model.config)
    np.testing.assert_array_equal(again.prototypes.ids, model.prototypes.ids)
    photo = [Photo(np.full((48, 64, 3), 90, np.uint8))]
    torch.testing.assert_close(again.encode_queries(photo)["cell"].strips, model.encode_queries(photo)["cell"].strips)
    again.calibrated(0.5, 0.2)
    assert again.fingerprint is None
    assert again.save(path) != fingerprint
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError):
        load_model(path)


# --- kappa ---


def drawn(count: int, cells: int, weights: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Similarities, and truths drawn from softmax of their weighted sum."""
    draw = torch.Generator().manual_seed(8)
    aerial, prototype = (torch.randn(count, cells, generator=draw) * 0.2 for _ in range(2))
    share = (weights[0] * aerial + weights[1] * prototype).softmax(1)
    return aerial, prototype, torch.multinomial(share, 1, generator=draw)[:, 0]


def test_kappa_and_temperature_that_made_the_truth_are_found() -> None:
    found = fit_kappa(*drawn(4000, 60, (10.0, 25.0)))
    assert found.kappa == pytest.approx(2.5, rel=0.1)
    assert found.temperature == pytest.approx(0.1, rel=0.1)


def test_kappa_counts_photos_whose_cell_is_there() -> None:
    aerial, prototype, truth = drawn(300, 20, (10.0, 25.0))
    before = fit_kappa(aerial, prototype, truth)
    more = torch.cat([truth, torch.full((50,), -1)])
    after = fit_kappa(torch.cat([aerial, aerial[:50]]), torch.cat([prototype, prototype[:50]]), more)
    assert after.photos == before.photos == 300
    assert after.kappa == pytest.approx(before.kappa, rel=1e-4)
    with pytest.raises(ValueError, match="expected photos whose cell is in the database, got none of 300"):
        fit_kappa(aerial, prototype, torch.full((300,), -1))
    with pytest.raises(ValueError, match="aerial, prototype, truth: expected"):
        fit_kappa(aerial, prototype[:3], truth)


# --- rows that are trained ---


def test_rows_move_alone_and_stay_unit_vectors() -> None:
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(6, 4), dim=1))
    weight = torch.nn.Parameter(torch.randn(3))
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [table], "rows": True}]
    optimiser = AdamWithRows(groups, lr=0.1)
    before = table.detach().clone(), weight.detach().clone()
    rows = torch.tensor([1, 4, 1])
    for sparse in (True, False):
        optimiser.zero_grad()
        picked = torch.nn.functional.embedding(rows, table, sparse=sparse)
        (picked[:, 0].sum() + weight.sum()).backward()
        optimiser.step()
    moved = (table.detach() != before[0]).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(table.detach().norm(dim=1), torch.ones(6))
    assert (table.detach()[[1, 4], 0] < before[0][[1, 4], 0]).all()
    assert (weight.detach() < before[1]).all()
    # Row-wise Adagrad, as written down: one number per row.
    state = optimiser.state[table]["sum"]
    torch.testing.assert_close(state, torch.tensor([0, 2 * 4 / 4, 0, 0, 2 * 1 / 4, 0]))


# --- recall ---


def test_ranks_recall_oracle_and_chance() -> None:
    ids = np.sort(s2.children(s2.children(s2.from_lat_lon(50.0, 8.0, 15))).reshape(-1))
    cells = s2.center(ids)
    codes = torch.eye(16)
    photos = cells[0][:3], cells[1][:3]
    query = codes[:3].clone()
    query[2] = 0
    query[2, 9], query[2, 2] = 2.0, 1.0  # second only
    ranks = hit_ranks(query, codes, cells, photos, metres=(1.0,), most=16)
    assert ranks[:, 0].tolist() == [0, 0, 1]
    found = recall_of(ranks, (1.0,), (1, 5))
    assert found.at == {(1, 1.0): pytest.approx(2 / 3), (5, 1.0): 1.0}
    near = nearby_cells(cells, photos, (1.0, 1e6))
    assert near.tolist() == [[1, 16]] * 3
    assert oracle_recall(near, (1.0, 1e6)).at[1, 1.0] == 1.0
    assert oracle_recall(np.zeros((2, 1), np.int64), (50.0,)).at[100, 50.0] == 0.0
    chance = random_recall(near, 16, (1.0, 1e6))
    assert chance.at[1, 1.0] == pytest.approx(1 / 16)
    assert chance.at[5, 1.0] == pytest.approx(5 / 16)
    assert chance.at[1, 1e6] == 1.0
