"""The examples run, and the notebook from its first cell to its last."""

from __future__ import annotations

import importlib.util
import json
import math
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoloc_fast.models.contract import KINDS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="not in a checkout: there are no examples"),
    pytest.mark.usefixtures("one_thread"),
]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_operators_train_two_networks() -> None:
    assert loaded("operators_in_training").main() > 0.8


def test_a_region_comes_out_of_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoom, lat, lon = 19, 48.0, 11.0
    x = int((lon + 180) / 360 * 2**zoom)
    y = int((1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**zoom)
    rng = np.random.default_rng(0)
    for right in range(3):
        for down in range(3):
            path = tmp_path / "tiles" / str(zoom) / str(x + right) / f"{y + down}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(photo)
    answer = loaded("own_region_from_tiles").main(tmp_path / "tiles", photo, tmp_path / "out", places="grid:40")
    said = capsys.readouterr().out
    assert "places, one row each: about" in said and "left out, where the imagery has holes" in said
    assert abs(answer.candidates[0].lat - lat) < 0.01 and abs(answer.candidates[0].lon - lon) < 0.01


def test_the_client_asks_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from served_town import Running, make_served, photo_bytes

    from geoloc_fast.serve.app import Service

    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photo_bytes(1))
    running = Running(Service({"town": make_served(tmp_path / "index", 20)}))
    try:
        monkeypatch.setattr("sys.argv", ["service_client.py", running.url, str(photo)])
        runpy.run_path(str(EXAMPLES / "service_client.py"), run_name="__main__")
        said = capsys.readouterr().out.splitlines()
        assert said[0] in ("located", "unknown") and len(said) == 4 and said[1].startswith("1  48.0")
        with pytest.raises(SystemExit, match="422: candidates"):
            loaded("service_client").locate(running.url, photo, candidates="1000000")
    finally:
        running.close()


def test_the_notebook_runs_from_its_first_cell_to_its_last(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "locate.ipynb").read_text())
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "m away" in said and "bytes" in said and "synthetic cities" in said


def test_a_model_of_ones_own_by_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "edges", None)  # what it adds is taken back
    assert loaded("own_model").main(tmp_path) >= 4 / 24  # 8 of 24, where chance is 1


@pytest.mark.slow
def test_cells_of_a_continent(tmp_path: Path) -> None:
    assert 0 < loaded("cells_of_a_continent").main(tmp_path) < 5_000_000


@pytest.mark.slow
def test_a_text_finds_a_place(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    answer = loaded("text_finds_a_place").main(tmp_path)
    assert answer.candidates[0].key and answer.candidates[0].heading_deg is None  # it was described from above
