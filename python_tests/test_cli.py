"""The command as a person meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geoloc_fast.demo import default_model

COMMAND = [sys.executable, "-c", "from geoloc_fast.cli import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_info_is_json() -> None:
    done = run("info")
    assert done.returncode == 0
    assert json.loads(done.stdout)["backends"]["cpu"]["available"]


def test_without_arguments_it_explains_itself() -> None:
    done = run()
    assert done.returncode == 0
    assert "demo" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--nope"], ["nope"], ["demo", "--nope"], ["demo", "--places", "1"], ["demo", "--places", "many"], ["info", "x"]],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--help" in done.stderr


def test_a_missing_model_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = run("demo", "--model", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "none.safetensors" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:  # type: ignore[type-arg]
    out = tmp_path_factory.mktemp("demo")
    done = run("demo", "--out", str(out), "--places", "60", "--photos", "40", "--seed", "31337", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


def test_demo_locates_far_above_chance(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    metrics, _ = demo_run
    assert metrics["city"]["photos"] == 40
    chance = metrics["chance_recall_at_1"]
    for key in ("field_of_view_assumed", "field_of_view_known"):
        recall = metrics[key]["recall"]
        assert recall["recall_at_1"] > 5 * chance
        assert recall["recall_at_1"] <= recall["recall_at_5"] <= recall["recall_at_10"] <= 1
        assert abs(metrics[key]["heading_error_deg_when_right"]["mean"]) < 15


def test_demo_writes_geojson_with_longitude_first(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    metrics, out = demo_run
    assert json.loads((out / "metrics.json").read_text()) == metrics
    collection = json.loads((out / "predictions.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == 40
    for feature in collection["features"]:
        lon, lat = feature["geometry"]["coordinates"]
        properties = feature["properties"]
        assert abs(lat - properties["true_lat"]) < 0.1
        assert abs(lon - properties["true_lon"]) < 0.1
        assert 0 <= properties["heading_deg"] < 360


def test_report_needs_no_network(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    page = (demo_run[1] / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "url(" not in page
    assert "@import" not in page


def test_interrupting_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "demo", "--out", str(out), "--places", "2000"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(6)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert not out.exists() or not list(out.iterdir())


def test_the_model_that_ships_is_small() -> None:
    assert default_model().stat().st_size < 6 << 20
