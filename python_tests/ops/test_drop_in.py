"""The recipes of docs/guide/drop_in.md run, and before and after agree."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from geoloc_fast.testing import observe_calls

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "drop_in.md"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout: there is no page to run"),
]


def run(title: str) -> tuple[dict[str, Any], list[str]]:
    """What the section's blocks, run in their order, leave behind, and the operators they called."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    with observe_calls() as calls:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    return names, [op for op, _, _ in calls]


def test_offline_polar_script() -> None:
    names, calls = run("An offline polar script")
    assert calls == ["polar_resample"]
    before = torch.from_numpy(names["before"]).permute(0, 3, 1, 2)
    # Half a grey level, in units of the smallest standard deviation.
    torch.testing.assert_close(names["after"].double(), before, rtol=0, atol=0.5 / 57)


def test_training_step() -> None:
    names, calls = run("A training step that materialises the windows")
    assert calls == ["azimuth_match", "azimuth_match_backward"]
    torch.testing.assert_close(names["after_score"], names["before_score"])
    for after, before in zip(names["after"], names["before"], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_evaluation() -> None:
    names, calls = run("An evaluation that builds the matrix")
    assert calls == ["strip_pack", "strip_topk"]
    assert names["after"] == pytest.approx(names["before"]) and 0.3 < names["before"] < 1
