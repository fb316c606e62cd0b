"""Parsers under inputs that a coverage-guided fuzzer makes of a small corpus, and under pickles."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parsers
import pytest

ENTRY = Path(parsers.__file__)
NAMES = sorted(folder.name for folder in parsers.CORPUS.iterdir())
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or machine"
)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, parsers.Parser]:
    return parsers.parsers(tmp_path_factory.mktemp("parsers"))


def test_every_parser_has_a_corpus_and_ends_well_on_it_and_on_its_cuts(every: dict[str, parsers.Parser]) -> None:
    assert sorted(every) == NAMES
    assert sum(file.stat().st_size for file in parsers.CORPUS.rglob("*") if file.is_file()) < 64 * 1024
    for name, parse in every.items():
        for file in sorted((parsers.CORPUS / name).iterdir()):
            data = file.read_bytes()
            for cut in {0, 1, 7, 8, len(data) // 2, len(data) - 1, len(data)}:
                parsers.checked(parse, data[:cut])


def run(name: str, out: Path, *options: str) -> None:
    command = [sys.executable, str(ENTRY), "fuzz", name, str(out), "-seed=1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [path.name for path in out.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    assert done.returncode == 0 and not found, f"{found} in {out}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "DONE" in done.stderr or "Done" in done.stderr, done.stderr[-3000:]


@needs_atheris
def test_five_seconds_of_inputs(tmp_path: Path) -> None:
    run("all", tmp_path, "-max_total_time=5")


@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_of_inputs(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, "-max_total_time=60")


@needs_atheris
def test_the_fuzzer_finds_what_is_there(tmp_path: Path) -> None:
    """A parser that fails on one input in its corpus is told, with the input."""
    code = (
        f"import sys; sys.path.insert(0, {str(ENTRY.parent)!r}); import pathlib, parsers\n"
        "real = parsers.parsers\n"
        "def worse(data):\n    raise KeyError('a mistake')\n"
        "parsers.parsers = lambda scratch: {'csv': worse}\n"
        f"parsers.fuzz('csv', pathlib.Path({str(tmp_path)!r}), ['-runs=10'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "a mistake" in done.stdout + done.stderr
    assert list(tmp_path.glob("crash-*"))


# --- pickles -----------------------------------------------------------------------------------------------------

_unpickled: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _unpickled is not None and event in ("pickle.find_class", "marshal.loads"):
        _unpickled.append(f"{event} {arguments}")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def unpickled() -> Iterator[list[str]]:
    """What is unpickled while it is there; a hook of the interpreter cannot be taken away, so it is switched."""
    global _unpickled
    if not hasattr(sys, "_geoloc_fast_watched"):
        sys.addaudithook(_watch)
        sys._geoloc_fast_watched = True  # type: ignore[attr-defined]
    _unpickled = []
    yield _unpickled
    _unpickled = None


def test_no_parser_unpickles_anything(every: dict[str, parsers.Parser], unpickled: list[str], tmp_path: Path) -> None:
    import torch

    from geoloc_fast.errors import WeightsError
    from geoloc_fast.models.backbones.weights import read_weights

    mark = tmp_path / "ran"
    torch.save({"weight": _Evil(mark)}, tmp_path / "evil.pth")
    payloads = [pickle.dumps(_Evil(mark), protocol) for protocol in range(6)] + [(tmp_path / "evil.pth").read_bytes()]
    unpickled.clear()
    for parse in every.values():
        for payload in payloads:
            parse(payload)
    for payload in payloads:
        (tmp_path / "weights.pth").write_bytes(payload)
        with pytest.raises(WeightsError):
            read_weights(tmp_path / "weights.pth")
    assert unpickled == [] and not mark.exists()
    pickle.loads(payloads[0])  # the watch sees it where it happens
    assert unpickled and mark.exists()
