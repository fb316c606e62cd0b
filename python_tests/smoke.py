"""What an installed wheel must do, run outside the checkout: `python smoke.py`. Prints what it checked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import torch

import geoloc_fast
from geoloc_fast import StripBank, azimuth_match, polar_resample, shift_to_heading, strip_topk
from geoloc_fast.testing import assert_close, force_backend, observe_calls


def main() -> None:
    """Every step raises if the installation does not do what it should."""
    here = Path(geoloc_fast.__file__).parent
    assert not (here.parent / "pyproject.toml").exists(), f"{here} is a checkout, not an installed package"
    assert geoloc_fast.build_info()["backends"]["cpu"]["available"], geoloc_fast.build_info()["backends"]["cpu"]

    torch.manual_seed(0)
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with force_backend("cpu"), observe_calls() as calls:
        polar = polar_resample(images, (8, 32))
        strips = torch.randn(50, 16, 4, 16)
        photos = strips[:4, :, :, 3:8]
        score = azimuth_match(photos, strips).score
        found = strip_topk(photos, StripBank.pack(strips, dtype="fp32"), k=3)
    with force_backend("reference"):
        assert_close(polar, polar_resample(images, (8, 32)), "grey_uint8")
        assert_close(score, azimuth_match(photos, strips).score, "float32")
    assert found.index[:, 0].tolist() == [0, 1, 2, 3] and found.shift[:, 0].tolist() == [3] * 4
    assert shift_to_heading(3, 5, 16, column0_deg=180.0).item() == 303.75
    print(f"operators: {len(calls)} calls on the CPU kernels, like the reference")

    command = shutil.which("geoloc-fast")
    assert command is not None, "geoloc-fast is not on the PATH"
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        done = subprocess.run([command, "info"], capture_output=True, text=True)
        assert done.returncode == 1 and "pip install 'geoloc_fast[all]'" in done.stderr, done
        print("geoloc-fast: says what to install")
        return
    for words, expected in ((["info"], '"cpu"'), (["locate", "--help"], "Usage: geoloc-fast locate")):
        done = subprocess.run([command, *words], capture_output=True, text=True)
        assert done.returncode == 0 and expected in done.stdout, done
    print("geoloc-fast: info, locate --help")


if __name__ == "__main__":
    main()
