"""What the README shows is what happens."""

import re
import sys
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not README.exists(), reason="not in a checkout: there is no README to run"),
]


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), namespace)
    assert namespace["found"].index[:, 0].tolist() == list(range(8))  # type: ignore[attr-defined]
    assert set(namespace["heading"][:, 0].tolist()) == {303.75}  # type: ignore[index]
    assert "303.75" in capsys.readouterr().out


def test_files_it_points_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_figures_of_models_are_those_of_their_card() -> None:
    """`make readme` copies them."""
    sys.path.insert(0, str(README.parent / "bench"))
    try:
        import readme
    finally:
        sys.path.pop(0)
    assert readme.with_figures(README.read_text()) == README.read_text()


def test_it_is_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 140
