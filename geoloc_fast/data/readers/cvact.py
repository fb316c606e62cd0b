"""CVACT (Canberra): a MATLAB list, and two folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.data.readers.lists import file_names, warn_left_out
from geoloc_fast.data.readers.mat import read_panorama_list
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.utm import utm_to_lat_lon

__all__ = ["read_cvact"]

LIST = "ACT_data.mat"
SETS = {"trainSet": "trainInd", "valSet": "valInd", "valSetAll": "valInd"}
# Set -> split, folder. valSetAll is what the papers call CVACT_test.
PARTS = {
    "trainSet": ("train", "ANU_data_small"),
    "valSet": ("val", "ANU_data_small"),
    "valSetAll": ("test", "ANU_data_test"),
}
_ZONE = 55
_LAT, _LON = (-36.0, -35.0), (148.5, 149.6)  # Canberra, generously


def read_cvact(path: str | os.PathLike[str]) -> Manifest:
    """One place a satellite image, one photo a panorama (north in the middle), each photo with its place.

    A part whose folder is absent (many have the small one only) is left out; an entry whose images are missing
    is left out too, with a warning that counts them.
    """
    root = Path(path)
    listed = read_panorama_list(root / LIST, SETS)
    lat, lon = _positions(listed.utm)
    places, photos = [], []
    missing, total = [], 0
    seen: set[str] = set()
    for key, (split, folder) in PARTS.items():
        if not (root / folder).is_dir():
            continue
        satellites, streets = file_names(root / folder / "satview_polish"), file_names(root / folder / "streetview")
        for row in listed.splits[key]:
            pano = listed.ids[row]
            if pano in seen:
                continue  # the test set repeats some of the others
            total += 1
            satellite, street = f"{pano}_satView_polish.jpg", f"{pano}_grdView.jpg"
            if satellite not in satellites or street not in streets:
                missing.append(pano)
                continue
            seen.add(pano)
            at = {"lat": float(lat[row]), "lon": float(lon[row]), "city": "Canberra"}
            places.append({"id": pano, **at, "satellite": f"{folder}/satview_polish/{satellite}"})
            photos.append(
                {
                    "id": pano,
                    **at,
                    "image": f"{folder}/streetview/{street}",
                    "heading_deg": 0.0,
                    "fov_deg": 360.0,
                    "place": pano,
                    "split": split,
                }
            )
    if not places:
        folders = " or ".join(sorted({folder for _, folder in PARTS.values()}))
        raise ManifestError([Problem(LIST, None, None, f"none of its images exists: expected {folders} in {root}")])
    warn_left_out(f"entries of {LIST}", missing, total)
    return Manifest.from_rows(root, places, photos)


def _positions(utm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zone 55 south. The file does not say in which order, nor whether northings count from the equator: the
    reading that lies in Canberra is the right one."""
    if len(utm) == 0:
        return np.zeros(0), np.zeros(0)
    for easting, northing in ((0, 1), (1, 0)):
        lat, lon = utm_to_lat_lon(utm[:, easting], utm[:, northing], _ZONE, south=bool(utm[0, northing] > 0))
        if all(low <= value.min() and value.max() <= high for value, (low, high) in ((lat, _LAT), (lon, _LON))):
            return lat, lon
    raise ManifestError([Problem(LIST, 1, "utm", f"expected UTM coordinates of Canberra, got {utm[0]}")])
