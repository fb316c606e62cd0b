"""The command as a person meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from geoloc_fast.cli.run import app
from geoloc_fast.demo import summary
from geoloc_fast.models.contract import shipped_model

COMMAND = [sys.executable, "-c", "from geoloc_fast.cli import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_info_is_json() -> None:
    done = run("info")
    assert done.returncode == 0
    assert json.loads(done.stdout)["backends"]["cpu"]["available"]


def commands(group: Any = None, name: str = "") -> list[str]:
    """Every command there is, by its words."""
    import typer

    group = typer.main.get_command(app) if group is None else group
    inner = getattr(group, "commands", None)
    return [name] if inner is None else [c for n, g in inner.items() for c in commands(g, f"{name} {n}".strip())]


def test_every_command_is_there_and_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    names = set(commands())
    verbs = ("build", "add", "remove", "slice", "compact", "verify", "restore", "info", "export")
    assert names >= {
        "info", "city make", "read", "prepare", "show", "synthesize", "demo", "locate", "evaluate", "fit-confidence",
        *(f"index {verb}" for verb in verbs),
    }  # fmt: skip
    for name in names:
        with pytest.raises(SystemExit):
            app([*name.split(), "--help"], prog_name="geoloc-fast")
        said = capsys.readouterr().out
        examples = re.findall(r"^ *(?:Examples?: )?geoloc-fast (.*)", said, re.M)
        assert examples and all(example.startswith(name) for example in examples), name
        example = " ".join(examples)
        # What it shows is what there is: every option of the example is an option of the command.
        for option in re.findall(r" (--[a-z-]+)", example):
            assert option in said.replace(example, ""), f"{name}: {option}"
        for_people = ("city make", "city describe", "read", "prepare", "show", "serve", "tiles")
        if name not in ("info", *for_people):  # info is JSON always
            assert "--json" in said, name


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
    done = run("demo", "--out", str(out), "--places", "24", "--photos", "16", "--seed", "31337", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


def test_demo_locates_far_above_chance(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    metrics, _ = demo_run
    assert metrics["city"]["photos"] == 16
    chance = metrics["chance_recall_at_1"]
    for key in ("field_of_view_assumed", "field_of_view_known"):
        recall = metrics[key]
        assert recall["recall_at_1"] > 5 * chance
        assert recall["recall_at_1"] <= recall["recall_at_5"] <= recall["recall_at_10"] <= 1
        assert abs(recall["answers"]["heading_error_deg_when_right"]["mean"]) < 15


def test_demo_writes_geojson_with_longitude_first(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    metrics, out = demo_run
    assert json.loads((out / "metrics.json").read_text()) == metrics
    collection = json.loads((out / "predictions.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == 16
    for feature in collection["features"]:
        lon, lat = feature["geometry"]["coordinates"]
        properties = feature["properties"]
        assert abs(lat - properties["true_lat"]) < 0.1
        assert abs(lon - properties["true_lon"]) < 0.1
        assert 0 <= properties["heading_deg"] < 360


def test_demo_writes_a_report_of_a_sane_size(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    page = (demo_run[1] / "report.html").read_text()
    assert len(page) < 6 << 20
    assert page.count('<article class="card"') == 16
    for picture in ("photo", "matched place", "street view", "satellite, polar"):
        assert page.count(f'<img alt="{picture}" src="data:image/webp;base64,') == 16
    assert '"image_url"' in page or "ImageURL" in page  # the map has its background


README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.checkout
@pytest.mark.skipif(not README.exists(), reason="not in a checkout: there is no README to compare with")
def test_the_readme_shows_what_the_demo_prints(demo_run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    (shown,) = re.findall(r"```\n(Synthetic city .*?)```", README.read_text(), re.DOTALL)

    def skeleton(text: str) -> list[str]:
        return [re.sub(r"[+-]?\d+(\.\d+)?", "#", " ".join(line.split())) for line in text.strip().splitlines()]

    printed = f"{summary(demo_run[0])}\nWritten to demo: predictions.geojson, metrics.json, report.html, "
    printed += "index, region\n\nNext: geoloc-fast locate demo/region/city/photo/city-00005.jpg --index demo/index"
    said = skeleton(printed)
    assert [line for line in skeleton(shown) if not line.startswith("Answered")] == [
        line for line in said if not line.startswith("Answered")
    ]
    assert sum(line.startswith("Answered #% of the photos (#% correctly)") for line in skeleton(shown)) == 1


def test_interrupting_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "demo", "--out", str(out), "--places", "2000"],
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(6)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_the_model_that_ships_is_small() -> None:
    assert shipped_model().stat().st_size < 6 << 20
