"""Which street views an experiment counts."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import configured, network

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.training.recipes.geolocalizer.evaluate import evaluate
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_views


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
    data = configured(region, tmp_path / "run", "data.views=hybrid").data
    found = evaluate(network(), chosen_views(manifest, "hybrid"), data, torch.device("cpu"))
    assert set(found["assumed"]["by"]["street_view"]) == {"available", "none"}
