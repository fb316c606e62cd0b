"""The runs of the paper's tables, at toy size."""

from __future__ import annotations

import json
import re
import shutil
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import paper_tables as tables
import pytest
import table_lines
import torch
from training_runs import NETWORK

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig


def test_tables_run_once_go_on_and_print(
    region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of one table at toy size, from the command line."""
    small = tables.Table("Toy", (tables.Row("aff", "aff", (9.0,), (9.0,)), tables.Row("iAFF", "ours", (8.0,), (8.0,))))
    small = replace(small, protocols=("cross",))
    views = replace(small, rows=(tables.Row("hybrid", "hybrid", (9.0,), (9.0,)),))
    monkeypatch.setattr(tables, "TABLES", {"3": small, "4": views})
    monkeypatch.setattr(tables, "ProcessPoolExecutor", _InThisProcess)
    config = tmp_path / "toy.yaml"
    toy = {
        "model": NETWORK,
        "data": {"in_memory": True, "street": "azimuth"},
        "step": {"bf16": False},
        "train": {"steps": 2, "batch": 8, "device": "cpu", "evaluate_every": 0},
    }
    config.write_text(json.dumps(toy))
    out, page = tmp_path / "runs", tmp_path / "page.md"

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tables.py", *arguments, "--out", str(out)])
        return tables.main()

    assert run("page", "--page", str(page)) == 0
    assert "No run has been made yet" in page.read_text()
    command = ("run", "3", "--manifest", str(region), "--config", str(config))
    assert run(*command) == 0
    made = table_lines.read(out / "tables.jsonl")
    assert sorted(made) == ["aff.cross.0", "ours.cross.0"]
    one = made["aff.cross.0"]
    assert one["pairs"] == 20 and str(tmp_path) not in json.dumps(one)
    (out / "tables.jsonl").write_text(json.dumps(made["ours.cross.0"]) + "\n")  # interrupted before its evaluation
    capsys.readouterr()
    assert run(*command) == 0
    assert capsys.readouterr().out.splitlines() == ["aff.cross.0: done"]
    again = table_lines.read(out / "tables.jsonl")["aff.cross.0"]
    assert again["figures"] == one["figures"] and again["settings"] == one["settings"]
    assert run(*command, "--protocol", "same") == 0 and capsys.readouterr().out == ""
    assert run("run", "3", "train.lr=0.002", *command[2:]) == 0  # every run's settings have changed
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("step ")]
    assert [line.split(": ")[1][:9] for line in said] == ["was made "] * 2 + ["done"] * 2
    other = table_lines.read(out / "tables.jsonl")["aff.cross.0"]
    assert other["settings"] != one["settings"] and other["figures"] != one["figures"]
    assert run(*command) == 0  # and back
    capsys.readouterr()
    gaps = tmp_path / "gaps"
    shutil.copytree(region, gaps)
    rows = [{**row, "street": None} if n % 2 else row for n, row in enumerate(Manifest.load(gaps).places.to_pylist())]
    Manifest.from_rows(gaps, rows, Manifest.load(gaps).photos.to_pylist()).save()
    assert run("run", "4", "--manifest", str(gaps), "--config", str(config)) == 0
    assert run("page", "--page", str(page)) == 0
    text = page.read_text()
    assert "| R@1 % | photos covered, % | R@1 where a real view | R@1 where no real view |" in text
    assert re.search(r"\| hybrid \| 1 \| .* \| 100\.0 \| \d+\.\d \|", text)
    recall = 100 * one["figures"]["recall_at_1"][0]
    assert f"| aff | 1 | {recall:.1f} [" in text and " / 9.0 |" in text
    assert "The paper's order at R@1, cross area" in text and "Not run yet" not in text
    tables.time_queries([tables.Run("aff", "cross", 0)], out, rounds=1)
    timed = table_lines.read(out / "tables.jsonl")["aff.cross.0"]
    assert timed.pop("query_ms") > 0 and timed.keys() == one.keys()


class _InThisProcess:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def submit(self, what: Any, *arguments: Any) -> Any:
        done: Any = Future()
        done.set_result(what(*arguments))
        return done


def test_every_run_of_the_tables_has_settings_and_a_model(root: Path) -> None:
    runs = {run for table in tables.TABLES.values() for run in table.runs()}
    assert {run.variant for run in runs} == set(tables.VARIANTS)
    full_size = tables.settings_of(
        tables.Run("resnet", "same", 0), root / "train/configs/tables_base.yaml", Path("m"), Path("o"), ()
    )
    assert full_size.train.steps == 10_000 and full_size.model["backbone"] == "resnet50"
    networks = set()
    for variant in sorted(tables.VARIANTS):
        made = tables.settings_of(tables.Run(variant, "cross", 2), tables.CONFIG, Path("m"), Path("o"), ())
        assert made.step.seed == 2 and made.data.evaluate == {"area": "test"}
        networks.add(json.dumps(made.model))
    with torch.device("meta"):
        for network in networks:
            Geolocalizer(GeolocalizerConfig(**json.loads(network)))
