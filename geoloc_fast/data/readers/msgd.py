"""MSGD, the data set of the main paper: a MATLAB list, and folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.data.readers.lists import file_names, warn_left_out
from geoloc_fast.data.readers.mat import read_panorama_list
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.utm import utm_to_lat_lon

__all__ = ["read_msgd"]

SETS = {"trainSet": "trainInd", "valSet": "valInd"}
SATELLITE, STREET, PHOTO = "satview_all", "streetview_all", "crdview_resize_all"


def read_msgd(
    path: str | os.PathLike[str],
    *,
    zone: int,
    south: bool = False,
    mat: str | None = None,
    city: str = "",
    street_column0_deg: float | None = None,
) -> Manifest:
    """One place and one crowd photo an entry; places have a satellite image, and a street panorama if it is there.

    Args:
        zone, south: of the UTM coordinates; the file does not say (Hong Kong: 50, north).
        mat: name of the MATLAB file; default the only one in the folder.
        city: of all entries, for protocols by city.
        street_column0_deg: heading of the panoramas' left edge. The paper's panoramas are four views at headings
            0/90/180/270 side by side, which would make it 315; but it calibrates them nevertheless, so here
            they count as unknown unless you say otherwise.
    """
    root = Path(path)
    if mat is None:
        found = sorted(name for name in file_names(root) if name.endswith(".mat"))
        if len(found) != 1:
            raise ManifestError([Problem(str(root), None, None, f"expected one .mat file, or `mat`; got {found}")])
        mat = found[0]
    listed = read_panorama_list(root / mat, SETS)
    # The published code reads easting first, and eastings are within 100 to 900 km.
    swapped = len(listed.utm) > 0 and not (1e5 <= np.median(listed.utm[:, 0]) <= 9e5)
    utm = listed.utm[:, ::-1] if swapped else listed.utm
    lat, lon = utm_to_lat_lon(utm[:, 0], utm[:, 1], zone, south=south)
    split_of = {
        int(row): name for name, key in (("train", "trainSet"), ("val", "valSet")) for row in listed.splits[key]
    }
    satellites, streets, crowd = (file_names(root / folder) for folder in (SATELLITE, STREET, PHOTO))
    places, photos, no_place, no_photo = [], [], [], []
    for row, pano in enumerate(listed.ids):
        satellite, street, photo = f"{pano}_satView.jpg", f"{pano}_grdView_pano.png", f"{pano}_crdView.png"
        at = {"lat": float(lat[row]), "lon": float(lon[row]), "city": city}
        there = satellite in satellites, street in streets
        if any(there):
            places.append(
                {
                    "id": pano,
                    **at,
                    "satellite": f"{SATELLITE}/{satellite}" if there[0] else None,
                    "street": f"{STREET}/{street}" if there[1] else None,
                    "street_column0_deg": street_column0_deg if there[1] else None,
                }
            )
        else:
            no_place.append(pano)
        if photo in crowd:
            place = pano if any(there) else None
            photos.append({"id": pano, **at, "image": f"{PHOTO}/{photo}", "place": place, "split": split_of.get(row)})
        else:
            no_photo.append(pano)
    if not places:
        reason = f"none of its images exists: expected {SATELLITE}, {STREET} and {PHOTO} in {root}"
        raise ManifestError([Problem(mat, None, None, reason)])
    warn_left_out(f"places of {mat}", no_place, len(listed.ids))
    warn_left_out(f"photos of {mat}", no_photo, len(listed.ids))
    return Manifest.from_rows(root, places, photos)
