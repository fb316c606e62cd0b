"""One training step of the small model: how much of it the operators are, and the memory, fast and reference.

    python bench/train_step.py                       # batches of 32, 128, 512
    python bench/train_step.py --batches 128 --repeat 9

Each row is a process of its own, so that peak memory is its own. The operators' share is the time of the window noise,
matching and the losses on scores, forward and backward, over that of the whole step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.ops.choose import force_backend
from geoloc_fast.training.recipes.geolocalizer import read_settings
from geoloc_fast.training.recipes.geolocalizer.step import encode, gradients, sources_used
from geoloc_fast.training.recipes.geolocalizer.terms import losses

ROOT = Path(__file__).resolve().parents[1]


def one(batch: int, ops: str, repeat: int) -> dict[str, float]:
    configs = [str(ROOT / f"train/configs/{name}.yaml") for name in ("small", "small_last")]
    settings = read_settings([*configs, "data.manifest=none", "out=none"])
    model = Geolocalizer(GeolocalizerConfig(**settings.model)).to(memory_format=torch.channels_last)
    how = settings.step
    row = torch.arange(batch)
    height, width = model.config.image_size
    place = {name: torch.randn(batch, 3, height, width) for name in ("polar", "panorama")}
    where = {f"{of}_{axis}": 40 + 0.01 * row.double() for of in ("photo", "place") for axis in ("lat", "lon")}
    data = {
        **place,
        **where,
        "photo": torch.randn(batch, 3, height, 64),
        "photo_width": torch.full((batch,), 64),
        **dict.fromkeys(("has_satellite", "has_panorama", "heading_known"), row >= 0),
        "heading_deg": 360 * torch.rand(batch, dtype=torch.float64),
        "turn_deg": torch.zeros(batch, dtype=torch.float64),
        "place_row": row,
        "photo_row": row,
    }
    used = sources_used(data, how, 0)
    with force_backend("reference" if ops == "reference" else None):
        gradients(model, data, how, step=0, epoch=0)
        begin = time.perf_counter()
        for n in range(repeat):
            gradients(model, data, how, step=n, epoch=0)
        whole = (time.perf_counter() - begin) / repeat
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with torch.no_grad():
            strips = encode(model, data, slice(None), used, how)
        spent = 0.0
        for n in range(repeat):
            leaves = {name: strip.clone().requires_grad_() for name, strip in strips.items()}
            begin = time.perf_counter()
            losses(model, leaves, data, used, how, n)[0].backward()
            spent += time.perf_counter() - begin
            model.zero_grad()
    return {"seconds": whole, "operators": spent / repeat / whole, "peak_mib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--ops", choices=("fast", "reference"), help="one row, as JSON")
    arguments = parser.parse_args()
    if arguments.ops:
        print(json.dumps(one(arguments.batches[0], arguments.ops, arguments.repeat)))
        return
    print(f"{'batch':>6} {'operators':10} {'step':>9} {'share':>7} {'peak memory':>12}")
    for batch in arguments.batches:
        for ops in ("fast", "reference"):
            command = [sys.executable, __file__, "--batches", str(batch), "--repeat", str(arguments.repeat)]
            done = subprocess.run([*command, "--ops", ops], check=True, capture_output=True, text=True)
            row = json.loads(done.stdout)
            print(
                f"{batch:6} {ops:10} {row['seconds']:8.2f}s {100 * row['operators']:6.1f}% {row['peak_mib']:8.0f} MiB"
            )


if __name__ == "__main__":
    main()
