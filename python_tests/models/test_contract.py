"""A model that the package has never heard of goes all the way: build, locate, evaluate, fit-confidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from geoloc_fast.cli import main
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import BundleError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.locate.answers import as_dict, as_features, as_text
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.bundle import load_bundle, write_bundle
from geoloc_fast.models.contract import (
    KINDS,
    AzimuthColumns,
    Photo,
    PlaceBatch,
    PlaceInput,
    Query,
    QueryInput,
    Text,
    check_layers,
    load_model,
)

PLACES = 40


class Colours(torch.nn.Module):
    """Mean colour of the street view, and that of the satellite image: two codes of one column, without heading."""

    kind, name, trained_on = "colours", "colours", "nothing"
    layers = (
        Layer("street", (3, 1, 1), weight=1.0, absent=-0.5),
        Layer("above", (3, 1, 1), weight=0.25, absent=-0.5),
    )
    place_input = PlaceInput(satellite_px=16, panorama_size=(16, 64))
    query_input = QueryInput(("photo", "columns"), (16, 64))
    fingerprint: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.grey = torch.nn.Parameter(torch.full((3,), 127.5))

    def codes(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 1, 1] of uint8 [n, 3, h, w]."""
        code = images.float().mean((2, 3)) - self.grey
        return torch.nn.functional.normalize(code, dim=1)[:, :, None, None]

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        street, above = batch.has_panorama.nonzero().squeeze(1), batch.has_satellite.nonzero().squeeze(1)
        return {
            "street": Rows(self.codes(batch.panorama[street]), street.numpy()),
            "above": Rows(self.codes(batch.satellite[above]), above.numpy()),
        }

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        images = []
        for query in queries:
            image = query.columns if isinstance(query, AzimuthColumns) else query.image
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
        codes = torch.cat([self.codes(image) for image in images])
        return {"street": QueryStrips(codes), "above": QueryStrips(codes)}

    @classmethod
    def load(cls, path: Path, *, device: torch.device) -> Colours:
        return load_bundle(path, cls.kind, lambda config: cls()).to(device)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(KINDS, "colours", Colours.load)
    path = tmp_path / "colours.safetensors"
    write_bundle(path, Colours.kind, "{}", Colours().state_dict(), torch.float32)
    return path


def region(folder: Path, positions: bool) -> Manifest:
    """Places of one colour each; a third of their photos are of a colour that lies between two places."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    places, photos = [], []
    for n in range(PLACES):
        colour = rng.integers(20, 235, 3)
        seen = colour if n % 3 else (colour + rng.integers(-90, 90, 3)).clip(0, 255)
        for name, shown, size in (("street", colour, (16, 64)), ("above", colour, (16, 16)), ("photo", seen, (48, 64))):
            image = np.broadcast_to(shown, (*size, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f"{name}{n}.png"), image[..., ::-1])
        where = {"lat": 48 + 0.001 * n, "lon": 11.0} if positions else {}
        places.append(
            {"id": f"p{n}", **where, "satellite": f"above{n}.png"}
            | ({"street": f"street{n}.png", "street_column0_deg": 180.0} if n != 3 else {})
        )
        photos.append({"id": f"q{n}", "image": f"photo{n}.png", "place": f"p{n}", "heading_deg": 90.0, **where})
    manifest = Manifest.from_rows(folder, places, photos)
    manifest.save()
    return manifest


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["geoloc-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("positions", [True, False])
def test_a_toy_model_goes_all_the_way(
    bundle: Path, tmp_path: Path, positions: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, index = region(tmp_path / "region", positions), tmp_path / "index"
    with_model = ("--model", bundle)
    code, out, _ = run(monkeypatch, capsys, "index", "build", manifest.root, index, *with_model, "--json")
    assert code == 0 and json.loads(out)["added"] == PLACES
    opened = PlaceIndex.open(index)
    assert [layer.name for layer in opened.layers] == ["street", "above"]

    code, out, _ = run(
        monkeypatch, capsys, "locate", manifest.root / "photo1.png", "--index", index, *with_model, "--json"
    )
    (answer,) = json.loads(out)
    first = answer["candidates"][0]
    assert code == 0 and first["key"] == "p1" and first["heading_deg"] is None
    assert (first["lat"] is None) == (not positions)
    assert (answer["model"], answer["trained_on"], answer["index_commit"]) == ("colours", "nothing", opened.commit)

    code, out, _ = run(monkeypatch, capsys, "fit-confidence", manifest.root, "--index", index, *with_model, "--json")
    assert code == 0 and Confidence.path_for(bundle).exists()
    code, out, _ = run(monkeypatch, capsys, "evaluate", manifest.root, "--index", index, *with_model, "--json")
    found = json.loads(out)["field_of_view_unknown"]
    assert code == 0 and found["recall_at_1"] > 0.6 and found["photos"] == PLACES
    assert found["heading_within_22_5_deg"] is None and found["mean_log_rank"] < 1
    assert found["photos_with_no_place_in_range"] == 0


def test_an_unknown_heading_or_position_is_never_north_or_nan(bundle: Path, tmp_path: Path) -> None:
    model = load_model(bundle)
    manifest = region(tmp_path / "region", False)
    from geoloc_fast.region.encode import build_index

    build_index(tmp_path / "index", model, manifest)
    (answer,) = Locator(PlaceIndex.open(tmp_path / "index"), model).locate([manifest.root / "photo1.png"])
    assert answer.neighbours is not None and np.isnan(answer.neighbours.heading_deg).all()
    assert all(candidate.heading_deg is None and candidate.lat is None for candidate in answer.candidates)
    assert as_dict(answer)["heading_deg"] is None and as_dict(answer)["lat"] is None
    assert as_features(answer)[0]["geometry"] is None
    for form in ("table", "json", "csv", "geojson", "kml"):
        assert "nan" not in as_text([answer], form).lower().replace("provenance", "")


def test_what_a_model_does_not_take_is_refused(bundle: Path, tmp_path: Path) -> None:
    model = load_model(bundle)
    from geoloc_fast.region.encode import build_index

    build_index(tmp_path / "index", model, region(tmp_path / "region", True))
    locator = Locator(PlaceIndex.open(tmp_path / "index"), model)
    with pytest.raises(ValueError, match="model colours takes photo and columns, got text"):
        next(locator.locate([Text("a white church")]))
    with pytest.raises(TypeError, match="expected columns uint8"):
        next(locator.locate([AzimuthColumns(np.zeros((8, 8, 3), np.uint8))]))
    answer = next(locator.locate([Photo(np.full((48, 64, 3), 200, np.uint8), fov_deg=70.0)]))
    assert (answer.fov_deg, answer.fov_from) == (70.0, "given")


def test_what_a_model_of_ones_own_gets_wrong_is_said_plainly(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoloc_fast.region.encode import build_index

    manifest = region(tmp_path / "region", True)
    with pytest.raises(ValueError, match="got a new 'colours' model without a fingerprint; save it"):
        build_index(tmp_path / "index", Colours(), manifest)
    assert not (tmp_path / "index").exists()
    model, right = load_model(bundle), Colours.encode_places
    for step in (-1, 1000):

        def wrong(self: Colours, batch: PlaceBatch, step: int = step) -> dict[str, Rows]:
            found = right(self, batch)
            return {"street": Rows(found["street"].strips, np.asarray(found["street"].place) + step)}

        monkeypatch.setattr(Colours, "encode_places", wrong)
        with pytest.raises(
            ValueError, match=r"rows\['street'\]\.place of model colours: expected positions in a batch"
        ):
            build_index(tmp_path / "index", model, manifest)


def test_a_layer_in_which_no_query_has_anything_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Headed(Colours):
        """Its second layer knows headings, and photos have nothing in it."""

        kind = "headed"
        layers = (Colours.layers[0], Layer("above", (3, 1, 4), column0_deg=0.0))

        def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
            found = super().encode_places(batch)
            return found | {"above": found["above"]._replace(strips=found["above"].strips.repeat(1, 1, 1, 4))}

        def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
            return {"street": super().encode_queries(queries)["street"]}

    from geoloc_fast.region.encode import build_index

    monkeypatch.setitem(KINDS, "headed", Headed.load)
    write_bundle(tmp_path / "headed.safetensors", "headed", "{}", Headed().state_dict(), torch.float32)
    model, manifest = load_model(tmp_path / "headed.safetensors"), region(tmp_path / "region", True)
    build_index(tmp_path / "index", model, manifest)
    (answer,) = Locator(PlaceIndex.open(tmp_path / "index"), model).locate([manifest.root / "photo1.png"])
    assert answer.candidates[0].key == "p1" and answer.candidates[0].heading_deg is None


def test_a_bundle_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "strange.safetensors"
    write_bundle(path, "strange", "{}", Colours().state_dict(), torch.float32)
    with pytest.raises(BundleError, match=r"expected a model of kind .*geolocalizer.*, got 'strange'"):
        load_model(path)
    safetensors.torch.save_file(Colours().state_dict(), path, {"format": "elsewhere"})
    with pytest.raises(BundleError, match="expected a model bundle of this package"):
        load_model(path)


def test_layers_that_cannot_share_a_heading_are_refused() -> None:
    here, there = Layer("a", (1, 1, 16), column0_deg=180.0), Layer("b", (1, 1, 16), column0_deg=0.0)
    with pytest.raises(ValueError, match="one width and column0_deg"):
        check_layers([here, there])
    with pytest.raises(ValueError, match="different names"):
        check_layers([here, here])
    with pytest.raises(ValueError, match="at least one"):
        check_layers([])
    check_layers([here, Layer("c", (1, 1, 1))])
