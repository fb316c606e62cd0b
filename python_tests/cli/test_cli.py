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


def test_interrupting_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "demo", "--out", str(out), "--places", "200"],
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not any(out.rglob("*.jpg")) and process.poll() is None:  # until it makes the city
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_the_model_that_ships_is_small() -> None:
    assert shipped_model().stat().st_size < 6 << 20
