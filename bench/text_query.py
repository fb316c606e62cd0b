"""A description to its answer over many places, from words to positions: python bench/text_query.py [--places N]

The index has both layers of the text model (codes and strips, bfloat16) with random values; the text is read by the
pretrained encoder with the layers of train/configs/text.yaml. Wall time of `Locator.locate`, and of the search in it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch

from geoloc_fast.city.sights import MATERIALS, THINGS
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.contract import Text, load_model
from geoloc_fast.models.text.model import TextGeolocalizer

AT_ONCE = 4096
TEXTS = {
    "short": "A narrow cobbled street. A red roof on the left, a zebra crossing ahead. Trees to my right.",
    "long": " ".join([
        "I can see a wide asphalt street with a broken white line along the middle running straight ahead.",
        "A crossroads about ten metres away on the left. A zebra crossing behind me.",
        "On the right, a three-storey building with a flat grey roof, white walls and shops on the ground floor.",
        "I can see a two-storey house with a red pitched roof and sandy walls on the left.",
        "A large building with a dark grey roof straight ahead. A small house with brown walls at my back.",
        "A few broad-leaved trees to my left. Many conifers on the right-hand side. A wide stretch of lawn ahead.",
        "A paved yard behind me. A car park to my right. A hedge on the left. Rows of parked cars.",
    ]),
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--places", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=40)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "text.safetensors"
        TextGeolocalizer.begin(None, None, layers=4, things=THINGS, materials=MATERIALS).save(path)
        model = load_model(path)
        rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
        index = PlaceIndex.create(Path(folder) / "index", model=str(model.fingerprint), layers=model.layers)
        for begin in range(0, given.places, AT_ONCE):
            count = min(AT_ONCE, given.places - begin)
            rows = {layer.name: Rows(torch.randn(count, *layer.strip, generator=draw)) for layer in model.layers}
            lat, lon = 48 + rng.uniform(0, 0.5, count), 11 + rng.uniform(0, 0.5, count)
            index.add(rows, model=str(model.fingerprint), lat=lat, lon=lon)
        index.compact()
        locator = Locator(index, model)
        searched: list[float] = []
        search = index.search

        def timed(*args: object, **how: object) -> object:
            began = time.perf_counter()
            try:
                return search(*args, **how)  # type: ignore[arg-type]
            finally:
                searched.append(1000 * (time.perf_counter() - began))

        told = {}
        with mock.patch.object(index, "search", timed):
            for name, text in TEXTS.items():
                whole = []
                for n in range(-5, given.queries):
                    began = time.perf_counter()
                    list(locator.locate([Text(text)]))
                    if n < 0:
                        searched.clear()
                    else:
                        whole.append(1000 * (time.perf_counter() - began))
                tokens = int(model.tokens([text]).length[0])  # type: ignore[attr-defined]
                told[name] = {
                    "tokens": tokens, "ms": round(float(np.median(whole)), 1),
                    "ms_95": round(float(np.quantile(whole, 0.95)), 1),
                    "search_ms": round(float(np.sum(searched)) / given.queries, 1),
                }  # fmt: skip
                searched.clear()
        print(json.dumps({"places": given.places, "threads": torch.get_num_threads(), **told}, indent=1))
