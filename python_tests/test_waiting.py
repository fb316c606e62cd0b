"""How torch's threads wait beside another busy process: what the command line sets, and when one thread is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import geoloc_fast
from geoloc_fast.models.contract import AzimuthColumns, load_model
from geoloc_fast.models.layered import Layered

# Says what OMP_WAIT_POLICY was when torch, whose threads read it once, began to load.
_SPY = """
import os, sys
class Spy:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("torch:", os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Spy())
"""


def at_import_of_torch(code: str, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", _SPY + code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n")[:-1]


def test_the_command_line_sets_passive_waiting_before_torch_loads() -> None:
    code = "sys.argv = ['geoloc-fast', 'info']; from geoloc_fast.cli import main; main()"
    assert at_import_of_torch(code)[0] == "torch: passive"
    assert at_import_of_torch(code, OMP_WAIT_POLICY="active")[0] == "torch: active"


def test_the_package_leaves_the_choice_to_who_imports_it() -> None:
    code = "import geoloc_fast; print(geoloc_fast.__version__); geoloc_fast.strip_topk; print(sorted(os.environ))"
    version, torch_loads, names = at_import_of_torch(code)
    assert version == geoloc_fast.__version__ and torch_loads == "torch: None" and "OMP_WAIT_POLICY" not in names


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(geoloc_fast.__all__) == {*geoloc_fast._HOMES, "__version__", "build_info"}
    for name in geoloc_fast.__all__:
        assert getattr(geoloc_fast, name) is not None and name in dir(geoloc_fast)
    with pytest.raises(AttributeError, match="module 'geoloc_fast' has no attribute 'strip_top'"):
        _ = geoloc_fast.strip_top  # type: ignore[attr-defined]


def test_a_photo_is_encoded_by_one_thread_and_many_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model()
    assert isinstance(model, Layered)
    seen: list[int] = []
    encode = model.level_features

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return encode(*args, **options)

    monkeypatch.setattr(model, "level_features", watched)
    photo = AzimuthColumns(np.zeros((*model.config.level_size, 3), np.uint8)[:, :256])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model.encode_queries([photo])
        model.encode_queries([photo] * 2)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(model, "level_features", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.encode_queries([photo])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3, 3]
