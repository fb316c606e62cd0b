"""From a folder of map tiles z/x/y.png to a located photo, in Python; the commands do the same.

    python examples/own_region_from_tiles.py tiles/ photo.jpg out/

Use tiles that you may use: docs/guide/imagery.md says which those are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from geoloc_fast import Answer, Locator, Manifest, PlaceIndex, load_model
from geoloc_fast.locate.answers import as_text
from geoloc_fast.region.cut import cut_places, price_of
from geoloc_fast.region.encode import build_index
from geoloc_fast.region.imagery import open_imagery
from geoloc_fast.region.spots import spots_of


def main(tiles: Path, photo: Path, out: Path, *, places: str = "grid:20", side_m: float = 60.0) -> Answer:
    """From a folder of map tiles to the answer for one photo; manifest and index are left in `out`."""
    ground = open_imagery("tiles", tiles)
    spots = spots_of(places, ground)
    print(price_of(ground, spots, side_m))
    print(cut_places(ground, spots, out / "region", source=tiles.name, side_m=side_m).summary())

    model = load_model()  # `city`: fitted on synthetic cities, so only a demonstration
    print(build_index(out / "region.index", model, Manifest.load(out / "region")).summary())
    (answer,) = Locator(PlaceIndex.open(out / "region.index"), model).locate([photo])
    print(as_text([answer], "table"))
    return answer


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
