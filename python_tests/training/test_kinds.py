"""Kind heads: they learn what the renderer knows, are kept in a file, and a fit uses them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from geoloc_fast.city.render import CLASSES, KINDS
from geoloc_fast.city.scene import MATERIALS
from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import BundleError, TrainingStopped
from geoloc_fast.models.layered import LayeredConfig
from geoloc_fast.training.fit import fit_region
from geoloc_fast.training.kinds import load_kinds, save_kinds, train_kinds

CONFIG = LayeredConfig(
    level_size=(64, 256), polar_size=(64, 256), channels=12, satellite_px=128, range_m=(50.0, 50.0), trained_on="a test"
)


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("cities")
    return write_city(
        folder, seed=5, cities=1, places=16, sizes=Sizes(128, (64, 256), (96, 128)), capture=TIDY, kinds=True
    )


def test_the_renderer_says_what_images_show(cities: Manifest) -> None:
    place, photo = cities.places.to_pylist()[0], cities.photos.to_pylist()[0]
    above = cv2.imdecode(np.frombuffer(cities.open_image(place["satellite_kinds"]), np.uint8), cv2.IMREAD_GRAYSCALE)
    level = cv2.imdecode(np.frombuffer(cities.open_image(photo["photo_kinds"]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert above.shape == (250, 250)  # 50 metres in cells of 0.2
    assert level.shape == (96, 128)
    assert KINDS[len(CLASSES) - 1 :] == MATERIALS
    names = [{KINDS[n] for n in np.unique(image)} for image in (above, level)]
    assert names[0] <= {*MATERIALS, "vegetation"}
    assert "asphalt" in names[0] | names[1]
    # Where grass is, the image is greener than where asphalt is.
    image = cv2.imdecode(np.frombuffer(cities.open_image(place["satellite"]), np.uint8), cv2.IMREAD_COLOR)
    fine = cv2.resize(above, image.shape[:2], interpolation=cv2.INTER_NEAREST)
    excess = 2.0 * image[..., 1] - image[..., 0] - image[..., 2]
    green = np.isin(fine, [KINDS.index("grass"), KINDS.index("vegetation")])
    if green.any() and (~green).any():
        assert excess[green].mean() > excess[~green].mean()


def test_heads_learn_are_kept_and_fitted_with(cities: Manifest, weights: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    model, right = train_kinds(
        cities, KINDS, weights, CONFIG, steps=12, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (24, 24)
    # Next to nothing in twelve steps, but more than a guess among 22 kinds.
    assert min(right.values()) > 0.15
    save_kinds(model, tmp_path / "kinds.safetensors")
    again = load_kinds(tmp_path / "kinds.safetensors", dataclasses.replace(CONFIG, channels=7))
    assert (again.config.kinds, again.config.channels) == (len(KINDS), 7)
    for name, value in model.kind_heads.state_dict().items():
        assert torch.equal(again.kind_heads.state_dict()[name], value)
    fitted, report = fit_region(cities, weights, CONFIG, kinds=tmp_path / "kinds.safetensors")
    assert fitted.config.kinds == len(KINDS)
    assert report.pairs == {"street": 16, "satellite": 16}
    assert fitted.config.cohort == 16
    assert torch.equal(
        fitted.kind_heads.state_dict()["above.tell.bias"], model.kind_heads.state_dict()["above.tell.bias"]
    )
    fitted.save(tmp_path / "model.safetensors")
    assert load_kinds(tmp_path / "model.safetensors", CONFIG).config.kinds == len(KINDS)  # of a model that has them
    with pytest.raises(BundleError, match="expected a model that tells kinds of ground apart"):
        load_kinds("real", CONFIG)


def test_cities_without_kinds_teach_nothing(tmp_path: Path, weights: Path) -> None:
    plain = write_city(tmp_path, seed=5, cities=1, places=2, sizes=Sizes(64, (32, 128), (48, 64)), capture=TIDY)
    with pytest.raises(TrainingStopped, match="expected cities with photo_kinds"):
        train_kinds(plain, KINDS, weights, CONFIG)
