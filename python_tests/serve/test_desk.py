"""The page in headless Chromium: what a person does with it, by mouse and by keyboard, and what it asks of others."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from served_town import LAT, LON, FakePictures, Running, make_cells, make_served, photo_bytes, with_words

from geoloc_fast.region.tiles import make_tiles
from geoloc_fast.serve.app import Service

pytestmark = pytest.mark.usefixtures("one_thread")
FAN = np.array([255, 210, 77])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("desk")
    served = make_served(folder / "town.index", 60)
    running = Running(
        Service({"town": served}, cases=folder / "cases", pictures={"town": FakePictures()}, tiles=tiles_of(folder))
    )
    running.town = served  # type: ignore[attr-defined]
    yield running
    running.close()


def tiles_of(folder: Path) -> Any:
    """Tiles of green squares round every place."""
    pytest.importorskip("pmtiles", reason="the extra [serve] is not installed")
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.geo.sphere import move_m
    from geoloc_fast.region.imagery import PmTiles

    rows = []
    (folder / "satellite").mkdir()
    Image.new("RGB", (100, 100), (30, 110, 60)).save(folder / "satellite" / "green.png")
    for n in range(60):
        lat, lon = move_m(LAT, LON, n % 8 * 40.0, n // 8 * 40.0)
        row = {"id": str(n), "lat": float(lat), "lon": float(lon), "satellite": "satellite/green.png"}
        rows.append({**row, "metres_per_pixel": 0.5})
    made = make_tiles(Manifest.from_rows(folder, rows, []), folder / "town.pmtiles")
    assert made > 10
    return PmTiles(folder / "town.pmtiles")


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


class Tab:
    """A tab with the page, all it asked for and all it complained about."""

    def __init__(self, browser: Any, desk: Running, **options: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.url = desk.url
        given = {"viewport": {"width": 1300, "height": 1000}, "accept_downloads": True, **options}
        self.context = browser.new_context(**given)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(desk.url)
        self.page.wait_for_selector("html[data-ready]", timeout=30_000)

    def drop(self, *seeds: int, names: tuple[str, ...] = ()) -> None:
        """Photos, dropped on the page as from a folder."""
        files = [
            {"name": names[n] if names else f"{seed}.jpg", "bytes": list(photo_bytes(seed))}
            for n, seed in enumerate(seeds)
        ]
        self.page.evaluate(
            """(files) => {
              const data = new DataTransfer();
              for (const { name, bytes } of files) data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
              document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
            }""",  # noqa: E501
            files,
        )

    def answered(self, least: int = 1) -> None:
        self.page.wait_for_function(
            "(least) => document.querySelectorAll('#candidates button').length >= least", arg=least, timeout=30_000
        )

    def map_pixels(self) -> np.ndarray:
        self.page.wait_for_timeout(400)
        return np.asarray(Image.open(io.BytesIO(self.page.locator("#map").screenshot())).convert("RGB")).astype(int)

    def fan_pixels(self) -> int:
        return int((np.abs(self.map_pixels() - FAN).sum(2) < 60).sum())

    def close(self) -> None:
        foreign = [url for url in self.requests if not url.startswith((self.url, "blob:", "data:"))]
        self.context.close()
        assert foreign == []
        assert self.complaints == []


@pytest.fixture
def tab(browser: Any, desk: Running) -> Iterator[Tab]:
    opened = Tab(browser, desk)
    yield opened
    opened.close()


def test_dropped_photos_are_located_and_their_fans_drawn_on_the_regions_own_tiles(tab: Tab) -> None:
    green = (np.abs(tab.map_pixels() - [30, 110, 60]).sum(2) < 60).mean()
    assert green > 0.2  # the tiles are there, and not only their frame
    assert tab.fan_pixels() < 50
    tab.drop(0, 1, 2)
    tab.answered(5)
    assert tab.fan_pixels() > 800
    tab.page.wait_for_function(
        "() => [...document.querySelectorAll('#photos span:last-child')].every((one) => one.textContent !== '…')"
    )
    assert tab.page.locator("#photos li").count() == 3
    assert re.match("located|unknown", tab.page.inner_text("#status"))
    first = tab.page.inner_text("#candidates li:first-child")
    assert re.search(r"48\.0\d+, 11\.0\d+", first) and "looking" in first
    # The photo itself is drawn, and the place beside it: street view, satellite image, the view on it.
    assert tab.page.evaluate("document.getElementById('photo').toDataURL().length") > 5_000
    tab.page.wait_for_function("() => document.getElementById('street').naturalWidth === 640")
    assert tab.page.evaluate("document.getElementById('satellite').naturalWidth") == 64
    assert tab.page.locator("#fan path").count() == 1


def test_fifty_photos_are_a_question_each(tab: Tab) -> None:
    tab.drop(*(n % 40 for n in range(50)))
    tab.page.wait_for_function(
        "() => { const said = [...document.querySelectorAll('#photos span:last-child')].map((one) => one.textContent);"
        " return said.length === 50 && said.every((one) => one !== '…'); }",
        timeout=60_000,
    )


def test_a_description_is_a_question_where_the_model_takes_one(browser: Any, desk: Running) -> None:
    """The model that ships takes photos alone: what the service says of it is changed on the way."""
    tab = Tab(browser, desk)
    assert not tab.page.locator("#words").is_visible()
    asked = []

    def about(route: Any) -> None:
        said = route.fetch().json()
        said["indexes"][0]["takes"] = ["photo", "text"]
        route.fulfill(json=said)

    def answer(route: Any) -> None:
        asked.append(route.request.post_data or "")
        found = {"lat": LAT, "lon": LON, "heading_deg": None, "probability": None, "score": 0.5, "place": 3}
        said = {"status": "unknown", "problem": None, "radius_m": None, "fov_deg": None, "fov_from": None}
        route.fulfill(json={"answer": {**said, "candidates": [found]}, "source": {}})

    tab.context.route("**/v1/index", about)
    tab.context.route("**/v1/locate", answer)
    tab.page.reload()
    tab.page.wait_for_selector("html[data-ready]")
    tab.page.locator("#words").fill("a <b>bridge</b> over a river")
    tab.page.locator("#words").press("Enter")
    tab.answered()
    assert "a <b>bridge</b> over a river" in tab.page.inner_text("#photos") and "bridge" in asked[0]
    assert "heading unknown" in tab.page.inner_text("#candidates") and not tab.page.locator("#shown").is_visible()
    tab.close()


def test_the_sliders_move_the_candidates(tab: Tab) -> None:
    tab.drop(3)
    tab.answered()
    before = tab.page.inner_text("#candidates")
    picture = tab.page.evaluate("document.getElementById('photo').toDataURL()")
    tab.page.locator("#fov").fill("50")
    tab.page.wait_for_function("(before) => document.getElementById('candidates').innerText !== before", arg=before)
    assert tab.page.inner_text("#fov-said") == "50°"
    after = tab.page.inner_text("#candidates")
    tab.page.locator("#roll").fill("12")
    tab.page.wait_for_function("(before) => document.getElementById('candidates').innerText !== before", arg=after)
    assert tab.page.evaluate("document.getElementById('photo').toDataURL()") != picture
    sent = [url for url in tab.requests if url.endswith("/v1/locate")]
    assert len(sent) >= 3


@pytest.mark.parametrize("kind", ["box", "circle", "polygon"])
def test_what_is_drawn_is_searched_alone(tab: Tab, kind: str) -> None:
    tab.drop(4)
    tab.answered()
    everywhere = tab.page.locator("#candidates li").count()
    tab.page.locator("#everywhere").click()
    tab.page.locator(f"[data-draw={kind}]").click()
    box = tab.page.locator("#map").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    spots = {"box": [(-60, -60), (60, 60)], "circle": [(0, 0), (70, 0)]}
    for dx, dy in spots.get(kind, [(-70, -60), (70, -60), (0, 70), (-70, -60)]):
        tab.page.mouse.click(x + dx, y + dy)
        tab.page.wait_for_timeout(350)  # not a double click
    tab.page.wait_for_function("() => document.getElementById('where').innerText.startsWith('Searching inside')")
    tab.page.wait_for_function(
        "(before) => document.querySelectorAll('#candidates li').length < before", arg=everywhere, timeout=20_000
    )


def test_outside_of_the_index_is_said_before_the_search(tab: Tab) -> None:
    tab.drop(5)
    tab.answered()
    asked = len([url for url in tab.requests if url.endswith("/v1/locate")])
    tab.page.locator("#spot").fill("10.5, 20.5, 300")
    tab.page.locator("#spot").press("Enter")
    assert "outside of what the index covers" in tab.page.inner_text("#where")
    tab.page.wait_for_timeout(400)
    assert len([url for url in tab.requests if url.endswith("/v1/locate")]) == asked
    tab.page.locator("#spot").fill("nonsense")
    tab.page.locator("#spot").press("Enter")
    assert "Expected latitude" in tab.page.inner_text("#where")


def new_case(tab: Tab, name: str) -> None:
    tab.page.locator("#new-case").click()
    tab.page.locator("#ask-value").fill(name)
    tab.page.locator("#ask-value").press("Enter")
    tab.page.wait_for_function("(name) => document.getElementById('case').selectedOptions[0].text === name", arg=name)


def test_a_case_by_keyboard_export_reopen_seal(tab: Tab, browser: Any, desk: Running) -> None:
    hostile = "<img src=x onerror=document.title='pwned'>.jpg"
    tab.drop(6, names=(hostile,))
    tab.answered()
    new_case(tab, "Harbour <b>one</b>")
    tab.answered(3)
    assert hostile in tab.page.inner_text("#photos")
    tab.page.wait_for_function("() => !document.getElementById('accept').disabled")
    tab.page.keyboard.press("3")
    assert tab.page.inner_text("#compare-title").startswith("Candidate 3")
    tab.page.keyboard.press("r")
    tab.page.wait_for_function("() => document.getElementById('candidates').innerText.includes('rejected')")
    tab.page.keyboard.press("1")
    tab.page.keyboard.press("a")
    tab.page.wait_for_function("() => document.getElementById('decided').innerText === 'accepted'")
    tab.page.keyboard.press("n")
    tab.page.keyboard.type("the tower matches")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_timeout(500)
    assert tab.page.locator(".number.accept").count() == 1 and tab.page.locator(".number.reject").count() == 1
    with tab.page.expect_download() as download:
        tab.page.locator("#exports a[data-format=geojson]").click()
    found = json.loads(Path(download.value.path()).read_text())
    decided = {f["properties"].get("verdict"): f["properties"].get("note") for f in found["features"]}
    assert decided["accept"] == "the tower matches" and "reject" in decided
    with tab.page.expect_download() as download:
        tab.page.locator("#exports a[data-format=html]").click()
    report = browser.new_context().new_page()
    report.goto(Path(download.value.path()).as_uri())
    # A download has no name that says it is a page; what counts is that nothing in it runs.
    assert "pwned" not in report.title()
    report.context.close()
    shown = tab.page.inner_text("#candidates")
    again = Tab(browser, desk)
    again.page.locator("#case").select_option(label="Harbour <b>one</b>")
    again.answered(3)
    assert again.page.inner_text("#candidates") == shown
    again.page.wait_for_function("() => document.getElementById('note').value === 'the tower matches'")
    again.page.locator("#seal").click()
    again.page.locator("#ask-value").fill("seal")
    again.page.locator("#ask-value").press("Enter")
    again.page.wait_for_function("() => document.getElementById('where').innerText.startsWith('Sealed: sha256')")
    assert again.page.locator("#accept").is_disabled() and not again.page.locator("#drop").is_visible()
    assert again.page.title() == tab.page.title() == "Where was this photo taken?"
    again.close()


def test_flicker_and_swipe_show_the_photo_over_the_street_view(tab: Tab) -> None:
    tab.drop(7)
    tab.answered()
    tab.page.wait_for_function("() => document.getElementById('under').naturalWidth === 640")
    tab.page.locator("#swipe").fill("0")
    assert "100%" in tab.page.evaluate("document.getElementById('above').style.clipPath")
    tab.page.keyboard.press("Escape")
    tab.page.locator("#flicker").click()
    tab.page.wait_for_function("() => document.getElementById('above').hidden")
    tab.page.locator("#flicker").click()
    assert not tab.page.evaluate("document.getElementById('above').hidden")


def test_everything_can_be_reached_by_keyboard(tab: Tab) -> None:
    tab.drop(8)
    tab.answered()
    reached = set()
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        reached.add(tab.page.evaluate("document.activeElement.id || document.activeElement.dataset.draw || ''"))
    assert {
        "files",
        "fov",
        "roll",
        "box",
        "circle",
        "polygon",
        "everywhere",
        "spot",
        "map",
        "case",
        "new-case",
    } <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_used_on_a_phone_and_in_the_dark(browser: Any, desk: Running, scheme: str) -> None:
    tab = Tab(browser, desk, viewport={"width": 360, "height": 760}, color_scheme=scheme)
    tab.drop(9)
    tab.answered()
    width, shown = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= shown
    assert tab.fan_pixels() > 300
    tab.close()


def test_with_the_network_off_nothing_is_missing(browser: Any, desk: Running) -> None:
    """Every name but the service's own leads nowhere."""
    tab = Tab(browser, desk)
    tab.context.route(lambda url: not url.startswith(desk.url), lambda route: route.abort())
    tab.page.reload()
    tab.page.wait_for_selector("html[data-ready]")
    tab.drop(10)
    tab.answered()
    assert tab.fan_pixels() > 800
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, desk: Running, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    # The checker is a script of another host's to the page's own policy.
    tab = Tab(browser, desk, color_scheme=scheme, bypass_csp=True)
    tab.drop(11)
    tab.answered()
    tab.page.wait_for_timeout(300)
    found = axe.Axe().run(tab.page).response["violations"]
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    tab.close()


def test_the_page_asks_for_the_token_once(browser: Any, desk: Running) -> None:
    town = desk.town  # type: ignore[attr-defined]
    running = Running(Service({"town": town}, token="t" * 20))
    context = browser.new_context()
    page = context.new_page()
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.accept("t" * 20)))
    page.goto(running.url)
    page.wait_for_selector("html[data-ready]")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert said == ["The token of this service:"] and context.cookies() == []
    assert page.inner_text("#served").startswith("town: 60 places")
    context.close()
    running.close()


def test_several_indexes_cells_and_words_beside_a_photo(browser: Any, desk: Running, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="descriptions need the extra [text]")
    town = desk.town  # type: ignore[attr-defined]
    described = with_words(town, tmp_path, ratio=5.0)
    running = Running(
        Service(
            {"town": described, "other": town, "continent": make_cells(tmp_path, town)},
            pictures={"town": FakePictures()},
        )
    )
    tab = Tab(browser, running)
    tab.drop(12, 13)
    tab.answered(5)
    photo_alone = tab.page.inner_text("#candidates")
    tab.page.locator("#words").fill("a church by a bridge")
    tab.page.locator("#words-both").click()
    tab.page.wait_for_function(
        "(before) => document.getElementById('candidates').innerText !== before", arg=photo_alone
    )
    assert "a church by a bridge" in tab.page.inner_text("#photos")
    tab.page.locator("#index").select_option("other")
    tab.page.wait_for_function(
        "(before) => document.getElementById('candidates').innerText === before", arg=photo_alone
    )
    assert not tab.page.locator("#words-form").is_visible() and tab.page.inner_text("#served").startswith("other")
    tab.page.locator("#photos button").nth(1).click()
    tab.answered(5)
    tab.page.locator("#index").select_option("continent")
    tab.page.wait_for_selector("#spots li")
    assert "of it indexed" in tab.page.inner_text("#spots") and "elsewhere" in tab.page.inner_text("#spots")
    assert not tab.page.locator("#tools").is_visible()
    tab.page.wait_for_function("() => document.getElementById('street').naturalWidth === 640")  # of the town's place
    tab.page.locator("#index").select_option("town")
    tab.page.wait_for_function("() => document.getElementById('spots').hidden")
    tab.answered(5)
    tab.close()
    running.close()


def test_what_is_drawn_counts_for_every_photo_that_is_not_kept(tab: Tab) -> None:
    tab.drop(14, 15)
    tab.answered(5)
    tab.page.locator("#spot").fill(f"{LAT}, {LON}, 60")
    tab.page.locator("#spot").press("Enter")
    for n in (1, 0):
        tab.page.locator("#photos button").nth(n).click()
        tab.page.wait_for_function("() => [1, 2, 3, 4].includes(document.querySelectorAll('#candidates li').length)")
