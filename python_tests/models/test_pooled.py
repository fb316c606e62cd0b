"""Public weights by path: the layouts they come in, and one code per image through an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.errors import WeightsError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.models import load_model
from geoloc_fast.models.contract import AzimuthColumns, Model, Photo, PlaceBatch
from geoloc_fast.models.pooled import Pooled, PooledConfig, load_checkpoint

RESNET = PooledConfig(
    network="resnet18", image_size=(64, 64), panorama_size=(32, 128), views=4, satellite_px=64, trained_on="a test"
)
_CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def resnet() -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet18", pretrained=False).eval()


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


def normalised(image: np.ndarray) -> Tensor:
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def street_level(network: torch.nn.Module) -> dict[str, Tensor]:
    """As CosPlace and EigenPlaces hand theirs out: a Sequential of the children, then L2, GeM, flatten, Linear, L2."""
    state = {}
    for name, value in network.state_dict().items():
        child, _, leaf = name.partition(".")
        if child in _CHILDREN:
            state[f"backbone.{_CHILDREN[child]}.{leaf}"] = value
    generator = torch.Generator().manual_seed(1)
    state["aggregation.1.p"] = torch.tensor([2.5])
    state["aggregation.3.weight"] = torch.randn(48, 512, generator=generator)
    state["aggregation.3.bias"] = torch.randn(48, generator=generator)
    return state


@torch.inference_mode()
def test_the_street_level_layout(resnet: Any, tmp_path: Path) -> None:
    state = street_level(resnet)
    torch.save(state, tmp_path / "w.pth")
    model = load_checkpoint(tmp_path / "w.pth", RESNET)
    assert isinstance(model, Model)
    assert (model.config.gem, model.config.dimensions, model.channels) == (True, 48, 48)
    image = picture(64, 64)
    features = F.normalize(resnet.forward_features(normalised(image)), dim=1)
    pooled = F.avg_pool2d(features.clamp(min=1e-6).pow(2.5), features.shape[-2:]).pow(1 / 2.5).flatten(1)
    code = F.normalize(pooled @ state["aggregation.3.weight"].T + state["aggregation.3.bias"], dim=1)
    found = model.encode_queries([Photo(image)])["street"].strips
    torch.testing.assert_close(found[:, :, 0, 0], code, rtol=1e-4, atol=1e-5)
    assert "of street level" in model.config.provenance["weights"]


@torch.inference_mode()
def test_the_cross_view_layout(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = timm.create_model("convnext_atto", pretrained=False, num_classes=0).eval()
    state = {f"module.model.{name}": value for name, value in network.state_dict().items()}
    torch.save({**state, "module.logit_scale": torch.tensor(2.6)}, tmp_path / "w.pth")
    config = PooledConfig(network="convnext_atto", image_size=(64, 64), source="satellite", satellite_px=64)
    model = load_checkpoint(tmp_path / "w.pth", config)
    image = picture(64, 64)
    found = model.encode_queries([AzimuthColumns(image)])["satellite"].strips[0, :, 0, 0]
    torch.testing.assert_close(found, F.normalize(network(normalised(image)), dim=1)[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_layout_of_timm_and_torchvision(resnet: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{n}": v for n, v in resnet.state_dict().items()}}, tmp_path / "w.pth")
    model = load_checkpoint(tmp_path / "w.pth", RESNET)  # its classifier is left
    image = picture(64, 64)
    code = F.normalize(resnet.forward_features(normalised(image)).mean((2, 3)), dim=1)
    torch.testing.assert_close(model(torch.from_numpy(image).permute(2, 0, 1)[None]), code, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused(resnet: Any, tmp_path: Path) -> None:
    state = street_level(resnet)
    torch.save({**state, "backbone.8.weight": torch.zeros(1)}, tmp_path / "child.pth")
    with pytest.raises(WeightsError, match="children of a ResNet"):
        load_checkpoint(tmp_path / "child.pth", RESNET)
    torch.save({name: value for name, value in state.items() if name != "backbone.0.weight"}, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=r"conv1.weight of shape .* is missing"):
        load_checkpoint(tmp_path / "less.pth", RESNET)
    torch.save({**resnet.state_dict(), "layer5.0.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"resnet18.* it has no layer5"):
        load_checkpoint(tmp_path / "more.pth", RESNET)
    torch.save({**resnet.state_dict(), "bn1.weight": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match="finite"):
        load_checkpoint(tmp_path / "nan.pth", RESNET)
    with pytest.raises(OSError, match=r"none\.pth"):
        load_checkpoint(tmp_path / "none.pth", RESNET)
    with pytest.raises(ValueError, match="source: expected one of"):
        PooledConfig(source="text")


def test_views_of_panoramas_are_rows_and_a_view_is_found(resnet: Any, tmp_path: Path) -> None:
    torch.save(street_level(resnet), tmp_path / "w.pth")
    load_checkpoint(tmp_path / "w.pth", RESNET).save(tmp_path / "m.safetensors", dtype=torch.float32)
    model = load_model(tmp_path / "m.safetensors")
    assert isinstance(model, Pooled)
    panoramas = torch.stack([torch.from_numpy(picture(32, 128, seed=n)).permute(2, 0, 1) for n in range(3)])
    batch = PlaceBatch(
        torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, dtype=torch.bool),
        torch.full((3,), torch.nan, dtype=torch.float64), panoramas, torch.tensor([True, False, True]),
        torch.tensor([50.0, 50.1, 50.2], dtype=torch.float64), torch.zeros(3, dtype=torch.float64),
    )  # fmt: skip
    rows = model.encode_places(batch)["street"]
    assert rows.place is not None
    assert rows.place.tolist() == [0] * 4 + [2] * 4
    view = panoramas[2].roll(-64, 2)[:, :, :32].permute(1, 2, 0).contiguous().numpy()
    query = model.encode_queries([AzimuthColumns(view)])
    best = int((rows.strips[:, :, 0, 0] @ query["street"].strips[0, :, 0, 0]).argmax())
    assert best == 4 + 2
    with PlaceIndex.create(tmp_path / "index", model=str(model.fingerprint), layers=model.layers) as index:
        index.add({"street": rows}, lat=batch.lat.numpy(), lon=batch.lon.numpy(), model=model.fingerprint)
        found = index.search(query, 1, layers=model.layers)
    assert found.lat.tolist() == [[50.2]]
    assert np.isnan(found.heading_deg).all()
