"""The report: what stands in the file, anywhere; how it behaves, in headless Chromium where there is one."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoloc_fast.evaluation.evaluate import Evaluation, Truth
from geoloc_fast.evaluation.report import page
from geoloc_fast.evaluation.report.page import write_report
from geoloc_fast.evaluation.report.pictures import COLUMN0_DEG, Tile
from geoloc_fast.evaluation.report.views import mosaic, polar_window, street_window
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.layers import Layer, Rows
from geoloc_fast.locate.locator import Answer, Candidate
from geoloc_fast.testing import random_strips

HOSTILE = (
    "<script>document.title='pwned'</script>.jpg",
    "</script><script>document.title='pwned'</script>.jpg",
    "\"' onerror=document.title='pwned' x='.jpg",
    "<img src=http://evil.example/x onerror=document.title='pwned'>.jpg",
    "\u202egpj.exe \u2028\x1b[31m\n.jpg",
    "שלום &amp; {{x}} $title ${y} @name{safe}.jpg",
)
PHOTOS, PLACES = 40, 36
TILE_M = 50.0


def tile_of(place: int) -> Tile:
    """A colour of its own, brighter towards the north."""
    image = np.empty((64, 64, 3), np.uint8)
    image[:] = (40 + 5 * place, 90, 200 - 4 * place)
    image[:32] += 15
    return Tile(image, TILE_M)


class Drawn:
    """Images of places 0 to 35; some are missing."""

    def photo(self, n: int) -> np.ndarray | None:
        return None if n == 3 else np.full((48, 64, 3), 60 + n, np.uint8)

    def tile(self, place: int) -> Tile | None:
        return None if place == 5 else tile_of(place)

    def street(self, place: int) -> np.ndarray | None:
        return None if place == 7 else np.full((32, 128, 3), 100, np.uint8)

    def synthetic(self, place: int) -> bool:
        return place % 2 == 1


@dataclass
class Written:
    path: Path
    text: str
    answers: list[Answer]
    evaluation: Evaluation


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A grid of places 40 m apart; photos that are right, wrong and unknown, of hostile names; one is unreadable."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    north, east = (values.ravel() * 40.0 for values in np.mgrid[0:6, 0:6])
    lat, lon = move_m(np.full(PLACES, 48.0), np.full(PLACES, 11.0), east, north)
    with PlaceIndex.create(folder / "index", model="m", layers=[Layer("street", (2, 1, 8), "cosine", 180.0)]) as index:
        strips = Rows(random_strips(PLACES, 2, 1, 8))
        index.add({"street": strips}, model="m", lat=lat, lon=lon, key=[HOSTILE[0]] * PLACES)
    at = rng.integers(PLACES, size=PHOTOS)
    true_lat, true_lon = move_m(lat[at], lon[at], 3.0, 4.0)
    heading = rng.uniform(0, 360, PHOTOS)
    heading[1] = np.nan
    evaluation, answers = Evaluation(PLACES, 4), []
    truth = Truth(np.asarray(true_lat), np.asarray(true_lon), heading, np.full(PHOTOS, -1))
    for n in range(PHOTOS):
        right, sure = n % 2 == 0, n % 4 < 2
        found = at[n] if right else (at[n] + 14) % PLACES
        candidate = Candidate(
            float(lat[found]), float(lon[found]), float(n * 9), 0.9 if sure else 0.004, 0.8, int(found), 1, 0.6
        )
        order = np.array([found, *[(found + step) % PLACES for step in (1, 2, 3)]])
        score, stands = np.linspace(0.8, 0.7, 4), (lat[order], lon[order])
        neighbours = Neighbours(
            order, score, np.zeros(4, int), np.zeros(4), *stands, *stands, score[:, None], np.zeros(4, int), np.True_
        )  # fmt: skip
        answer = Answer(
            HOSTILE[n % len(HOSTILE)], "located" if sure else "unknown", (candidate,), 30.0, None, 80.0, "assumed",
            seconds={"decode": 0.001, "encode": 0.004, "search": 0.002, "answer": 0.001 * (1 + n / 10)},
            neighbours=neighbours,
        )  # fmt: skip
        if n == PHOTOS - 1:
            answer = Answer(HOSTILE[3], "unreadable", problem=HOSTILE[1], seconds={"decode": 0.001})
        answers.append(answer)
        evaluation.add(answer, truth, n, True)
    path = folder / "report.html"
    write_report(
        path, title=HOSTILE[1], about=HOSTILE[3], index=index, names=[answer.image for answer in answers], lat=true_lat,
        lon=true_lon, heading_deg=heading, answers=answers, evaluations={HOSTILE[0]: evaluation}, pictures=Drawn(),
    )  # fmt: skip
    return Written(path, path.read_text(encoding="utf-8"), answers, evaluation)


class Parser(html.parser.HTMLParser):
    """Elements with their attributes, and what stands between script tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append((self.elements[-1][1], data))
            self._in_script = False


# --- the file ------------------------------------------------------------------------------------------------


def test_the_page_holds_all_it_shows_and_may_ask_for_nothing(written: Written) -> None:
    parsed = Parser(written.text)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "data:image/webp").startswith("data:image/webp"), (tag, attributes)
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
    style = written.text[: written.text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = (a["content"] for t, a in parsed.elements if t == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    # Every script that may run is one of the two that were written; the third is data.
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    runnable = [text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in runnable]
    assert digests == allowed and len(digests) == 2 and len(parsed.scripts) == 3
    assert "unsafe-inline" not in policy.split("script-src")[1] and "unsafe-eval" not in policy


def test_a_synthetic_street_view_is_called_one(written: Written) -> None:
    seen = set()
    for card, number in re.findall(r'(<article class="card" id="photo-(\d+)".*?</article>)', written.text, re.DOTALL):
        synthetic = written.answers[int(number)].candidates[0].place % 2 == 1
        seen.add(synthetic)
        assert ("synthetic street view" in card) == synthetic
        assert "street view" in card
    assert seen == {True, False}


def test_names_of_others_are_text(written: Written) -> None:
    parsed = Parser(written.text)
    assert all(tag != "img" or (a.get("src") or "").startswith("data:") for tag, a in parsed.elements)
    assert "\u202e" not in written.text and "\x1b" not in written.text and "\u2028" not in written.text
    (data,) = (text for attributes, text in parsed.scripts if attributes.get("type") == "application/json")
    assert "<" not in data and ">" not in data and "&" not in data
    items = json.loads(data)
    assert {item["target_id"] for item in items} == {"map", "recall", "reliability", "latency"}
    assert "שלום" in json.dumps(items, ensure_ascii=False)  # and it is shown as it is
    assert "@name{safe}.jpg" in json.dumps(items)


def test_every_photo_is_counted_and_has_its_class(written: Written) -> None:
    right = written.evaluation.right
    sure = np.array([answer.status == "located" for answer in written.answers])
    readable = np.array([bool(answer.candidates) for answer in written.answers])
    expected = {
        "right": int((right & sure).sum()),
        "wrong": int((~right & sure & readable).sum()),
        "unknown-right": int((right & ~sure).sum()),
        "unknown-wrong": int((~right & ~sure & readable).sum()),
    }
    assert min(expected.values()) > 5
    found = {
        kind: int(count)
        for kind, count in re.findall(r'value="([a-z-]+)" checked>.*?<output>(\d+)</output>', written.text)
    }
    assert found == expected
    cards = re.findall(r'<article class="card" id="photo-(\d+)" data-kind="([a-z-]+)">', written.text)
    assert len(cards) == sum(expected.values()) <= page.CARDS
    for number, kind in cards:
        n = int(number)
        assert kind == ("" if sure[n] else "unknown-") + ("right" if right[n] else "wrong")
    assert "1 photos, which count as wrong" in written.text and "no photo" in written.text


def test_figures_on_the_page_are_those_of_the_evaluation(written: Written) -> None:
    metrics = written.evaluation.metrics()
    assert f"<b>{100 * metrics['recall_at_1']:.1f} %</b>" in written.text
    assert f"<b>{100 * metrics['confidence']['precision']:.1f} %</b>" in written.text
    assert f"{metrics['photos']} photos against {PLACES} places; 0 have no place within 25 m" in written.text
    items = json.loads(next(t for a, t in Parser(written.text).scripts if a.get("type") == "application/json"))
    columns = dict(sources(items, "map"))
    for answer, n in ((written.answers[n], n) for n in range(PHOTOS - 1)):
        kind = ("" if answer.status == "located" else "unknown-") + ("right" if n % 2 == 0 else "wrong")
        assert f"photo-{n}" in columns[kind]["card"]


def sources(items: list[dict[str, Any]], target: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and columns of what the filters switch."""
    (item,) = (item for item in items if item["target_id"] == target)
    renderers = item["doc"]["roots"][0]["attributes"]["renderers"]
    for drawn in renderers:
        attributes = drawn["attributes"]
        columns = attributes["data_source"].get("attributes", {}).get("data", {})
        entries = dict(columns.get("entries", columns if isinstance(columns, list) else []))
        if "card" in entries:
            yield attributes["name"], entries


def test_no_probability_is_shown_as_certain(written: Written) -> None:
    assert "probability &lt;1 %" in written.text and "probability 0 %" not in written.text


def test_only_so_many_photos_have_pictures() -> None:
    class Stub:
        def __init__(self, n: int) -> None:
            self.n, self.kind = n, "right" if n < 3 else "unknown-wrong"
            self.first = Candidate(0, 0, 0, None, 0.5, 0, 1, 1)

    chosen = page._chosen([Stub(n) for n in range(5000)])  # type: ignore[misc]
    assert len(chosen) == page.CARDS
    assert [photo.n for photo in chosen[:3]] == [0, 1, 2]
    rest = [photo.n for photo in chosen[3:]]
    assert min(rest) < 500 and max(rest) > 4000  # from all over


def test_the_mosaic_lies_where_its_tiles_are() -> None:
    tiles = [(0.0, 0.0, lambda: tile_of(0)), (200.0, 100.0, lambda: tile_of(30)), (90.0, 0.0, lambda: None)]
    picture = mosaic(tiles, (-50.0, -50.0, 250.0, 150.0), longer_px=300)  # type: ignore[arg-type]
    assert picture is not None and picture.shape == (200, 300, 4)

    def at(east: float, north: float) -> list[int]:
        return [int(value) for value in picture[int(150 - north), int(east + 50)]]

    assert at(0, 12) == [55, 105, 215, 255] and at(0, -12) == [40, 90, 200, 255]  # north is up
    assert at(200, 88) == [190, 90, 80, 255]
    assert at(100, 50)[3] == 0 and at(90, 0)[3] == 0
    assert mosaic([], (0, 0, 1, 1), longer_px=10) is None
    assert mosaic(tiles, (-50.0, -50.0, 1e6, 1e6), longer_px=300) is None  # type: ignore[arg-type]
    # Where two overlap, the nearer one counts more.
    both = mosaic([(0.0, 0.0, lambda: tile_of(0)), (20.0, 0.0, lambda: tile_of(30))], (-30, -30, 50, 30), longer_px=80)
    assert both is not None
    row = both[35, :, 0].astype(int)
    assert row[10] == 40 and row[-10] == 190 and (np.diff(row[5:75]) >= 0).all() and len(set(row.tolist())) > 5


@pytest.mark.parametrize("heading_deg", [0.0, 77.0, 180.0, 359.0])
def test_windows_show_the_heading_in_their_middle(heading_deg: float) -> None:
    # Brightness is the azimuth: of a panorama column by column, of a satellite image round its middle.
    azimuth = (COLUMN0_DEG + np.arange(720) / 2) % 360
    panorama = np.repeat(np.abs(azimuth - 180)[None, :, None], 180, 0).repeat(3, 2).astype(np.uint8)
    row, column = np.mgrid[0:256, 0:256] - 128.0
    turn = np.degrees(np.arctan2(column, -row)) % 360
    tile = np.repeat(np.abs(turn - 180)[..., None], 3, 2).astype(np.uint8)
    for window in (
        street_window(panorama, heading_deg, 60.0, (30, 120)),
        polar_window(tile, heading_deg, 60.0, (30, 120)),
    ):
        assert window.shape == (30, 120, 3)
        brightness = window[10, :, 0].astype(float)
        for share, off in ((0.5, 0.0), (0.0, -30.0), (1.0, 30.0)):
            expected = abs((heading_deg + off) % 360 - 180)
            assert brightness[round(share * 119)] == pytest.approx(expected, abs=4)
        # Perspective: a quarter of the width is less than a quarter of the angle from the edge.
        quarter = np.degrees(np.arctan(np.tan(np.radians(30)) / 2))
        assert brightness[90] == pytest.approx(abs((heading_deg + quarter) % 360 - 180), abs=4)


# --- the page in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """CHROMIUM=PATH chooses one; else that on the PATH, else playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as running:
        try:
            opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"there is no Chromium ({str(error).splitlines()[0]}); CONTRIBUTING.md says how to get one")
        yield opened
        opened.close()


class Opened:
    """A tab with the report, all it asked for and all it complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=30_000)
        self.page.wait_for_timeout(300)

    def where(self, kind: str, row: int) -> tuple[float, float]:
        """Pixels of the page where the map draws a photo."""
        self.page.locator("#map").scroll_into_view_if_needed()
        x, y = self.page.evaluate(
            """([kind, row]) => {
              const views = [...Bokeh.index];
              const view = views.find((one) => one.model.name === "map");
              const source = view.model.renderers.find((one) => one.name === kind).data_source;
              const box = view.canvas_view.el.getBoundingClientRect(), { x_scale, y_scale } = view.frame;
              const [x, y] = ["x", "y"].map((name) => source.get_column(name)[row]);
              return [box.left + x_scale.compute(x), box.top + y_scale.compute(y)];
            }""",
            [kind, row],
        )
        return float(x), float(y)

    def around(self, kind: str, row: int) -> bytes:
        x, y = self.where(kind, row)
        self.page.mouse.move(2, 2)
        self.page.wait_for_timeout(200)
        return bytes(self.page.screenshot(clip={"x": x - 8, "y": y - 8, "width": 16, "height": 16}))


@pytest.fixture
def tab(browser: Any, written: Written) -> Iterator[Opened]:
    opened = Opened(browser, written.path)
    yield opened
    opened.context.close()


def test_the_page_renders_and_asks_for_nothing(tab: Opened, written: Written) -> None:
    for name in ("map", "recall", "reliability", "latency"):
        box = tab.page.locator(f"#{name} canvas").first.bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 100, name
    assert tab.page.locator(".card img").count() > 100
    broken = tab.page.evaluate("[...document.images].filter((one) => one.complete && !one.naturalWidth).length")
    assert broken == 0
    outside = [url for url in tab.requests if not url.startswith("data:")]
    assert outside == [written.path.as_uri()]
    assert tab.complaints == []
    # The background is there: something other than one colour between the photos.
    assert len(set(tab.page.locator("#map").screenshot()[-4000:])) > 50


def test_pointing_at_a_photo_tells_about_it(tab: Opened) -> None:
    assert tab.page.locator(".tip").count() == 0
    tab.page.mouse.move(*tab.where("right", 2))
    tab.page.wait_for_timeout(500)
    said = " ".join(tab.page.locator(".tip").all_inner_texts())
    assert "answered, right, 5 m away" in said and "probability 90 %" in said


def test_a_filter_hides_points_and_cards(tab: Opened) -> None:
    before = tab.around("right", 2)
    cards = tab.page.locator(".card[data-kind=right]")
    assert cards.first.is_visible()
    tab.page.locator("input[value=right]").uncheck()
    tab.page.wait_for_timeout(300)
    hidden = tab.around("right", 2)
    assert hidden != before
    assert not cards.first.is_visible() and tab.page.locator(".card[data-kind=wrong]").first.is_visible()
    tab.page.mouse.move(*tab.where("right", 2))
    tab.page.wait_for_timeout(400)
    assert "answered, right" not in " ".join(tab.page.locator(".tip").all_inner_texts())
    tab.page.locator("input[value=right]").check()
    tab.page.wait_for_timeout(300)
    assert tab.around("right", 2) == before and cards.first.is_visible()


def test_a_click_on_a_photo_shows_its_card(tab: Opened) -> None:
    tab.page.mouse.click(*tab.where("wrong", 1))
    tab.page.wait_for_timeout(1200)
    chosen = tab.page.locator(".card.chosen")
    assert chosen.count() == 1 and chosen.get_attribute("data-kind") == "wrong"
    box = chosen.bounding_box()
    assert box is not None and -50 < box["y"] < 900


def test_hostile_names_do_nothing(tab: Opened, written: Written) -> None:
    pointed = []
    for kind in ("right", "wrong", "unknown-right", "unknown-wrong"):
        for row in range(9):
            tab.page.mouse.move(*tab.where(kind, row))
            tab.page.wait_for_timeout(60)
            pointed += tab.page.locator(".tip").all_inner_texts()
    shown = "\n".join(pointed)
    assert "<script>document.title='pwned'</script>" in shown and "<img src=http://evil.example" in shown
    assert "\u202e" not in shown
    assert tab.page.title() == HOSTILE[1]  # as text, and not what the scripts in it would make of it
    assert tab.page.locator("img:not([src^='data:'])").count() == 0
    assert [url for url in tab.requests if not url.startswith("data:")] == [written.path.as_uri()]
    assert tab.complaints == []


def test_a_script_that_got_in_would_not_run(browser: Any, written: Written, tmp_path: Path) -> None:
    """The policy is a second line: tested by writing what escaping keeps out."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        written.text.replace("<main>", "<main><script>document.title='pwned'</script><img src=x onerror=a()>", 1)
    )
    tab = Opened(browser, bad)
    assert tab.page.title() == HOSTILE[1]
    assert any("Content Security Policy" in text for text in tab.complaints)
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_in_the_dark(browser: Any, written: Written, scheme: str) -> None:
    tab = Opened(browser, written.path, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    width, shown = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= shown  # nothing sticks out
    ink, paper = tab.page.evaluate(
        "(() => { const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]; })()"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] < 200 and light[1] > 600) if scheme == "light" else (light[0] > 600 and light[1] < 200)
    label = tab.page.evaluate(
        "Bokeh.documents.flatMap((one) => one.roots()).find((one) => one.name === 'recall')"
        ".below[0].axis_label_text_color"
    )
    expected = tab.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--soft').trim()")
    assert label == expected
    tab.context.close()
