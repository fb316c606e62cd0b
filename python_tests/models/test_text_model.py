"""The text model: bundle, contract, and the losses it is trained with."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from geoloc_fast import StripBank, TileSignature, azimuth_match, shift_to_heading, strip_topk, tile_signature
from geoloc_fast.errors import BundleError, WordError
from geoloc_fast.models.contract import Model, Photo, PlaceBatch, Text, load_model
from geoloc_fast.models.text.model import PHYSICAL, TextGeolocalizer, TextGeolocalizerConfig
from geoloc_fast.models.text.sights import LinearRead, Sights, Tellings, log_parts, parts
from geoloc_fast.testing.text_encoder import write_text_encoder
from geoloc_fast.training.consistency import TERMS, consistency, signature_means
from geoloc_fast.training.losses import info_nce

pytest.importorskip("tokenizers", reason="descriptions need the extra [text]")

THINGS = ("house", "house: red", "water")
SIZES = {"things": THINGS, "materials": 2, "heads": 2, "learned_layers": 1}
CODE = 10 * len(THINGS)
TEXTS = ("red roofs on the left", "a white church on the corner of the park, trees")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextGeolocalizer:
    torch.manual_seed(0)
    words = ["red", "roofs", "on", "the", "left", "white", "church", "corner", "park", "trees"]
    folder = write_text_encoder(tmp_path_factory.mktemp("tiny"), words)
    return TextGeolocalizer.begin(folder, None, **SIZES).eval()


def places(count: int) -> PlaceBatch:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 224, 224), np.uint8))
    has = torch.ones(count, dtype=torch.bool)
    number = torch.arange(count, dtype=torch.float64)
    none = torch.zeros(count, dtype=torch.bool)
    return PlaceBatch(images, has, number * 0 + 0.22, images[..., :8], none, number, number)


def test_it_keeps_the_contract(model: TextGeolocalizer) -> None:
    assert isinstance(model, Model) and model.kind == "text"
    text, facing = model.layers
    assert (text.name, text.strip, text.score, text.column0_deg) == ("text", (CODE, 1, 1), "dot", None)
    assert (facing.name, facing.strip, facing.score, facing.column0_deg) == ("facing", (3, 1, 8), "dot", 0.0)
    assert model.query_input.takes == ("text",) and model.place_input.takes == ("satellite",)
    batch = places(3)
    batch = batch._replace(has_satellite=torch.tensor([True, False, True]))
    for name, shape in (("text", (2, CODE, 1, 1)), ("facing", (2, 3, 1, 8))):
        rows = model.encode_places(batch)[name]
        assert rows.place is not None and rows.place.tolist() == [0, 2] and rows.strips.shape == shape
    queries = [Text(text) for text in TEXTS]
    strips = model.encode_queries(queries)["text"].strips
    assert strips.shape == (2, CODE, 1, 1) and model.encode_queries([])["text"].strips.shape == (0, CODE, 1, 1)
    assert torch.equal(model.encode_queries(queries[::-1])["text"].strips, strips.flip(0))
    with pytest.raises(TypeError, match="expected texts, got Photo"):
        model.encode_queries([Photo(np.zeros((8, 8, 3), np.uint8))])
    with pytest.raises(WordError):
        model.encode_queries([Text(" ")])


def test_the_bundle_is_whole(model: TextGeolocalizer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fingerprint = model.save(path, dtype=torch.float32)
    loaded = load_model(path)
    assert isinstance(loaded, TextGeolocalizer) and loaded.fingerprint == fingerprint
    # Nothing beside the file is needed: neither the encoder's folder nor its package.
    want = model.encode_queries([Text(text) for text in TEXTS])["text"].strips
    assert torch.equal(loaded.encode_queries([Text(text) for text in TEXTS])["text"].strips, want)
    assert loaded.config.encoder.tokenizer_sha256 and "sha256" in loaded.config.provenance["encoder"]
    content = bytearray(path.read_bytes())
    content[content.index(b"WordPiece")] ^= 1  # in the tokenizer that the bundle holds
    path.write_bytes(content)
    with pytest.raises(BundleError, match="altered"):
        load_model(path)
    other = TextGeolocalizer(dataclasses.replace(model.config, provenance={})).eval()
    other.load_state_dict(model.state_dict())
    other.tokenizer[-1] = 32  # type: ignore[index, operator]
    with pytest.raises((BundleError, ValueError), match="tokenizer"):
        other.encode_queries([Text("a church")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"satellite_px": 200}, "multiple of 16 from 128"),
        ({"heads": 7}, "divisor of the width"),
        ({"learned_layers": 7}, "0 to the encoder's 6"),
        ({"things": ()}, "things: expected 1 to"),
        ({"things": ("a", "a")}, "different names"),
        ({"materials": 0}, "materials: expected a whole number"),
        ({"range_m": (60, 50)}, "range_m"),
        ({"tokenizer_bytes": -1}, "tokenizer_bytes"),
        ({"encoder": {"family": "gpt"}}, "bert or clip"),
    ],
)
def test_configs_that_make_no_sense(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextGeolocalizerConfig(**change)


def test_the_split_way_is_the_whole_way(model: TextGeolocalizer) -> None:
    """What training keeps (frozen states, frozen features) leads to the codes that the contract gives."""
    tokens = model.tokens(list(TEXTS))
    with torch.no_grad():
        codes = model.text_codes(model.frozen_states(tokens), tokens)
    want = model.encode_queries([Text(text) for text in TEXTS])
    torch.testing.assert_close(codes.code, want["text"].strips.flatten(1))
    torch.testing.assert_close(codes.facing, want["facing"].strips[:, :, 0])
    assert {name: part.shape[1] for name, part in codes.physical.items()} == PHYSICAL
    images = places(2)
    with torch.no_grad():
        seen = model.seen(model.sights(*model.image_features(images.satellite)))
    rows = model.encode_places(images)
    torch.testing.assert_close(rows["text"].strips.view(2, -1, 10), seen[..., [*range(8), 16, 17]])
    torch.testing.assert_close(rows["facing"].strips[:, :, 0], seen[..., 8:16])
    found = [
        strip_topk(want[name].strips, StripBank.pack(rows[name].strips, dtype="fp32"), 2, score="dot")
        for name in ("text", "facing")
    ]
    text, facing = (one.score.gather(1, one.index.argsort(1)) for one in found)
    torch.testing.assert_close(model.scores(codes, seen), text + facing * codes.faces[:, None])  # as a search adds up
    learned = {name for name, value in model.named_parameters() if value.requires_grad}
    assert not any(name.startswith("backbone") for name in learned)
    assert {name.split(".")[2] for name in learned if name.startswith("encoder")} == {"1"}


def test_each_term_and_their_sum(model: TextGeolocalizer) -> None:
    torch.manual_seed(1)
    images = places(6).satellite
    signature = tile_signature(images)
    means = signature_means(signature)
    score = torch.randn(6, 6)
    told = {name: torch.randn(6, size, requires_grad=True) for name, size in PHYSICAL.items()}
    losses = consistency(score, told, signature, means, temperature=0.1)
    assert tuple(losses) == TERMS
    torch.testing.assert_close(losses["global"], info_nce(score, temperature=0.1))
    for name in PHYSICAL:
        # Text that tells the signature itself, up to its length, has next to no loss; any other has.
        seen = getattr(signature, name) - getattr(means, name)
        perfect = consistency(score, {name: 5 * seen}, signature, means, temperature=0.1, terms=[name])
        assert list(perfect) == [name] and perfect[name] < losses[name]
        (grad,) = torch.autograd.grad(losses[name], told[name], retain_graph=True)
        assert grad.abs().sum() > 0 and all(
            torch.autograd.grad(losses[name], told[other], allow_unused=True, retain_graph=True)[0] is None
            for other in PHYSICAL
            if other != name
        )
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[0, 1] = True
    masked = consistency(score, told, signature, means, temperature=0.1, mask=mask)
    assert all((masked[name] < losses[name]).item() for name in TERMS)
    assert consistency(score, told, signature, means, temperature=0.1, terms=[]) == {}
    for terms in (["colour", "colour"], ["sound"]):
        with pytest.raises(ValueError, match="terms: expected some of global"):
            consistency(score, told, signature, means, temperature=0.1, terms=terms)


def test_pairs_are_learned(model: TextGeolocalizer) -> None:
    """Twelve places told apart by the words for them: the loss falls, its gradient reaches what is to be learned."""
    torch.manual_seed(2)
    learner = TextGeolocalizer(model.config)
    learner.load_state_dict(model.state_dict())
    colours, things = ("red", "white"), ("church", "park", "corner", "trees", "roofs", "left")
    tokens = learner.tokens([f"a {colour} {thing}" for colour in colours for thing in things])
    seen = 3 * torch.randn(12, len(THINGS), 18)
    signature = TileSignature(*(torch.rand(12, size) for size in PHYSICAL.values()))
    with torch.no_grad():
        states = learner.frozen_states(tokens)
    optimiser = torch.optim.Adam([value for value in learner.parameters() if value.requires_grad], lr=1e-2)
    sums = []
    for _ in range(100):
        codes = learner.text_codes(states, tokens)
        losses = consistency(
            learner.scores(codes, seen),
            codes.physical,
            signature,
            signature_means(signature),
            temperature=learner.temperature,
        )
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        sums.append(losses["global"].item())
    assert sums[0] > 0.7 * math.log(12) and sums[-1] < 0.6 * sums[0]
    assert learner.encoder.layer[1].query.weight.grad is not None
    assert learner.encoder.layer[0].query.weight.grad is None


def made(things: int = len(THINGS)) -> TextGeolocalizer:
    told = {"width": 16, "heads": 2, "layers": 1}
    return TextGeolocalizer(TextGeolocalizerConfig(things=THINGS[:things], materials=2, heads=2, encoder=told))  # type: ignore[arg-type]


def test_things_by_direction_meet() -> None:
    """What is told in the east finds what is seen there, and what has no direction what is seen at all, twice."""
    model = made().eval()
    seen = torch.zeros(len(THINGS) * 9, len(THINGS), 18)
    told = torch.zeros(len(seen), len(THINGS), 13)
    for row in range(len(seen)):
        thing, where = divmod(row, 9)
        seen[row, thing, [where] if where < 8 else [16, 17]] = 2.0
        told[row, thing, where if where < 8 else 12] = 1.0
    with torch.no_grad():
        score = model.scores(model.told_codes(told), seen)
    torch.testing.assert_close(score, torch.diag(2.0 * (1 + (torch.arange(len(seen)) % 9 == 8))))


def test_an_image_answers_for_sectors_quarters_and_all() -> None:
    shares = torch.zeros(1, 8)
    shares[0, 2] = 0.5
    found = parts(shares)[0]
    assert found[:8].tolist() == shares[0].tolist()
    assert found[8:16].tolist() == [0, 0.25, 0.5, 0.25, 0, 0, 0, 0]  # half of a sector is in the quarter beside it
    assert found[16:].tolist() == [0.5, 0.0625]
    drawn = torch.rand(50, 8)
    found = parts(drawn)
    assert (found[:, 8:16] >= drawn).all() and (found[:, 16] >= drawn.amax(1)).all() and (found <= 1).all()
    torch.testing.assert_close(parts(drawn.roll(3, 1))[:, 8:16], found[:, 8:16].roll(3, 1))
    usual = torch.full((1,), 0.5)
    assert (
        log_parts(torch.full((1, 8), 0.5), usual).abs().max() == 0 and log_parts(drawn[:, None], usual).isfinite().all()
    )


def test_sides_turn_until_they_fit() -> None:
    """Somebody sees one thing ahead and another on the right: the place, and which way it was looked, by the search."""
    model = made().eval()
    seen = torch.zeros(8, len(THINGS), 18)
    for sector in range(8):  # at place k the first thing is seen round k, the second a quarter to the right, or left
        seen[sector, 0, 8 + sector] = 2.0
        seen[sector, 1, 8 + (sector + (2 if sector < 4 else 6)) % 8] = 2.0
    told = torch.zeros(1, len(THINGS), 13)
    told[0, 0, 8] = told[0, 1, 9] = 1.0
    codes = model.told_codes(told)
    assert codes.faces.tolist() == [True] and not model.told_codes(told.roll(5, 2)).faces[0]
    with torch.no_grad():
        score = model.scores(codes, seen)[0]
    assert score.tolist() == [4.0] * 4 + [2.0] * 4
    layer = model.layers[1]
    match = azimuth_match(codes.facing[:, :, None], seen[:, :, None, 8:16].contiguous())
    heading = shift_to_heading(match.shift[0], torch.tensor(8), 8, column0_deg=float(layer.column0_deg or 0.0))
    assert heading[:4].tolist() == [0.0, 45.0, 90.0, 135.0]


def test_sentences_are_read_one_by_one(model: TextGeolocalizer) -> None:
    tokens = model.tokens(["red roofs. trees on the left. a park", "church"])
    assert tokens.sentence[0].tolist() == [-1, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, -1]
    assert tokens.sentence[1].tolist()[:4] == [-1, 0, -1, -1]
    states, words = torch.randn(2, 2, 12, 16)
    features, there = Tellings.sentences(states, words, tokens.sentence)
    torch.testing.assert_close(features[0, 1], torch.cat([states[0, 4:9].mean(0), words[0, 4:9].sum(0)]))
    assert there.tolist() == [[True, True, True], [True, False, False]]
    reader = Tellings(16, 3)
    with torch.no_grad():
        whole = reader(states, words, tokens.sentence)
        only = [tokens.sentence[:1].where(tokens.sentence[:1] == n, -1) for n in range(3)]
        parts = [reader(states[:1], words[:1], one) for one in only]
    torch.testing.assert_close(whole[:1], sum(parts))


def test_linear_maps_are_least_squares() -> None:
    torch.manual_seed(5)
    x = torch.randn(500, 6) * torch.tensor([1, 10, 0.1, 1, 1, 0.0]) + 3
    y = x[:, :2] @ torch.tensor([[0.2, -1.0], [0.03, 0.0]]) + 0.5
    read, fold = LinearRead(6, 2), torch.arange(500) % 3
    read.solve(x, y, fold, ridge=1e-9)
    torch.testing.assert_close(read.linear((x - read.mean) * read.scale), y, rtol=1e-4, atol=1e-4)
    read.solve(x, y, fold, ridge=1e9)
    assert read.linear.weight.abs().max() < 1e-6
    for rows in (slice(1), slice(500)):
        with pytest.raises(ValueError, match="two rows in two folds"):
            read.solve(x[rows], y[rows], torch.zeros(500, dtype=torch.int64)[rows], ridge=1.0)


def test_a_map_knows_how_sure_it_is() -> None:
    """One thing is told by its features everywhere, one by others in each fold, one not at all, one never occurs."""
    torch.manual_seed(6)
    x, fold = torch.randn(3000, 12), torch.arange(3000) % 3
    y = torch.stack([x[:, 0] > 1, x[torch.arange(3000), 1 + fold] > 1, torch.rand(3000) < 0.2, x[:, 0] > 99], 1).float()
    read = LinearRead(12, 4)
    found = read.solve(x, y, fold, ridge=0.01)
    for thing, (least, most) in enumerate([(0.6, 1.0), (0.0, 0.45), (0.0, 0.1), (0.0, 1e-3)]):
        sure = found[y[:, thing] > 0, thing].mean() if thing < 3 else found[:, thing].max()
        away = found[y[:, thing] == 0, thing].mean()
        assert least <= (sure - away if thing < 3 else sure) <= most, thing
    for low in torch.linspace(0, 0.9, 10):  # of those of which it says p, p have it
        some = (found[:, 0] >= low) & (found[:, 0] < low + 0.1)
        if some.sum() > 100:
            assert abs(y[some, 0].mean() - found[some, 0].mean()) < 0.12
    assert read(x)[:, 2].std() < 0.05


def test_an_image_turned_clockwise_shows_the_next_sectors() -> None:
    torch.manual_seed(3)
    sights = Sights((1, 1, 1), 28, 2, 1).eval()
    with torch.no_grad():
        for layer in (sights.second, sights.third):
            layer.weight[:] = layer.weight.mean((2, 3), keepdim=True)  # the same in every direction
        fine, coarse = torch.randn(2, 17, 28, 28), torch.randn(2, 1, 14, 14)
        before = sights(fine, coarse)
        after = sights(fine.rot90(-1, (2, 3)), coarse.rot90(-1, (2, 3)))
    torch.testing.assert_close(after, before.roll(2, 2), rtol=1e-4, atol=1e-4)
    assert (before - before.roll(2, 2)).abs().max() > 1e-3
