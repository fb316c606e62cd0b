"""Descriptions as queries: describe a synthetic city, train a text model for a few steps, and ask where a text fits.

    python examples/text_finds_a_place.py

So short a training shows the way, not how good it is: docs/notes/text.md has figures. Needs the extra [text].
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from geoloc_fast import Locator, PlaceIndex, load_model
from geoloc_fast.city.captions import describe_cities
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.data.captions import add_captions, captions_of
from geoloc_fast.locate.locator import Answer
from geoloc_fast.models.contract import Text
from geoloc_fast.region.encode import build_index
from geoloc_fast.training.recipes.text import make_recipe
from geoloc_fast.training.trainer import Trainer


def main(folder: Path, encoder: Path | None = None, steps: int = 4) -> Answer:
    """The answer to one description; `encoder` is a folder of a BERT, None the one of the extra [text]."""
    sizes = Sizes(satellite_px=224, panorama=(64, 256), photo=(48, 64))
    region = write_city(folder / "city", seed=3, cities=1, places=12, sizes=sizes)
    describe_cities(folder / "city", folder / "captions.csv")
    settings = {
        "out": str(folder / "run"),
        "model": {"channels": 16, "heads": 2, "learned_layers": 1, "satellite_px": 224},
        "data": {"manifest": str(folder / "city"), "captions": str(folder / "captions.csv")},
        "step": {"bf16": False, "backbone": None, **({} if encoder is None else {"encoder": str(encoder)})},
        "train": {"steps": steps, "batch": 4, "warmup": 1, "evaluate_every": 0, "device": "cpu"},
    }
    Trainer(make_recipe([settings])).run()
    model = load_model(folder / "run" / "model.safetensors")
    build_index(folder / "text.index", model, region)
    locator = Locator(PlaceIndex.open(folder / "text.index"), model)
    text = captions_of(add_captions(region, folder / "captions.csv"))[0].text
    (answer,) = locator.locate([Text(text)])
    print(f"{text!r}\n  is most like {answer.candidates[0].key}")
    return answer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
