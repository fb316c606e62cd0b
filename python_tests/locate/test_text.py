"""A description finds its place: through index, locator and command line; alone and beside a photo."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch

from geoloc_fast.cli import main
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import PlaceIndexError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.locate.locator import Locator
from geoloc_fast.locate.together import Beside, Scales, add_up, fit_scales
from geoloc_fast.models.contract import AzimuthColumns, PlaceBatch, PlaceInput, Query, QueryInput, Text
from geoloc_fast.models.text.model import TextGeolocalizer
from geoloc_fast.region.encode import build_index
from geoloc_fast.testing.text_encoder import write_text_encoder

pytest.importorskip("tokenizers", reason="descriptions need the extra [text]")

COUNT = 12


class Grey:
    """A model of photos for these tests: a place is its mean grey, a photo too; there is no heading."""

    kind, name, fingerprint, trained_on = "grey", "grey", "0" * 64, "nothing"
    layers = (Layer("street", (8, 1, 1)),)
    place_input = PlaceInput(takes=("satellite",), satellite_px=224)
    query_input = QueryInput(takes=("columns",), size=(32, 64))

    @staticmethod
    def code(grey: float) -> torch.Tensor:
        angle = torch.arange(1, 5) * grey / 40
        return torch.cat([angle.sin(), angle.cos()])[:, None, None] / 2

    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        return {"street": Rows(torch.stack([self.code(float(image.float().mean())) for image in batch.satellite]))}

    def encode_queries(self, queries: Any) -> dict[str, QueryStrips]:
        codes = [self.code(float(query.columns.mean())) for query in queries]
        return {"street": QueryStrips(torch.stack(codes))}


def photo(grey: float) -> AzimuthColumns:
    return AzimuthColumns(np.full((32, 32, 3), grey, np.uint8))


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("region")
    rows = []
    for n in range(COUNT):
        image = np.random.default_rng(n).normal(60 + 12 * n, 20, (224, 224, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n}.png"), image)
        rows.append(
            {"id": f"p{n}", "lat": 48 + n / 500, "lon": 11.0, "satellite": f"{n}.png", "metres_per_pixel": 50 / 224}
        )
    Manifest.from_rows(folder, rows, []).save()
    return folder


@pytest.fixture(scope="module")
def bundle(region: Path) -> Path:
    """A text model of random weights, which reads no sides of a speaker."""
    torch.manual_seed(0)
    words = ["a", "red", "white", "roof", "church", "park", "on", "the", "left", "right", "of", "with", "trees"]
    encoder = write_text_encoder(region / "encoder", words)
    model = TextGeolocalizer.begin(encoder, None, things=("roof", "park"), heads=2).eval()
    model.tellings.where.offset[8:12] = -20.0  # type: ignore[index, operator]
    model.save(region / "text.safetensors")
    return region / "text.safetensors"


@pytest.fixture(scope="module")
def words(region: Path, bundle: Path) -> Path:
    index = region / "text.index"
    done = run("index", "build", region, index, "--model", bundle)
    assert done.code == 0, done.stderr
    return index


@pytest.fixture(scope="module")
def photos(region: Path) -> Path:
    build_index(region / "grey.index", Grey(), Manifest.load(region))
    return region / "grey.index"


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


def run(*arguments: Any) -> Done:
    """The command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["geoloc-fast", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def call(*arguments: Any) -> Done:
    return run("locate", *arguments)


def test_from_the_command_line(words: Path, bundle: Path, region: Path) -> None:
    text = "a white church on the left, red roof"
    done = call("--text", text, "--index", words, "--model", bundle, "--json")
    assert done.code == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    first = answer["candidates"][0]
    assert answer["status"] == "unverified" and first["heading_deg"] is None and 48 <= first["lat"] <= 48.03
    assert text not in done.stdout  # what was said is not repeated
    lines = region / "lines.txt"
    lines.write_text(f"\ufeff{text}\n\na park\n{text}\n", encoding="utf-8")
    many = call("--text-file", lines, "--index", words, "--model", bundle, "--json")
    answers = json.loads(many.stdout)
    assert len(answers) == 3 and answers[0]["candidates"] == answer["candidates"] == answers[2]["candidates"]
    lines.write_text(f"{text}\nбелая церковь\n\x00\n{text}\n", encoding="utf-8")  # a script it cannot read
    mixed = json.loads(call("--text-file", lines, "--index", words, "--model", bundle, "--json").stdout)
    assert [one["status"] for one in mixed] == ["unverified", "unreadable", "unreadable", "unverified"]
    assert "encoder" in mixed[1]["problem"] and mixed[3]["candidates"] == answer["candidates"]
    geo = call("--text", text, "--index", words, "--model", bundle, "--format", "geojson")
    assert json.loads(geo.stdout)["features"][0]["properties"]["heading_deg"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give photos"),
        (("--text", "a park", "--text-file", "lines.txt"), "give one of them"),
        (("photo.jpg", "--text", "a park"), "--text-weight"),
        (("--text", "a park", "--text-weight", "1"), "expected with photos"),
        (("--text", "a park", "--fov-deg", "80"), "expected photos"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], message: str) -> None:
    done = call(*arguments)
    assert done.code == 2 and message in " ".join(done.stderr.split())


def test_what_cannot_be_read_is_said(words: Path, bundle: Path, tmp_path: Path) -> None:
    for text, message in (("", "in words"), ("48.1, 11.5", "in words"), ("a" * 20_000, "at most 10000")):
        done = call("--text", text, "--index", words, "--model", bundle, "--json")
        (answer,) = json.loads(done.stdout)
        assert done.code == 1 and answer["status"] == "unreadable" and message in answer["problem"]
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    assert "expected UTF-8" in call("--text-file", tmp_path / "latin1.txt", "--index", words).stderr
    shipped = call("--text", "a park", "--index", words)  # the model that ships takes photos
    assert shipped.code != 0


def test_from_python(words: Path, bundle: Path) -> None:
    from geoloc_fast.models.contract import load_model

    model = load_model(bundle)
    locator = Locator(PlaceIndex.open(words), model)
    answers = list(locator.locate([Text("a park"), Text("\x00")]))
    assert [answer.status for answer in answers] == ["unverified", "unreadable"]
    assert answers[0].image == "text 0" and answers[0].candidates[0].key.startswith("p")
    with pytest.raises(ValueError, match="takes text, got photo"):
        next(locator.locate([np.zeros((64, 64, 3), np.uint8)]))
    with pytest.raises(ValueError, match="index of descriptions beside it"):
        next(locator.locate([Text("a park")], text="a church"))


def test_a_photo_and_a_text_add_up(words: Path, bundle: Path, photos: Path) -> None:
    """The sum over all places, written out."""
    from geoloc_fast.models.contract import load_model

    model, grey = load_model(bundle), Grey()
    text_index, photo_index = PlaceIndex.open(words), PlaceIndex.open(photos)
    said = "a church with trees on the right"
    query: Query = photo(120)
    text_codes = {key: score for key, score in scores(text_index, model, Text(said)).items()}
    photo_codes = scores(photo_index, grey, query)
    for ratio in (0.0, 0.05, 3.0):
        beside = Beside(text_index, model, photo_index, ratio=ratio)
        (answer,) = Locator(photo_index, grey, beside=beside).locate([query], text=said)
        want = {key: photo_codes[key] + ratio * text_codes[key] for key in photo_codes}
        assert answer.neighbours is not None
        order = [photo_index.places([int(number)])[0].key for number in answer.neighbours.id]
        assert order == sorted(want, key=lambda key: -want[key]) and answer.exact
        np.testing.assert_allclose(answer.neighbours.score, sorted(want.values(), reverse=True), atol=2e-6)
    with pytest.raises(ValueError, match="ratio: expected a finite number"):
        Beside(text_index, model, photo_index, ratio=float("nan"))
    with pytest.raises(ValueError, match="expected one that takes text"):
        Beside(photo_index, grey, text_index, ratio=1.0)


def scores(index: PlaceIndex, model: Any, query: Query) -> dict[str, float]:
    found = index.search(model.encode_queries([query]), COUNT, layers=model.layers).photo(0)
    keys = [place.key for place in index.places(found.id.tolist())]
    return dict(zip(keys, found.score.tolist(), strict=True))


def test_short_lists_are_bounded_by_their_last_score(words: Path, bundle: Path, photos: Path) -> None:
    from geoloc_fast.models.contract import load_model

    model, photo_index = load_model(bundle), PlaceIndex.open(photos)
    beside = Beside(PlaceIndex.open(words), model, photo_index, ratio=1.0)
    text = beside.search("a red roof")
    found = photo_index.search(Grey().encode_queries([photo(100)]), COUNT, layers=Grey.layers).photo(0)
    whole = add_up(found, text, 1.0, 3)
    few = add_up(found.first(4), text.first(4), 1.0, 3)
    assert whole.exact and len(few.id) == 3
    for number, score in zip(few.id, few.score, strict=True):
        truly = float(found.score[found.id == number][0] + text.score[text.id == number][0])
        assert score >= truly - 1e-6
    if few.exact:
        assert few.id.tolist() == whole.id.tolist()
    assert np.isnan(add_up(found.first(1), text, 1.0, COUNT).heading_deg).all()


def test_indexes_of_other_places_do_not_stand_beside_each_other(
    words: Path, bundle: Path, region: Path, tmp_path: Path
) -> None:
    from geoloc_fast.models.contract import load_model

    other = Manifest.load(region)
    rows = [{**row, "id": f"other {row['id']}"} for row in other.places.to_pylist()]
    build_index(tmp_path / "other.index", Grey(), Manifest.from_rows(region, rows, []))
    with pytest.raises(PlaceIndexError, match="none that has a key"):
        Beside(PlaceIndex.open(words), load_model(bundle), PlaceIndex.open(tmp_path / "other.index"), ratio=1.0)


def test_scales_are_found_again() -> None:
    """Scores drawn so that the posterior is known: the fit finds its scales, and the sum beats both."""
    rng = np.random.default_rng(0)
    queries, places = 3000, 60
    photo_scores, text_scores = 0.2 * rng.standard_normal((2, queries, places))
    logit = 12.0 * photo_scores + 6.0 * text_scores
    truth = (logit + rng.gumbel(size=logit.shape)).argmax(1)
    found = fit_scales(photo_scores, text_scores, truth)
    assert found.photo == pytest.approx(12, rel=0.1) and found.text == pytest.approx(6, rel=0.15)
    assert found.ratio == pytest.approx(0.5, rel=0.2)
    noise = fit_scales(photo_scores, rng.standard_normal(photo_scores.shape), truth)
    assert noise.ratio < 0.01  # what says nothing counts nothing
    assert fit_scales(np.zeros((4, 3)), np.eye(4, 3), np.array([0, 1, 2, 0])).text > 0
    assert Scales(0.0, 1.0).ratio == float("inf")
    with pytest.raises(ValueError, match="expected"):
        fit_scales(photo_scores, text_scores[:5], truth)
