"""The recipe of the text model: a run from a manifest and from shards, resumed exactly, measured from its file."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoloc_fast.city.captions import describe_cities
from geoloc_fast.data.captions import add_captions, captions_of
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.shards import Pair, write_shards
from geoloc_fast.errors import ManifestError
from geoloc_fast.evaluation.described import PRIOR, found, paired_interval, recall
from geoloc_fast.testing.text_encoder import write_text_encoder
from geoloc_fast.training.canonical import closed_form
from geoloc_fast.training.consistency import TERMS
from geoloc_fast.training.recipes.text import all_seen, amounts, evaluate_model, make_recipe, padded, read_settings
from geoloc_fast.training.trainer import Trainer

pytest.importorskip("tokenizers", reason="descriptions need the extra [text]")

MODEL = {"heads": 2, "learned_layers": 1, "satellite_px": 128}


@pytest.fixture(scope="module")
def captions(region: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "captions.csv"
    assert describe_cities(region, path) == 80
    return path


@pytest.fixture(scope="module")
def encoder(captions: Path) -> Path:
    words = {word.strip(".,").lower() for line in captions.read_text().splitlines() for word in line.split()}
    return write_text_encoder(captions.parent / "encoder", sorted(words), positions=200)


def settings(region: Path, captions: Path, encoder: Path, out: Path, **train: Any) -> list[Any]:
    how = {"steps": 4, "batch": 8, "warmup": 1, "save_every": 2, "evaluate_every": 2, "log_every": 1, **train}
    step = {"encoder": str(encoder), "backbone": None, "bf16": False, "terms": list(TERMS)}
    data = {"manifest": str(region), "captions": str(captions)}
    return [{"out": str(out), "model": MODEL, "data": data, "step": step, "train": how}]


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_descriptions_of_cities_on_disk(region: Path, captions: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.csv"
    describe_cities(region, again)
    assert again.read_bytes() == captions.read_bytes()
    manifest = add_captions(Manifest.load(region), captions)
    assert [len([c for c in captions_of(manifest) if c.place == place]) for place in (0, 39)] == [2, 2]
    with open(captions, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows[0]["text"].split()) > 2 * len(rows[1]["text"].split())
    with pytest.raises(FileNotFoundError, match="expected synthetic cities"):
        describe_cities(tmp_path, again)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "city.json").write_text("{}")
    with pytest.raises(ManifestError, match="expected a synthetic city"):
        describe_cities(tmp_path, again)
    with pytest.raises(ValueError, match="draws"):
        describe_cities(region, again, draws=0)


def test_a_run_goes_on_exactly_and_its_model_is_measured_again(
    region: Path, captions: Path, encoder: Path, tmp_path: Path
) -> None:
    whole = settings(region, captions, encoder, tmp_path / "whole")
    Trainer(make_recipe(whole)).run()
    one = tmp_path / "parts"
    first = make_recipe(settings(region, captions, encoder, one))
    trainer = Trainer(first)
    trainer._stop = True  # as Ctrl-C does
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    Trainer(make_recipe(settings(region, captions, encoder, one)), resume=True).run()
    np.testing.assert_allclose(losses(one), losses(tmp_path / "whole"), rtol=1e-6)
    model = tmp_path / "whole" / "model.safetensors"
    told = evaluate_model(whole, model)
    assert told.numbers["places"] == 8 and told.numbers["queries"] == 16
    assert told.best == told.numbers["recall_at_1"] and "within_50_m" in told.numbers


def test_scenes_teach_to_see_and_to_read(region: Path, captions: Path, encoder: Path, tmp_path: Path) -> None:
    """From scenes the image's network learns by steps, and both linear maps are solved: what is read of a text is what
    it tells. Then the text's side goes on alone."""
    scenes = {"data": {"captions": None, "scenes": str(region)}}
    see: list[Any] = [*settings(region, captions, encoder, tmp_path / "see", steps=30, evaluate_every=30), scenes]
    see += [{"step": {"terms": ["ground"], "image_rate": 1.0}, "data": {"train": {"split": "train|val"}}}]
    recipe = make_recipe(see)
    Trainer(recipe).run()
    ground = losses(tmp_path / "see")
    assert np.mean(ground[-4:]) < 0.8 * np.mean(ground[:4])
    data, model = recipe.data, recipe.model.eval()
    seen, there = all_seen(model, data)[..., :8], data.shown.bool()
    known = (model.sights.sector.slope > 0.1).nonzero().squeeze(1).tolist()  # what one city's map knows of the other
    assert known and all(seen[:, n][there[:, n]].mean() > seen[:, n][~there[:, n]].mean() for n in known)
    assert not torch.equal(model.gain, torch.zeros_like(model.gain))
    rows = range(0, len(data.captions), 2)
    states, tokens = padded(data, rows, torch.device("cpu"))
    with torch.no_grad():
        told = model.text_codes(states, tokens).told
    true = torch.stack([amounts(*data.told[row]) for row in rows])
    assert ((told - true) ** 2).sum() < 0.9 * (true**2).sum()  # the encoder has random weights
    bundle = tmp_path / "see" / "model.safetensors"
    read: list[Any] = [*settings(region, captions, encoder, tmp_path / "read", steps=4, lr=1e-2), scenes]
    read[0].pop("model")  # the bundle has it
    read += [{"step": {"begin": str(bundle), "terms": [*TERMS, "told"]}}]
    recipe = make_recipe(read)
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    Trainer(recipe).run()
    after = recipe.model.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"tellings", "physical", "gain", "encoder", "log_temperature"}


def test_shards_instead_of_a_manifest(region: Path, captions: Path, encoder: Path, tmp_path: Path) -> None:
    manifest = add_captions(Manifest.load(region), captions)
    images = manifest.places["satellite"].to_pylist()
    pairs = [Pair("", (region / images[c.place]).read_bytes(), c.text, 1.0, 2.0) for c in captions_of(manifest)[:32]]
    write_shards(pairs, tmp_path / "shards", shard_bytes=1 << 15)
    given = settings(region, captions, encoder, tmp_path / "out", steps=2, evaluate_every=0)
    given += [{"data": {"shards": str(tmp_path / "shards"), "buffer": 16}}]
    recipe = make_recipe(given)
    batches = list(recipe.batches(0, 0))
    assert len(batches) == 4 and len({name for batch in batches for name in batch["place_id"]}) == 32
    again = next(iter(recipe.batches(0, 2)))
    assert again["place_id"] == batches[2]["place_id"]
    torch.testing.assert_close(again["fine"], batches[2]["fine"])
    Trainer(recipe).run()
    assert len(losses(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("step.terms=[sound]", "step.terms: expected some of global"),
        ("step.dropout=1", "step.dropout"),
        ("step.terms=[ground]", "step.image_rate"),
        ("step.begin=none.safetensors", "model: expected no settings"),
        ("data.draws=0", "data.draws"),
        ("train.best=colour", "train.best"),
        ("data.augment={blur: 0.1}", "data.augment"),
        ("model.size=3", "model: expected settings"),
        ("data.train={split: nowhere}", "at least two places"),
        ("data.train={shape: round}", "column of the places"),
    ],
)
def test_wrong_settings(region: Path, captions: Path, encoder: Path, tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe([*settings(region, captions, encoder, tmp_path), wrong])


def test_the_shipped_settings_are_read(root: Path) -> None:
    scenes, region = (
        read_settings([str(root / "train" / "configs" / name), "data.manifest=here", "out=there"])
        for name in ("text.yaml", "text_region.yaml")
    )
    assert scenes.step.terms == ["ground"] and scenes.model["layers"] == 4 and not scenes.step.reads
    assert region.step.terms == list(TERMS) and region.step.image_rate == 0 and region.step.reads


def test_ranks_against_loops() -> None:
    rng = np.random.default_rng(0)
    codes = torch.nn.functional.normalize(
        torch.from_numpy(rng.standard_normal((300, 4))).float().round(decimals=1), dim=1
    )
    truth = rng.integers(300, size=40)
    query = codes[truth] + 0.3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    lat, lon = 48 + rng.uniform(0, 0.02, 300), 11 + rng.uniform(0, 0.02, 300)
    got = found(query, codes, truth, lat, lon)
    score = (query @ codes.T).numpy()
    for q, t in enumerate(truth):
        better = [p for p in range(300) if (score[q, p], -p) > (score[q, t], -t)]
        assert got.rank[q] == len(better)
        away = np.hypot(lat - lat[t], (lon - lon[t]) * np.cos(np.radians(48)))
        near = set(np.argsort(away)[: PRIOR - 3].tolist())  # at the edge the sphere may decide otherwise
        assert abs(got.rank_with_prior[q] - len(near & set(better))) <= 3
    told = recall(got)
    assert told["recall_at_1"] <= told["recall_at_5"] <= told[f"recall_at_5_among_the_nearest_{PRIOR}"]
    assert told["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / (got.rank + 1)))
    without = found(query, codes, truth, None, None)
    assert np.array_equal(without.rank, got.rank) and "within_50_m" not in recall(without)
    with pytest.raises(ValueError, match="rows of the gallery"):
        found(query, codes, truth + 300, None, None)


def test_an_interval_over_the_same_queries() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(400)
    mean, low, high = paired_interval(base + 0.05 + 0.1 * rng.standard_normal(400), base)
    assert low < 0.05 < high and high - low < 0.03 and low < mean < high
    mean, low, high = paired_interval(rng.random(400), rng.random(400))
    assert low < 0 < high
    with pytest.raises(ValueError, match="same queries"):
        paired_interval(base, base[:3])


def test_the_closed_form_finds_what_words_and_images_share() -> None:
    """Images that show two hidden traits, texts of two words for each: other words and other directions are noise."""
    draw = torch.Generator().manual_seed(0)
    trait = torch.randint(2, (300, 2), generator=draw)
    features = torch.randn(300, 40, generator=draw)
    features[:, :2] += 4.0 * trait
    noise = torch.randint(8, 14, (300, 5), generator=draw)
    numbers = [torch.cat([2 + 2 * torch.arange(2) + one, other]) for one, other in zip(trait, noise, strict=True)]
    form = closed_form(features, range(300), numbers, 16, 20)
    assert form.column[:2].tolist() == [-1, -1] and (form.column[2:6] >= 0).all()
    image = torch.nn.functional.normalize(features @ form.image.weight + form.image.bias, dim=1)
    score = form.text_codes(numbers) @ image.T
    same = (trait[:, None] == trait[None]).all(2)
    assert score[same].mean() > 0.5 > -0.1 > score[~same].mean()
    assert form.image.weight.shape == (40, 16) and bool(form.image.weight.isfinite().all())
    with pytest.raises(ValueError, match="words that some descriptions have"):
        closed_form(features, range(300), [torch.tensor([3, 4])] * 300, 4, 20)
    with pytest.raises(ValueError, match="one of each"):
        closed_form(features, range(3), numbers, 4, 20)
