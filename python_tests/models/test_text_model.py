"""The text model: bundle, contract, and the losses it is trained with."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from geoloc_fast import TileSignature, tile_signature
from geoloc_fast.errors import BundleError, WordError
from geoloc_fast.models.contract import Model, Photo, PlaceBatch, Text, load_model
from geoloc_fast.models.text.model import PHYSICAL, TextGeolocalizer, TextGeolocalizerConfig
from geoloc_fast.testing.text_encoder import write_text_encoder
from geoloc_fast.training.consistency import TERMS, consistency, signature_means
from geoloc_fast.training.losses import info_nce

pytest.importorskip("tokenizers", reason="descriptions need the extra [text]")

SIZES = {"channels": 12, "heads": 2, "learned_layers": 1}
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
    (layer,) = model.layers
    assert (layer.name, layer.strip, layer.column0_deg) == ("text", (12, 1, 1), None)
    assert model.query_input.takes == ("text",) and model.place_input.takes == ("satellite",)
    batch = places(3)
    batch = batch._replace(has_satellite=torch.tensor([True, False, True]))
    rows = model.encode_places(batch)["text"]
    assert rows.place is not None and rows.place.tolist() == [0, 2] and rows.strips.shape == (2, 12, 1, 1)
    torch.testing.assert_close(rows.strips.flatten(1).norm(dim=1), torch.ones(2))
    queries = [Text(text) for text in TEXTS]
    strips = model.encode_queries(queries)["text"].strips
    assert strips.shape == (2, 12, 1, 1) and model.encode_queries([])["text"].strips.shape == (0, 12, 1, 1)
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
        ({"satellite_px": 200}, "multiple of 112"),
        ({"heads": 7}, "divisor of the width"),
        ({"learned_layers": 7}, "0 to the encoder's 6"),
        ({"channels": 0}, "channels: expected a whole number"),
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
        codes = model.text_codes(model.frozen_states(tokens), tokens.length)
    want = model.encode_queries([Text(text) for text in TEXTS])["text"].strips
    torch.testing.assert_close(codes.strips, want)
    assert {name: part.shape[1] for name, part in codes.physical.items()} == PHYSICAL
    learned = {name for name, value in model.named_parameters() if value.requires_grad}
    assert not any(name.startswith("backbone") for name in learned)
    assert {name.split(".")[2] for name in learned if name.startswith("encoder")} == {"1"}


def test_each_term_and_their_sum(model: TextGeolocalizer) -> None:
    torch.manual_seed(1)
    images = places(6).satellite
    signature = tile_signature(images)
    means = signature_means(signature)
    text, image = (torch.nn.functional.normalize(torch.randn(6, 12), dim=1)[:, :, None, None] for _ in range(2))
    told = {name: torch.randn(6, size, requires_grad=True) for name, size in PHYSICAL.items()}
    losses = consistency(text, image, told, signature, means, temperature=0.1)
    assert tuple(losses) == TERMS
    torch.testing.assert_close(losses["global"], info_nce(text.flatten(1) @ image.flatten(1).T, temperature=0.1))
    for name in PHYSICAL:
        # Text that tells the signature itself, up to its length, has next to no loss; any other has.
        seen = getattr(signature, name) - getattr(means, name)
        perfect = consistency(text, image, {name: 5 * seen}, signature, means, temperature=0.1, terms=[name])
        assert list(perfect) == [name] and perfect[name] < losses[name]
        (grad,) = torch.autograd.grad(losses[name], told[name], retain_graph=True)
        assert grad.abs().sum() > 0 and all(
            torch.autograd.grad(losses[name], told[other], allow_unused=True, retain_graph=True)[0] is None
            for other in PHYSICAL
            if other != name
        )
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[0, 1] = True
    masked = consistency(text, image, told, signature, means, temperature=0.1, mask=mask)
    assert all((masked[name] < losses[name]).item() for name in TERMS)
    for terms in ([], ["colour", "colour"], ["sound"]):
        with pytest.raises(ValueError, match="terms: expected some of global"):
            consistency(text, image, told, signature, means, temperature=0.1, terms=terms)


def test_pairs_are_learned(model: TextGeolocalizer) -> None:
    """Twelve places told apart by the words for them: the loss falls, its gradient reaches what is to be learned."""
    torch.manual_seed(2)
    learner = TextGeolocalizer(model.config)
    learner.load_state_dict(model.state_dict())
    colours, things = ("red", "white"), ("church", "park", "corner", "trees", "roofs", "left")
    tokens = learner.tokens([f"a {colour} {thing}" for colour in colours for thing in things])
    features = torch.randn(12, 352, 7, 7)
    signature = TileSignature(*(torch.rand(12, size) for size in PHYSICAL.values()))
    with torch.no_grad():
        states = learner.frozen_states(tokens)
    optimiser = torch.optim.Adam([value for value in learner.parameters() if value.requires_grad], lr=3e-3)
    sums = []
    for _ in range(60):
        codes = learner.text_codes(states, tokens.length)
        losses = consistency(
            codes.strips,
            learner.image_codes(features),
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
    assert sums[0] > 0.7 * math.log(12) and sums[-1] < 0.2 * sums[0]
    assert learner.encoder.layer[1].query.weight.grad is not None
    assert learner.encoder.layer[0].query.weight.grad is None
