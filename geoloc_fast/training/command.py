"""The command line of a training script: settings, processes, exit codes.

    python train/geoloc.py train/configs/small.yaml data.manifest=cities/ out=runs/small
    torchrun --nproc-per-node 8 train/geoloc.py train/configs/base.yaml data.manifest=ready/ out=runs/base
    python train/geoloc.py train/configs/small.yaml data.manifest=cities/ --evaluate runs/small/model.safetensors

With `torchrun --max-restarts 3` a run whose process is lost goes on by itself from the last checkpoint, on one node or
several (`--rdzv-backend c10d --rdzv-endpoint HEAD:29400`).

Settings are YAML files and name=value, later ones winning; one that does not exist is an error. `--resume` goes on
where `out` stands. `--evaluate` measures a model on `data.evaluate`, as JSON, and trains nothing. Ctrl-C ends with exit
code 130, with everything saved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from geoloc_fast.errors import GeolocError
from geoloc_fast.ops.choose import force_backend
from geoloc_fast.training.distributed import join
from geoloc_fast.training.recipe import Evaluation, Recipe
from geoloc_fast.training.trainer import Trainer

__all__ = ["main"]

_LONGEST_EVALUATION = timedelta(hours=2)  # process 0 evaluates, the others wait


def main(
    about: str | None,
    make_recipe: Callable[[Sequence[str]], Recipe],
    evaluate_model: Callable[[Sequence[str], Path], Evaluation],
) -> int:
    """The command line of a training script: trains, resumes or evaluates; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(about).splitlines()[0])
    parser.add_argument("settings", nargs="+", help="YAML files and name=value")
    parser.add_argument("--resume", action="store_true", help="continue from out/last.safetensors")
    parser.add_argument("--evaluate", type=Path, metavar="MODEL", help="only measure this model")
    parser.add_argument(
        "--ops", choices=("fast", "reference"), default="fast", help="which implementation of the operators to use"
    )
    given = parser.parse_args()
    if given.resume and given.evaluate:
        parser.error("--evaluate: expected without --resume")
    joins = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    again = False  # torchrun starts all processes again when one is lost
    if joins:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        again = join(_LONGEST_EVALUATION)
    operators = force_backend("reference") if given.ops == "reference" else contextlib.nullcontext()
    try:
        with operators:
            if given.evaluate:
                found = evaluate_model(["out=.", *given.settings], given.evaluate)
                print(json.dumps(found.numbers, indent=1))
                print(f"train: {found.text}", file=sys.stderr)
            else:
                recipe = make_recipe(given.settings)
                saved = (Path(recipe.settings.out) / "last.safetensors").exists()
                Trainer(recipe, resume=given.resume or (again and saved)).run()
    except KeyboardInterrupt:
        print("stopped; --resume continues from here", file=sys.stderr)
        return 130
    except (OSError, ValueError, GeolocError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    finally:
        if joins:
            dist.destroy_process_group()
    return 0
