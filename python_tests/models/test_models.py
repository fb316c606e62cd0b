"""Encoder, fusion and geolocalizer: what the conventions promise of them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from geoloc_fast import StripBank, azimuth_match, strip_topk
from geoloc_fast.errors import BundleError
from geoloc_fast.models import (
    FUSIONS,
    IAFF,
    IMAGE_MEAN,
    IMAGE_STD,
    MSCAM,
    Encoder,
    Geolocalizer,
    GeolocalizerConfig,
    circular_twin,
)

TINY = GeolocalizerConfig(
    backbone="convnext_atto",
    backbone_kwargs={"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 32]},
    image_size=(64, 256),
    strip=(16, 4, 16),
)
CELL = 16  # image columns of one strip column


def randomised(module: nn.Module) -> nn.Module:
    """Fresh networks have zero biases and equal norms, which hide mistakes in padding."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 0:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture
def model() -> Geolocalizer:
    torch.manual_seed(0)
    model = Geolocalizer(TINY)
    randomised(model)
    return model


def images(batch: int, width: int = 256, height: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# -- circular_twin -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "strip", "stride"),
    [
        ((64, 256), (16, 4, 16), 16),
        ((128, 256), (16, 4, 8), 16),  # halves both
        ((64, 256), (8, 2, 32), 8),  # height alone
        ((64, 512), (16, 4, 16), 16),  # width alone
    ],
)
def test_rolling_a_panorama_rolls_its_strip(
    image_size: tuple[int, int], strip: tuple[int, int, int], stride: int
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        "convnext_atto",
        image_size=image_size,
        strip=strip,
        backbone_stride=stride,
        backbone_kwargs=TINY.backbone_kwargs,
    )
    randomised(encoder)
    x = images(2, image_size[1], image_size[0])
    cell = encoder.columns_per_strip_column
    with torch.no_grad():
        one = encoder(x, circular=True)
        assert one.shape == (2, *strip)
        for columns in (1, 3, -2):
            two = encoder(x.roll(columns * cell, -1), circular=True)
            torch.testing.assert_close(two, one.roll(columns, -1), atol=1e-5, rtol=0)
        not_circular = encoder(x.roll(cell, -1), circular=False)
        assert (not_circular - encoder(x, circular=False).roll(1, -1)).abs().max() > 1e-4


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv4_conv_small_035", "tf_mobilenetv3_small_minimal_100"])
def test_other_backbones_roll_too(backbone: str) -> None:
    """With pooling that pads (resnet) and convolutions that pad by the size of their input (tf)."""
    torch.manual_seed(0)
    encoder = Encoder(backbone, image_size=(64, 256), strip=(8, 4, 16))
    encoder.eval()
    x = images(1)
    with torch.no_grad():
        one, two = encoder(x, circular=True), encoder(x.roll(CELL, -1), circular=True)
        torch.testing.assert_close(two, one.roll(1, -1), atol=1e-5, rtol=0)
        assert (encoder(x.roll(CELL, -1), circular=False) - encoder(x, circular=False).roll(1, -1)).abs().max() > 1e-4


def test_pooling_goes_round() -> None:
    x = torch.randn(2, 3, 9, 12)
    pool = nn.MaxPool2d((3, 5), stride=(2, 1), padding=(1, 2))
    padded = nn.functional.pad(nn.functional.pad(x, (2, 2, 0, 0), mode="circular"), (0, 0, 1, 1), value=-9e9)
    torch.testing.assert_close(circular_twin(pool)(x), nn.functional.max_pool2d(padded, (3, 5), (2, 1)))


def test_convolutions_pad_circularly_along_width_and_zeros_along_height() -> None:
    torch.manual_seed(0)
    convs: list[nn.Conv2d] = [
        nn.Conv2d(2, 4, (3, 5), padding=(1, 2), stride=(2, 1)),
        nn.Conv2d(4, 4, 3, padding=(0, 2), dilation=(1, 2), groups=2),
        nn.Conv2d(4, 3, (2, 4), padding="same"),
    ]
    x = torch.randn(2, 2, 9, 12)
    twin = circular_twin(nn.Sequential(*convs))
    expected = x
    for conv in convs:
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        padded = nn.functional.pad(expected, (left, right, 0, 0), mode="circular")
        padded = nn.functional.pad(padded, (0, 0, top, bottom))
        expected = nn.functional.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    torch.testing.assert_close(twin(x), expected)


def test_twin_owns_nothing_and_passes_unpadded_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 4, 3, padding=1))
    twin = circular_twin(net)
    assert type(twin[0]) is nn.Conv2d
    assert twin[0]._parameters is net[0]._parameters
    assert twin[1]._parameters is net[1]._parameters
    assert type(net[1]) is nn.Conv2d
    twin(torch.randn(1, 3, 16, 16)).sum().backward()
    assert net[0].weight.grad is not None


def _after_cast(model: Geolocalizer) -> Geolocalizer:
    return model.double().float()


def _after_load(model: Geolocalizer) -> Geolocalizer:
    state = {k: v * 1.5 for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def _after_assigning_load(model: Geolocalizer) -> Geolocalizer:
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}, assign=True)
    return model


def _after_deepcopy(model: Geolocalizer) -> Geolocalizer:
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return copied


def _after_step(model: Geolocalizer) -> Geolocalizer:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.encode_place(images(2)).square().sum().backward()
    optimiser.step()
    return model


@pytest.mark.parametrize("change", [_after_cast, _after_load, _after_assigning_load, _after_deepcopy, _after_step])
def test_twin_stays_tied(model: Geolocalizer, change: Callable[[Geolocalizer], Geolocalizer]) -> None:
    model = change(model)
    twin = model.encoder._circular[0]
    own, tied = model.encoder.network.state_dict(), twin.state_dict()
    assert own.keys() == tied.keys()
    assert all(own[name].data_ptr() == tied[name].data_ptr() for name in own)
    # A fresh twin of the changed network computes what the held one does.
    with torch.no_grad():
        fresh = circular_twin(model.encoder.network)(images(1))
        torch.testing.assert_close(twin(images(1)), fresh, atol=0, rtol=0)
    assert len(list(model.encoder.parameters())) == len(list(model.encoder.network.parameters()))
    assert not any("_circular" in name for name in model.state_dict())


def test_twin_follows_train_and_eval(model: Geolocalizer) -> None:
    for mode in (True, False):
        model.train(mode)
        assert all(m.training is mode for m in model.encoder._circular[0].modules())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, padding=1),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.ReflectionPad2d(1),
        timm.layers.BlurPool2d(3),
        timm.layers.AvgPool2dSame(3, stride=2),
        nn.ConvTranspose2d(3, 3, 3, padding=1),
    ],
)
def test_other_padding_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=rf"module: .*{type(layer).__name__} at '1'"):
        circular_twin(nn.Sequential(nn.Conv2d(3, 3, 1), layer))


def test_too_narrow_to_wrap_is_refused() -> None:
    twin = circular_twin(nn.Conv2d(1, 1, 7, padding=3))
    with pytest.raises(ValueError, match="input: expected at least 3 columns"):
        twin(torch.zeros(1, 1, 8, 2))


# -- encoder -----------------------------------------------------------------------------------


def test_default_encoder_is_the_papers() -> None:
    with torch.device("meta"):
        model = Geolocalizer()
    head = [m for m in model.encoder.network.head if isinstance(m, nn.Conv2d)]
    shapes = [tuple(m.weight.shape) for m in head]
    assert shapes == [(1024, 512, 2, 2), (512, 1024, 3, 1), (16, 512, 3, 1), (16, 16, 1, 1)]
    with torch.no_grad():
        strip = model.encoder.network(torch.empty(1, 3, 128, 512, device="meta"))
    assert strip.shape == (1, 16, 4, 16)


def test_uint8_is_normalised_inside(model: Geolocalizer) -> None:
    grey = torch.randint(0, 256, (2, 3, 64, 256), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_place(grey), model.encode_place((grey - mean) / std))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": (64, 256), "strip": (16, 3, 16)}, "strip: expected an image height"),
        ({"image_size": (64, 256), "strip": (16, 4, 32)}, "strip: expected an image width"),
        ({"image_size": (60, 256), "strip": (16, 4, 16)}, "strip: expected an image height"),
        ({"backbone_stride": 5}, "backbone_stride: expected one of"),
    ],
)
def test_sizes_that_cannot_fit(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder("convnext_atto", **kwargs)  # type: ignore[arg-type]


def test_wrong_images_are_refused(model: Geolocalizer) -> None:
    with pytest.raises(ValueError, match="images: expected a full turn of 256"):
        model.encode_place(images(1, 128))
    with pytest.raises(ValueError, match="images: expected \\[B, 3, 64, W\\]"):
        model.encode_place(images(1, 256, 32))
    with pytest.raises(TypeError, match="images: expected uint8"):
        model.encode_place(torch.zeros(1, 3, 64, 256, dtype=torch.int32))
    with pytest.raises(ValueError, match="multiple of 16"):
        model.encoder(images(1, 40), circular=False)


# -- fusion ------------------------------------------------------------------------------------


def test_iaff_formula_and_two_attentions() -> None:
    torch.manual_seed(0)
    fusion = IAFF(16)
    x, y = torch.randn(2, 2, 16, 4, 16)
    w1 = fusion.first_attention(x + y)
    w2 = fusion.second_attention(x * w1 + y * (1 - w1))
    expected = nn.functional.normalize((x * w2 + y * (1 - w2)).flatten(1)).view_as(x)
    fused = fusion(x, y)
    torch.testing.assert_close(fused, expected)
    fused[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())


def test_fusing_a_strip_with_itself_gives_it_back() -> None:
    x = nn.functional.normalize(torch.randn(3, 16 * 4 * 16)).view(3, 16, 4, 16)
    torch.testing.assert_close(IAFF(16)(x, x), x)


def test_attention_on_one_by_one_maps_and_batch_one() -> None:
    attention = MSCAM(8).train()
    weight = attention(torch.randn(1, 8, 1, 1))
    assert weight.shape == (1, 8, 1, 1)
    assert bool(((weight > 0) & (weight < 1)).all())


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions_roll_and_learn(name: str) -> None:
    torch.manual_seed(0)
    fusion = FUSIONS[name](16)
    x, y = nn.functional.normalize(torch.randn(2, 3, 16 * 4 * 16), dim=-1).view(2, 3, 16, 4, 16)
    fused = fusion(x, y)
    assert fused.shape == x.shape
    torch.testing.assert_close(fused.flatten(1).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(fusion(x.roll(3, -1), y.roll(3, -1)), fused.roll(3, -1))
    (fused * torch.randn_like(fused)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())
    if name in ("iaff", "aff", "awa"):
        torch.testing.assert_close(fusion(x, x), x)
    with pytest.raises(ValueError, match="y: expected"):
        fusion(x, y[:2])


def test_fusion_formulas() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 8, 4, 16)
    made = {name: cls(8) for name, cls in FUSIONS.items()}
    with torch.no_grad():
        made["awa"].logit.fill_(0.7)
    weight = made["aff"].attention(x + y)
    a = 1 / (1 + torch.exp(torch.tensor(-0.7)))
    first, _, second = made["fcl"].layers
    both = torch.cat((x, y), 1).movedim(1, -1)
    hidden = nn.functional.gelu(both @ first.weight[..., 0, 0].T + first.bias)
    halves = [
        (z.movedim(1, -1) @ c.weight[..., 0, 0].T + c.bias).movedim(-1, 1)
        for z, c in ((x, made["concat"].first), (y, made["concat"].second))
    ]
    for name, expected in {
        "aff": x * weight + y * (1 - weight),
        "awa": a * x + (1 - a) * y,
        "fcl": (hidden @ second.weight[..., 0, 0].T + second.bias).movedim(-1, 1),
        "concat": torch.cat(halves, 1),
    }.items():
        expected = nn.functional.normalize(expected.flatten(1)).view_as(x)
        torch.testing.assert_close(made[name](x, y), expected)
    with pytest.raises(ValueError, match="channels: expected an even number"):
        FUSIONS["concat"](7)


# -- geolocalizer ------------------------------------------------------------------------------


def test_place_strips_are_unit_norm_and_equivariant(model: Geolocalizer) -> None:
    above, street = images(3), images(3).flip(-1)
    with torch.no_grad():
        strip = model.encode_place(above, street)
        rolled = model.encode_place(above.roll(CELL, -1), street.roll(CELL, -1))
    assert strip.shape == (3, 16, 4, 16)
    torch.testing.assert_close(strip.flatten(1).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(rolled, strip.roll(1, -1), atol=1e-5, rtol=0)


def test_a_missing_source_is_replaced_by_the_other(model: Geolocalizer) -> None:
    above, street = images(3), images(3).flip(-1)
    has = torch.tensor([True, False, True])
    with torch.no_grad():
        strip = model.encode_place(above, street, has_panorama=has)
        both = model.encode_place(above, street)
        alone = model.encode_place(above)
        torch.testing.assert_close(alone, model.encoder(above, circular=True))
        torch.testing.assert_close(model.encode_place(None, street), model.encode_place(street))
    torch.testing.assert_close(strip[[0, 2]], both[[0, 2]])
    torch.testing.assert_close(strip[1], alone[1])
    with pytest.raises(ValueError, match="polar_satellite: expected"):
        model.encode_place()


def with_settings(**settings: object) -> GeolocalizerConfig:
    return GeolocalizerConfig(**{**vars(TINY), **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("sharing", ["all", "references", "none"])
def test_sharing(sharing: str) -> None:
    """Which weights each of the three images goes through, told by the gradients."""
    torch.manual_seed(0)
    model = Geolocalizer(with_settings(sharing=sharing))
    reached = {}
    for name, encode in (
        ("photo", lambda: model.encode_photo(images(2, 64)).strips),
        ("satellite", lambda: model.encode_sources(images(2), None)[0]),
        ("street", lambda: model.encode_sources(None, images(2))[1]),
    ):
        model.zero_grad()
        (encode() * torch.randn(16, 4, 1)).sum().backward()
        reached[name] = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert (
        reached
        == {
            "all": {"photo": {"encoder"}, "satellite": {"encoder"}, "street": {"encoder"}},
            "references": {
                "photo": {"encoder"},
                "satellite": {"reference_encoder"},
                "street": {"reference_encoder"},
            },
            "none": {"photo": {"encoder"}, "satellite": {"satellite_encoder"}, "street": {"street_encoder"}},
        }[sharing]
    )


@pytest.mark.parametrize("sharing", ["all", "none"])
@pytest.mark.parametrize("source", ["satellite", "street"])
def test_single_source_models(sharing: str, source: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Geolocalizer(with_settings(sharing=sharing, sources=source)).eval()
    assert not any(other in name for name, _ in model.named_parameters() for other in ("fusion", "unused"))
    given = {"satellite": (images(3), None), "street": (None, images(3))}[source]
    has = torch.tensor([True, False, True])
    with torch.no_grad():
        strips = model.encode_place(*given)
        # What the model has no use for changes nothing, and is not needed.
        torch.testing.assert_close(model.encode_place(images(3), images(3)), strips)
        lacking = model.encode_place(images(3), images(3), has_satellite=has, has_panorama=has)
    torch.testing.assert_close(lacking[[0, 2]], strips[[0, 2]])
    assert not lacking[1].any()
    with pytest.raises(ValueError, match="polar_satellite: expected"):
        model.encode_place(*reversed(given))
    model.save(tmp_path / "model.safetensors")
    assert Geolocalizer.load(tmp_path / "model.safetensors").config == model.config


def test_places_without_any_source_score_nothing(model: Geolocalizer) -> None:
    has = torch.tensor([True, False, False, True])
    street = torch.tensor([True, True, False, False])
    polar, panorama = images(4).clone(), images(4).flip(-1).clone()
    polar[~has], panorama[~street] = float("nan"), float("nan")  # never looked at
    with torch.no_grad():
        strips = model.encode_place(polar, panorama, has_satellite=has, has_panorama=street)
        torch.testing.assert_close(strips[0], model.encode_place(polar[:1], panorama[:1])[0])
        torch.testing.assert_close(strips[1], model.encode_place(None, panorama[1:2])[0])
        torch.testing.assert_close(strips[3], model.encode_place(polar[3:])[0])
        photo = model.encode_photo(images(1, 64))
    assert not strips[2].any()
    assert azimuth_match(photo.strips, strips, query_width=photo.width).score[0, 2] == 0
    with pytest.raises(ValueError, match="has_satellite: expected bool"):
        model.encode_place(images(4), images(4), has_satellite=has.int())


def test_strips_go_into_the_operators_as_they_are(model: Geolocalizer) -> None:
    with torch.no_grad():
        places = model.encode_place(images(5), images(5).flip(-1))
        photo = model.encode_photo(images(2, 64), torch.tensor([64, 40]))
    match = azimuth_match(photo.strips, places, query_width=photo.width)
    bank = StripBank.pack(places, dtype="fp32", column0_deg=model.config.column0_deg)
    found = strip_topk(photo.strips, bank, 5, query_width=photo.width)
    torch.testing.assert_close(found.score, match.score.sort(dim=1, descending=True).values)


def test_a_photos_strip_does_not_depend_on_its_batch(model: Geolocalizer) -> None:
    width = torch.tensor([64, 40, 96, 7, 64, 55])
    photo = images(6, 96)
    with torch.no_grad():
        mixed = model.encode_photo(photo, width)
        assert mixed.strips.shape == (6, 16, 4, 6)
        # round(w / 16), halves up, at least 1
        assert mixed.width.tolist() == [4, 3, 6, 1, 4, 3]
        torch.testing.assert_close(mixed.strips.flatten(1).norm(dim=1), torch.ones(6))
        for i, w in enumerate(width.tolist()):
            alone = model.encode_photo(photo[i : i + 1, ..., :w]).strips[0]
            n = int(mixed.width[i])
            torch.testing.assert_close(mixed.strips[i, ..., :n], alone, atol=1e-5, rtol=0)
            assert not mixed.strips[i, ..., n:].any()
        # What lies beyond a photo's width is never read.
        poisoned = photo.clone()
        for i, w in enumerate(width.tolist()):
            poisoned[i, ..., w:] = float("nan")
        torch.testing.assert_close(model.encode_photo(poisoned, width).strips, mixed.strips)


def test_photos_stay_centred(model: Geolocalizer) -> None:
    """Rounding to strip columns cuts or adds evenly: the centre is where it was."""
    black = -torch.tensor(IMAGE_MEAN) / torch.tensor(IMAGE_STD)
    photo = images(1, 64)
    with torch.no_grad():
        whole = model.encode_photo(photo).strips
        framed = black.view(1, 3, 1, 1).expand(1, 3, 64, 64).clone()
        framed[..., 3:61] = photo[..., 3:61]
        torch.testing.assert_close(model.encode_photo(photo[..., 3:61]).strips, model.encode_photo(framed).strips)
        wider = nn.functional.pad(photo, (3, 3))
        torch.testing.assert_close(model.encode_photo(wider).strips, whole)


def test_batch_of_one_trains_and_empty_batches_pass(model: Geolocalizer) -> None:
    model.train()
    strip = model.encode_place(images(1), images(1).flip(-1))
    photo = model.encode_photo(images(1, 64))
    (strip[..., :4] * photo.strips).sum().backward()
    trained = [n for n, p in model.named_parameters() if p.grad is None]
    assert trained == ["log_scale", "log_temperature"]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.encode_photo(images(0, 64)).strips.shape[0] == 0
    assert model.encode_place(images(0), images(0)).shape == (0, 16, 4, 16)


def test_bad_widths_are_refused(model: Geolocalizer) -> None:
    for width in (torch.tensor([0]), torch.tensor([65]), torch.tensor([1.0]), torch.ones(2).int()):
        with pytest.raises(ValueError, match="width: expected"):
            model.encode_photo(images(1, 64), width)


def test_scale_and_temperature_start_as_configured() -> None:
    model = Geolocalizer(TINY)
    assert model.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert model.temperature.item() == pytest.approx(0.07, rel=1e-5)


# -- bundles -----------------------------------------------------------------------------------


def test_bundle_round_trip(model: Geolocalizer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fingerprint = model.save(path)
    loaded = Geolocalizer.load(path)
    assert loaded.config == model.config
    assert loaded.fingerprint == fingerprint == model.save(tmp_path / "again.safetensors")
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_place(images(1)), model.encode_place(images(1)), atol=0, rtol=0)
    assert sorted(os.listdir(tmp_path)) == ["again.safetensors", "model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bundle(model: Geolocalizer, tmp_path: Path, dtype: torch.dtype) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert model.save(full) != model.save(half, dtype=dtype)
    assert half.stat().st_size < 0.7 * full.stat().st_size
    loaded = Geolocalizer.load(half)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    with torch.no_grad():
        cosine = (loaded.encode_place(images(1)) * model.encode_place(images(1))).sum()
    assert cosine > 0.999


def _rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata)


def test_damaged_bundles_are_refused(model: Geolocalizer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path)
    whole = path.read_bytes()

    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match="expected a safetensors file"):
            Geolocalizer.load(path)

    flipped = bytearray(whole)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(BundleError, match="the file was altered"):
        Geolocalizer.load(path)

    def other_config(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["config"])
        config["assumed_fov_deg"] = 60.0
        metadata["config"] = json.dumps(config)

    def other_version(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata["version"] = "2"

    def no_metadata(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata.clear()

    for change, message in (
        (other_config, "the file was altered"),
        (other_version, "version 1, got geoloc_fast.geolocalizer 2"),
        (no_metadata, "expected geoloc_fast.geolocalizer"),
    ):
        path.write_bytes(whole)
        _rewritten(path, change)
        with pytest.raises(BundleError, match=message):
            Geolocalizer.load(path)

    with pytest.raises(FileNotFoundError):
        Geolocalizer.load(tmp_path / "absent.safetensors")


def test_weights_of_another_architecture_are_refused(
    model: Geolocalizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    other = GeolocalizerConfig(**{**vars(TINY), "strip": (8, 4, 16)})
    for config, message in (
        (other.to_json(), "expected the weights of its config"),
        (other.to_json().replace("convnext_atto", "no_such_net"), "expected a usable config"),
        (other.to_json().replace("sharing", "shearing"), "expected a usable config"),
        (
            other.to_json().replace('"depths":[', '"act_layer":"none","depths":['),
            "expected a usable config, got KeyError",
        ),
        (other.to_json().replace('"column0_deg":180.0', '"column0_deg":NaN'), "column0_deg: expected an angle"),
        (other.to_json().replace('"column0_deg":180.0', '"column0_deg":"south"'), "column0_deg: expected an angle"),
        ("not json", "expected a usable config"),
    ):
        monkeypatch.setattr(GeolocalizerConfig, "to_json", lambda self, text=config: text)
        model.save(path)
        monkeypatch.undo()
        with pytest.raises(BundleError, match=message):
            Geolocalizer.load(path)


def test_extra_and_missing_tensors_are_refused(model: Geolocalizer, tmp_path: Path) -> None:
    """Also with a fingerprint that fits them."""
    path = tmp_path / "model.safetensors"
    for name, value in (("encoder.extra", torch.zeros(3)), ("log_scale", None)):
        state = model.state_dict()
        if value is None:
            del state[name]
        else:
            state[name] = value
        model.state_dict = lambda state=state: state  # type: ignore[method-assign,misc,assignment]
        model.save(path)
        del model.state_dict
        with pytest.raises(BundleError, match=f"expected the weights of its config, got {name}"):
            Geolocalizer.load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharing": "some"}, "sharing: expected one of"),
        ({"fusion": "sum"}, "fusion: expected one of"),
        ({"sources": "map"}, "sources: expected one of"),
        ({"backbone": "hf-hub:someone/something"}, "backbone: expected the plain name"),
        ({"backbone_kwargs": {"checkpoint_path": "/tmp/x.pth"}}, "backbone_kwargs: expected settings"),
        ({"backbone_kwargs": {"pretrained": True}}, "backbone_kwargs: expected settings"),
        ({"image_size": (64,)}, "image_size: expected"),
    ],
)
def test_bad_configs_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(**settings)


def test_backbone_weights_come_from_a_file(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", **TINY.backbone_kwargs)
    path = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file(whole.state_dict(), path)
    model = Geolocalizer(with_settings(sharing="references"), pretrained=path).eval()
    whole.eval()
    with torch.no_grad():
        expected = whole.stages[:3](whole.stem(images(1)))
        for encoder in (model.encoder, model.reference_encoder):
            torch.testing.assert_close(encoder.network.backbone(images(1))[0], expected)

    model.save(path)
    again = Geolocalizer(with_settings(fusion="concat"), pretrained=path)
    with torch.no_grad():
        torch.testing.assert_close(again.encoder.network.backbone.eval()(images(1))[0], expected)
    heads = (one.encoder.network.head.state_dict() for one in (model, again))
    for (name, value), same in zip(*(head.items() for head in heads), strict=True):
        assert torch.equal(value, same[1]), name
    one_column = Geolocalizer(with_settings(strip=(32, 1, 1)), pretrained=path)  # of another head: its own stays
    with torch.no_grad():
        torch.testing.assert_close(one_column.encoder.network.backbone.eval()(images(1))[0], expected)

    with torch.no_grad():  # each encoder its own, and that of photos for one the file has not
        for weight in model.reference_encoder.parameters():
            weight.add_(1)
    model.save(path)
    for sharing in ("references", "none"):
        again = Geolocalizer(with_settings(sharing=sharing), pretrained=path)
        for name, encoder in again.named_children():
            if name.endswith("encoder"):
                same = model.reference_encoder if name == "reference_encoder" else model.encoder
                for weight, expected in zip(encoder.parameters(), same.parameters(), strict=True):
                    assert torch.equal(weight, expected), (sharing, name)

    other = timm.create_model("convnext_atto", depths=[1, 1, 2, 1], dims=[8, 16, 24, 32])
    safetensors.torch.save_file(other.state_dict(), path)
    with pytest.raises(ValueError, match=r"backbone\.safetensors: expected .* of convnext_atto, got"):
        Geolocalizer(TINY, pretrained=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        Geolocalizer(TINY, pretrained=path)
    torch.save({}, path)  # a pickle is never opened as one
    with pytest.raises(ValueError, match="expected a safetensors file"):
        Geolocalizer(TINY, pretrained=path)


def test_a_failed_save_leaves_the_old_bundle(
    model: Geolocalizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    fingerprint = model.save(path)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with torch.no_grad():
        model.log_scale.add_(1.0)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert Geolocalizer.load(path).fingerprint == fingerprint
