"""The models that ship: by name, by the index that was made with one, and what the one for real photos may say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.cli import main
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.models.contract import SHIPPED, load_model, model_path, shipped_model
from geoloc_fast.models.layered import EYES, Layered


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoloc-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return call


def test_names_and_sizes() -> None:
    paths = [shipped_model(name) for name in SHIPPED]
    assert sum(path.stat().st_size for path in paths) < 12 << 20
    assert model_path() == paths[0]
    assert model_path("real") == shipped_model("real")
    assert model_path("./real.safetensors") == Path("real.safetensors")
    assert model_path(fingerprint=load_model("real").fingerprint) == shipped_model("real")
    assert model_path(fingerprint="of another") == paths[0]
    with pytest.raises(ValueError, match="name: expected one of"):
        shipped_model("large")


def test_the_model_for_real_photos_says_what_it_is_made_of() -> None:
    model = load_model("real")
    assert isinstance(model, Layered)
    assert (model.name, set(model.config.eyes)) == ("real", set(EYES))
    assert set(model.config.provenance) == {"backbone", "maps", "statistics"}
    assert "Apache-2.0" in model.config.provenance["backbone"]
    assert "CC0" in model.config.provenance["statistics"]


def test_the_model_for_cities_has_two_layers_of_one_heading() -> None:
    model = load_model("city")
    assert isinstance(model, Layered)
    assert [layer.name for layer in model.layers] == ["street", "satellite"]
    assert sum(min(layer.scanned_rows, 1 if layer.name == "street" else 19) for layer in model.layers) == 4
    assert set(model.config.provenance) == {"backbone", "maps", "kinds"}
    assert "synthetic" in model.trained_on
    confidence = Confidence.load(Confidence.path_for(shipped_model("city")), model=model.fingerprint)
    assert set(confidence.layers) == {"street", "satellite"} and 0.5 < confidence.threshold < 1


def test_it_finds_nothing_located_before_a_confidence(run: Any, tmp_path: Path) -> None:
    """Candidates in their order, no probability; the index knows its model; stderr says how to get further."""
    assert not Confidence.path_for(shipped_model("real")).exists()
    region = write_city(
        tmp_path / "city", seed=4, cities=1, places=5, sizes=Sizes(128, (64, 256), (96, 128)), capture=TIDY
    )
    code, _, _ = run("index", "build", region.root, tmp_path / "index", "--model", "real")
    assert code == 0
    photo = region.root / region.photos["image"][0].as_py()
    code, out, err = run("locate", photo, "--index", tmp_path / "index", "--least-probability", 0, "--json")
    (answer,) = json.loads(out)
    assert code == 0
    assert answer["status"] == "unverified"
    assert (answer["lat"], answer["lon"], answer["probability"], answer["radius_m"]) == (None,) * 4
    assert len(answer["candidates"]) >= 3
    assert all(candidate["probability"] is None for candidate in answer["candidates"])
    assert answer["model"] == "real"
    assert "fit-confidence" in err
    assert "say nothing about real places" not in err
    code, out, _ = run("locate", photo, "--index", tmp_path / "index")
    assert "unverified" in out
    assert "maybe 1" in out
