"""PanoGAN: shapes, what is circular stays circular, what feedback and discriminators do, bundles, and what is
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast.errors import BundleError
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig, PanoGAN, PanoGANConfig
from geoloc_fast.polar import polar_resample

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "image_size": (32, 128),
    "channels": 4,
    "blocks": (1, 1),
    "discriminator_channels": 4,
    "features": 4,
    "classes": 3,
}


def network(**given: Any) -> PanoGAN:
    torch.manual_seed(0)
    return PanoGAN(PanoGANConfig(**{**TINY, **given})).eval()


def satellites(model: PanoGAN, count: int = 2) -> Tensor:
    side = model.config.satellite_size
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("condition", ["rotations", "polar"])
@pytest.mark.parametrize("size", [(32, 128), (128, 512)])
def test_shapes(size: tuple[int, int], condition: str) -> None:
    model = network(image_size=size, condition=condition, passes=3)
    seen = model.condition(satellites(model))
    made = model.passes(seen, discriminator_last=True)
    assert len(made) == 3
    for one in made:
        assert one.image.shape == (2, 3, *size) and one.classes is not None and one.classes.shape == (2, 3, *size)
        assert bool((one.image.abs() <= 1).all())
        for features in one.features:
            assert [level.shape for level in features] == [(2, 4, size[0] >> n, size[1] >> n) for n in (1, 2, 3, 4, 5)]
    scores = model.scores(made[0].features)
    assert [len(own) for own in scores] == [5, 5]
    assert scores[0][0].shape == (2, 1, size[0] // 2, size[1] // 2)
    pixels = model.generate(satellites(model))
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 3, *size)


def test_the_paper_size_is_the_default() -> None:
    with torch.device("meta"):
        model = PanoGAN()
    assert model.config.image_size == (256, 1024) and model.config.satellite_size == 256
    assert model.config.passes == 2 and len(model.generator.corrections) == 5
    # Encoder 4 convolutions, 4 + 5 blocks of two, 5 of the decoder, 5 corrections of two: nothing of them is missing.
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.generator.named_children()}
    assert sizes == {
        "down": 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512),
        "before": 4 * 2 * 9 * 512**2,
        "after": 5 * 2 * 9 * 512**2,
        "up": 9 * (768 * 256 + 384 * 128 + 192 * 64),
        "last": 9 * 64 * 32,
        "out": 9 * 32 * 12 + 12,
        "corrections": sum(9 * (128 * width + width**2) for width in (32, 64, 128, 256, 512)),
    }


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("condition", ["rotations", "polar"])
def test_rolling_the_condition_rolls_the_panorama(condition: str, passes: int) -> None:
    model = network(condition=condition, passes=passes).double()
    seen = model.condition(satellites(model)).double()
    by = model.config.roll_columns
    made = model(seen)
    assert torch.allclose(model(seen.roll(by, 3)), made.roll(by, 3), atol=1e-9)
    # The property is worth something: the panorama depends on the condition, and half as much does not do.
    assert float((made.roll(by, 3) - made).detach().abs().max()) > 0.1
    assert not torch.allclose(model(seen.roll(by // 2, 3)), made.roll(by // 2, 3), atol=1e-3)


def test_rotations_have_each_direction_up() -> None:
    model = network()
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, :4] = 255  # red in the north
    image[0, 1, :, -4:] = 255  # green in the east
    seen = model.condition(image)
    north, east, west = 64, 96, 32  # column 0 looks south
    for column, channel in ((north, 0), (east, 1)):
        # The direction a stretch looks in is at its top.
        assert bool((seen[0, channel, 0, column - 10 : column + 10] == 1).all())
    assert bool((seen[0, 1, :, north + 12 : north + 16] == 1).all())  # east is on the right of north
    assert bool((seen[0, 0, -4:, [0, -1]] == 1).all())  # north is behind who looks south
    assert bool((seen[0, :2, 0, west - 10 : west + 10] == -1).all())


def test_turning_the_place_is_rolling_the_condition() -> None:
    turn = torch.tensor([90.0, 270.0], dtype=torch.float64)
    for condition in ("rotations", "polar"):
        model = network(condition=condition)
        images = satellites(model)
        plain, turned = model.condition(images), model.condition(images, turn_deg=turn)
        expected = torch.stack([plain[0].roll(-32, 2), plain[1].roll(32, 2)])
        assert torch.allclose(turned, expected, atol=1e-4)
    polar = network(condition="polar")
    images = satellites(polar)
    mirrored = polar.condition(images.flip(3), mirrored=torch.tensor([True, True]))
    plain = polar.condition(images)
    assert torch.allclose(mirrored, plain.roll(-1, 3).flip(3), atol=1e-4)  # azimuth a at -a
    whole = polar_resample(images, (32, 128), border="replicate", mean=(127.5,) * 3, std=(127.5,) * 3)
    assert torch.equal(plain, whole)


def test_feedback_is_what_the_discriminators_see() -> None:
    """The second pass is the first one, corrected: without correction nothing changes, and other discriminators
    change it."""
    model = network()
    seen = model.condition(satellites(model))
    first, second = model.passes(seen)
    assert not torch.allclose(first.image, second.image, atol=1e-3)
    with torch.no_grad():
        for correction in model.generator.corrections:
            correction.size = 0.0
        same = model.passes(seen)
    assert torch.equal(same[0].image, first.image) and torch.allclose(same[1].image, first.image, atol=1e-6)
    other = network()
    with torch.no_grad():
        for discriminator in other.discriminators:
            for p in discriminator.parameters():
                p.mul_(-1)
        assert torch.equal(other.passes(seen)[0].image, first.image)
        assert not torch.allclose(other.passes(seen)[1].image, second.image, atol=1e-3)


def test_alignment_joins_both_scores() -> None:
    model = network()
    seen = model.condition(satellites(model))
    features = model.passes(seen, discriminator_last=True)[-1].features
    joined = model.scores(features)
    for level in range(5):
        plain = [
            discriminator.scores(own)[level] for discriminator, own in zip(model.discriminators, features, strict=True)
        ]
        one, two = (
            discriminator.embedding(own[level])
            for discriminator, own in zip(model.discriminators, features, strict=True)
        )
        agreement = torch.einsum("bchw,bchw->bhw", one, two)[:, None] / 2  # sqrt of 4 features
        for own, alone in zip(joined, plain, strict=True):
            assert torch.allclose(own[level], alone + agreement, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = network().double()
    seen = model.condition(satellites(model, 3)).double()
    assert torch.allclose(model(seen)[1:2], model(seen[1:2]), atol=1e-9)


def test_the_baseline_has_no_feedback() -> None:
    model = network(passes=1, classes=0, discriminators="patch")
    seen = model.condition(satellites(model))
    (one,) = model.passes(seen, discriminator_last=True)
    assert one.classes is None and not hasattr(model.generator, "corrections")
    ((scores,),) = model.scores(one.features)
    assert scores.shape == (2, 1, 4, 16)


def test_bundles(tmp_path: Path) -> None:
    model = network(condition="polar")
    fingerprint = model.save(tmp_path / "a.safetensors")
    again = PanoGAN.load(tmp_path / "a.safetensors")
    assert again.config == model.config and again.fingerprint == fingerprint and not again.training
    images = satellites(model)
    assert torch.equal(again.generate(images), model.generate(images))
    with pytest.raises(BundleError, match=r"expected geoloc_fast.geolocalizer version 1, got geoloc_fast.panogan 1"):
        Geolocalizer.load(tmp_path / "a.safetensors")
    small = {"backbone": "convnext_atto", "image_size": (32, 128), "strip": (8, 2, 8)}
    Geolocalizer(GeolocalizerConfig(**small)).save(tmp_path / "b.safetensors")
    with pytest.raises(BundleError, match=r"expected geoloc_fast.panogan version 1"):
        PanoGAN.load(tmp_path / "b.safetensors")
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match="the file was altered"):
        PanoGAN.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": (48, 128)}, r"image_size: expected \(rows, columns\), multiples of 32"),
        ({"image_size": (64, 128)}, "image_size: expected rows that are a quarter"),
        ({"condition": "map"}, "condition: expected one of 'rotations', 'polar', got 'map'"),
        ({"passes": 0}, "passes: expected an integer from 1 to 16, got 0"),
        ({"discriminators": "patch"}, "discriminators: expected 'pyramid' for more than one pass"),
        ({"channels": 10**6}, "channels: expected an integer from 1 to 1024"),
        ({"blocks": (1,)}, "blocks: expected two counts"),
        ({"extent_m": float("nan")}, "extent_m: expected metres"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PanoGANConfig(**{**TINY, **given})


def test_satellite_images_of_another_size_are_refused() -> None:
    model = network()
    with pytest.raises(
        ValueError, match=r"satellite: expected uint8 \[B, 3, 32, 32\], got torch.uint8 \[1, 3, 16, 16\]"
    ):
        model.generate(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
