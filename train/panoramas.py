"""Convert HDR panoramas (.exr, and .exr.js as in npm packages) to ordinary pictures for `train/real.py`.

    python train/panoramas.py FOLDER city.exr park.exr.js …

Each is exposed so that the ground below the horizon is of middle grey, as a camera would, and written as PNG.
Needs the package OpenEXR.
"""

import argparse
import base64
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_GROUND = 0.16  # of full brightness: middle grey


def light_of(path: Path) -> np.ndarray:
    """Float32 [H, W, 3], linear."""
    import OpenEXR

    content = path.read_bytes()
    if path.suffix == ".js":
        content = base64.b64decode(content.split(b"base64,")[1].split(b"'")[0])
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(content)
        file.flush()
        with OpenEXR.File(file.name) as opened:
            parts: Any = opened.channels()
            light = parts["RGB"].pixels if "RGB" in parts else np.stack([parts[c].pixels for c in "RGB"], -1)
            return np.array(light, np.float32)


def exposed(light: np.ndarray) -> np.ndarray:
    """Uint8, of what a camera would show."""
    rows = len(light)
    ground = np.median(light[rows // 2 : 3 * rows // 4].mean(-1))
    return np.asarray(255 * np.clip(light * (_GROUND / ground), 0, 1) ** (1 / 2.2)).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(chosen.files):
        image = exposed(light_of(path))
        cv2.imwrite(str(chosen.folder / f"{number:02d}-{path.name.split('.')[0]}.png"), image[..., ::-1])
