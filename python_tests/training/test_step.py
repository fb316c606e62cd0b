"""One step: gradients are those of plain losses written down again, with gradient caching and over processes."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path

import pytest
import torch
from training_runs import (
    NETWORK,
    LossSettings,
    assert_same,
    gradients,
    network,
    settings,
    some_batch,
    steps,
)

from geoloc_fast import azimuth_match
from geoloc_fast.images.augment import generator_of
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.ops.choose import force_backend
from geoloc_fast.training.losses import info_nce, shift_cross_entropy
from geoloc_fast.training.recipes.geolocalizer import read_settings
from geoloc_fast.training.recipes.geolocalizer.settings import KINDS
from geoloc_fast.training.recipes.geolocalizer.step import NETWORK as NETWORK_NOISE
from geoloc_fast.training.recipes.geolocalizer.terms import CUTS, losses, window_noise
from geoloc_fast.training.step import seeded


def test_a_step_is_the_sum_of_its_losses() -> None:
    model, batch = network(), some_batch(8)
    how = settings(loss=LossSettings(cuts=0.5), without_panorama=0.0)
    grads, numbers = gradients(model, how, batch)
    model.zero_grad()
    has_satellite, has_panorama = steps.sources_used(batch, how, 2)
    assert has_satellite.tolist() == (torch.arange(8) != 2).tolist()
    assert has_panorama.tolist() == [True, True, True, True, False, False, True, True]
    above, street = model.encode_sources(batch["polar"], batch["panorama"])
    places = model.fuse(above, street, has_satellite=has_satellite, has_panorama=has_panorama)
    photo = model.encode_photo(batch["photo"], batch["photo_width"])
    noise = window_noise(how.seed, 7, 8, 8, 8, places.device)
    match = azimuth_match(
        photo.strips, places, query_width=photo.width, select="gumbel", scale=model.scale, noise=noise
    )
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    loss = info_nce(match.score, temperature=model.temperature, mask=near)
    both = has_satellite & has_panorama
    cosine = above[both].flatten(1) @ street[both].flatten(1).T
    loss = loss + 0.3 * info_nce(cosine, temperature=model.temperature, mask=near[both][:, both])
    start = torch.from_numpy(generator_of(how.seed, 7, 0, CUTS).integers(8, size=8))[both]
    width = photo.width[both]
    cut = torch.zeros(len(start), *street.shape[1:3], int(width.max()))
    for row, (begin, wide) in enumerate(zip(start.tolist(), width.tolist(), strict=True)):
        cut[row, ..., :wide] = street[both][row].roll(-begin, 2)[..., :wide]
    cut = cut / cut.flatten(1).norm(dim=1)[:, None, None, None]
    score = azimuth_match(cut, above[both], query_width=width).score
    loss = loss + 0.5 * info_nce(score, temperature=model.temperature, mask=near[both][:, both])
    turned = shift_cross_entropy(cut, above[both], start, query_width=width, temperature=model.temperature)
    loss = loss + 0.5 * turned
    known = torch.arange(8) != 3
    truth = ((batch["heading_deg"] - 180 - batch["turn_deg"]) / 45 - photo.width / 2) % 8
    loss = loss + shift_cross_entropy(
        photo.strips[known],
        places[known],
        truth[known],
        query_width=photo.width[known],
        temperature=model.temperature,
    )
    assert float(loss.detach()) == pytest.approx(numbers["loss"], rel=1e-5)
    loss.backward()
    assert_same(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), grads)
    window = (match.shift.diagonal() - truth + 4) % 8 - 4
    assert numbers["true_window"] == pytest.approx(float((window[known].abs() <= 1).float().mean()))


def test_a_photo_without_a_position_stands_at_its_place() -> None:
    """Two of the places lie within the threshold: neither may be a negative of the other's photo."""
    batch = some_batch(10)
    expected, numbers = gradients(network(), settings(), batch)
    unknown = torch.full_like(batch["photo_lat"], float("nan"))
    grads, theirs = gradients(network(), settings(), batch | {"photo_lat": unknown, "photo_lon": unknown})
    assert_same(expected, grads, 1e-6)
    assert theirs == pytest.approx(numbers, rel=1e-6)


def test_each_source_alone_answers_photos_too() -> None:
    """What the weight adds: photos against one source, only of places that have it."""
    model, batch = network(), some_batch(8)
    photo, (above, street) = (
        model.encode_photo(batch["photo"], batch["photo_width"]),
        model.encode_sources(batch["polar"], batch["panorama"]),
    )
    truth = ((batch["heading_deg"] - 180 - batch["turn_deg"]) / 45 - photo.width / 2) % 8
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    added = torch.zeros(())
    for strips, has in ((above, torch.arange(8) != 2), (street, torch.tensor([1, 1, 1, 1, 0, 0, 1, 1]).bool())):
        score = azimuth_match(photo.strips, strips, query_width=photo.width, select="cosine").score
        one = info_nce(score[has][:, has], temperature=model.temperature, mask=near[has][:, has])
        known = has & (torch.arange(8) != 3)
        turned = shift_cross_entropy(
            photo.strips[known], strips[known], truth[known], query_width=photo.width[known], temperature=0.07
        )
        added = added + one + turned
    _, without = gradients(model, settings(loss=LossSettings(select="cosine")), batch)
    _, numbers = gradients(model, settings(loss=LossSettings(select="cosine", alone=0.5)), batch)
    assert numbers["loss"] - without["loss"] == pytest.approx(0.5 * float(added.detach()), rel=1e-4)


def test_without_matching_only_the_middle_of_a_strip_counts() -> None:
    model, batch = network(), some_batch(8)
    batch["photo_width"][:] = 32  # two columns of eight
    how = settings(loss=LossSettings(select="fixed", heading=0.0, agreement=0.0), without_panorama=0.0)
    _, numbers = gradients(model, how, batch)
    photo = model.encode_photo(batch["photo"], batch["photo_width"]).strips
    used = steps.sources_used(batch, how, 2)
    places = model.encode_place(batch["polar"], batch["panorama"], has_satellite=used[0], has_panorama=used[1])
    window = torch.nn.functional.normalize(places[..., 3:5].flatten(1), dim=1)
    near = torch.eye(8, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    loss = info_nce(photo.flatten(1) @ window.T, temperature=model.temperature, mask=near)
    assert numbers["contrast"] == pytest.approx(float(loss.detach()), rel=1e-4)
    batch["photo_width"][0] = 44
    with pytest.raises(ValueError, match=r"loss\.select: expected photos of one width"):
        gradients(model, how, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_cache_is_the_plain_step(kind: str) -> None:
    model, batch = network(), some_batch(10)
    loss = LossSettings(kind=kind, alone=0.5, cuts=0.5)
    plain, numbers = gradients(model, settings(loss=loss), batch)
    cached, cached_numbers = gradients(model, settings(loss=loss, chunk=3), batch)
    assert_same(plain, cached)
    assert numbers == pytest.approx(cached_numbers, rel=1e-4)


def test_gradient_cache_replays_the_networks_noise() -> None:
    """With stochastic depth: the same as a graph of all chunks at once, drawn from the same seeds."""
    model, how, batch = network(drop_path_rate=0.5), settings(chunk=4), some_batch(10)
    cached, _ = gradients(model, how, batch)
    model.zero_grad()
    used = steps.sources_used(batch, how, 2)
    parts = []
    for n, chunk in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        with seeded(torch.device("cpu"), how.seed, 7, n, NETWORK_NOISE):
            parts.append(steps.encode(model, batch, chunk, used, how))
    strips = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss, _ = losses(model, strips, batch, used, how, 7)
    loss.backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_same(whole, cached)
    other = steps.gradients(model, batch, how, step=8, epoch=2)
    assert other  # another step, another noise
    again = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float((again - whole).norm()) > 1e-2 * float(whole.norm())


def test_reference_operators_give_the_same_step() -> None:
    model, batch = network(), some_batch(8)
    fast, numbers = gradients(model, settings(), batch)
    with force_backend("reference"):
        slow, slow_numbers = gradients(model, settings(), batch)
    assert_same(fast, slow)
    assert numbers == pytest.approx(slow_numbers, rel=1e-4)


def test_a_model_of_one_source_is_not_denied_it() -> None:
    batch = some_batch(10)
    how = settings(without_panorama=0.9, without_satellite=0.9)
    satellite, panorama = steps.sources_used(batch, how, 0, "street")
    assert not satellite.any() and torch.equal(panorama, batch["has_panorama"] & batch["heading_known"])
    satellite, panorama = steps.sources_used(batch, how, 0, "satellite")
    assert not panorama.any() and torch.equal(satellite, batch["has_satellite"])
    # A place that it sees nothing of changes nothing: not its own photo's gradient, nor that of others.
    torch.manual_seed(0)
    model = Geolocalizer(GeolocalizerConfig(**{**NETWORK, "sources": "street"}))
    photo = batch["photo"].clone()
    _, numbers = gradients(model, how, batch)
    batch["photo"] = photo.clone()
    batch["photo"][4] = 0.0  # of a place without a panorama
    assert gradients(model, how, batch)[1]["contrast"] == pytest.approx(numbers["contrast"], rel=1e-6)


@pytest.mark.slow
def test_the_papers_network_takes_a_step_on_a_cpu(root: Path) -> None:
    """ConvNeXt-Base at 128 x 512, four pairs at once: the memory of an ordinary machine is enough."""
    made = read_settings([str(root / "train/configs/base.yaml"), "out=x", "data.manifest=y", "step.chunk=0"])
    model = Geolocalizer(GeolocalizerConfig(**made.model))
    batch = some_batch(4)
    for name in ("photo", "polar", "panorama"):
        batch[name] = torch.randn(4, 3, 128, 128 if name == "photo" else 512)
    batch["photo_width"][:] = 128
    optimiser = torch.optim.AdamW(model.parameters(), lr=made.train.lr)
    begin = time.perf_counter()
    numbers = steps.gradients(model, batch, made.step, step=0, epoch=0)
    optimiser.step()
    seconds = time.perf_counter() - begin
    print(f"{seconds:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    assert math.isfinite(numbers["loss"])
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB
