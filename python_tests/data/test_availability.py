"""The paper's rule: a street view within 50 m and within one year."""

import datetime
from pathlib import Path

import numpy as np

from geoloc_fast.data.availability import available, street_distance_m
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.geo.sphere import move_m

DAY = datetime.date(2022, 6, 1)


def test_rule(tmp_path: Path) -> None:
    near, far = move_m(50.0, 8.0, 30.0, 39.0), move_m(50.0, 8.0, 30.0, 41.0)  # 49.2 m and 50.8 m
    place = {"lat": 50.0, "lon": 8.0, "street": "s.jpg"}

    def at(position: tuple[float, float]) -> dict[str, float]:
        return {"street_lat": float(position[0]), "street_lon": float(position[1])}

    cases = [
        ({}, True),
        ({**at(near), "street_date": datetime.date(2021, 6, 1)}, True),
        ({**at(far), "street_date": DAY}, False),
        ({**at(near), "street_date": datetime.date(2021, 5, 31)}, False),
        ({"street_date": datetime.date(2023, 6, 1)}, True),  # later than the photo, but within a year
        ({"street_date": datetime.date(2023, 6, 2)}, False),
        ({"street": None, "satellite": "a.jpg"}, False),
        ({"street": None, "street_views": ["a", "b", "c", "d"]}, True),
        ({"street_synthetic": "generator 1"}, False),
    ]
    manifest = Manifest.from_rows(tmp_path, [{"id": str(i), **place, **more} for i, (more, _) in enumerate(cases)], [])
    expected = [right for _, right in cases]
    assert available(manifest.places, DAY).tolist() == expected
    # As seen from a photo that stands where the near street views do.
    assert available(manifest.places, DAY, *near).tolist()[1:3] == [True, True]
    assert available(manifest.places, None).tolist() == [True, True, False, True, True, True, False, True, False]
    dates = np.full(len(cases), DAY, "datetime64[D]")
    dates[5] = np.datetime64("NaT")
    lat = np.full(len(cases), 50.0)
    lat[2] = np.nan
    got = available(manifest.places, dates, lat, 8.0)
    assert got.tolist() == [True, True, True, False, True, True, False, True, False]
    np.testing.assert_allclose(street_distance_m(manifest.places)[:3], [0, 49.2, 50.8], atol=0.1)


def test_no_places(tmp_path: Path) -> None:
    assert available(Manifest.from_rows(tmp_path, [], []).places, DAY).shape == (0,)
