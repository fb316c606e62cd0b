"""Descriptions as queries: a text model learns a synthetic city for a few steps, and is asked where a text fits.

    python examples/text_finds_a_place.py

So short a training shows the way, not how good it is: docs/notes/text.md has figures. Needs the extra [text].
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from geoloc_fast import Locator, PlaceIndex, load_model
from geoloc_fast.city.captions import scenes_of
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.locate.locator import Answer
from geoloc_fast.models.contract import Text
from geoloc_fast.region.encode import build_index
from geoloc_fast.training.recipes.text import make_recipe
from geoloc_fast.training.trainer import Trainer


def main(folder: Path, encoder: Path | None = None, steps: int = 4) -> Answer:
    """The answer to one description; `encoder` is a folder of a BERT, None the one of the extra [text]."""
    sizes = Sizes(satellite_px=224, panorama=(64, 256), photo=(48, 64))
    region = write_city(folder / "city", seed=3, cities=1, places=12, sizes=sizes)
    settings = {
        "out": str(folder / "run"),
        "model": {"learned_layers": 1} | ({} if encoder is None else {"heads": 2}),
        "data": {"manifest": str(folder / "city"), "scenes": str(folder / "city")},
        "step": {
            "terms": ["ground"],
            "image_rate": 1.0,
            "bf16": False,
            "backbone": None,
            "encoder": None if encoder is None else str(encoder),
        },
        "train": {"steps": steps, "batch": 4, "warmup": 1, "evaluate_every": 0, "device": "cpu"},
    }
    Trainer(make_recipe([settings])).run()
    model = load_model(folder / "run" / "model.safetensors")
    build_index(folder / "text.index", model, region)
    locator = Locator(PlaceIndex.open(folder / "text.index"), model)
    text = next(scenes_of(folder / "city")).descriptions[0].text
    (answer,) = locator.locate([Text(text)])
    print(f"{text!r}\n  is most like {answer.candidates[0].key}")
    return answer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
