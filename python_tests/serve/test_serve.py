"""The service: answers, batches, cases, who may ask, what hostile requests do; and that nobody waits for them."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import logging
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
testing = pytest.importorskip("starlette.testclient", reason="httpx is not installed")

import torch  # noqa: E402
from served_town import FakePictures, Running, make_cells, make_served, photo_bytes, with_words  # noqa: E402

from geoloc_fast.errors import BusyError, CaseError  # noqa: E402
from geoloc_fast.geo.regions import Circle  # noqa: E402
from geoloc_fast.geo.sphere import great_circle_m  # noqa: E402
from geoloc_fast.index import PlaceIndex  # noqa: E402
from geoloc_fast.locate.answers import as_text  # noqa: E402
from geoloc_fast.locate.candidates import Candidate  # noqa: E402
from geoloc_fast.locate.coarse_to_fine import CoarseToFine  # noqa: E402
from geoloc_fast.locate.locator import Answer, Locator  # noqa: E402
from geoloc_fast.models.contract import Text  # noqa: E402
from geoloc_fast.serve.app import Service, coverage_of, create_app, region_of  # noqa: E402
from geoloc_fast.serve.cases import Cases  # noqa: E402
from geoloc_fast.serve.engine import Engine, Question, Served  # noqa: E402
from geoloc_fast.serve.guard import Limits  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
PLACES = 60
BASE = "http://127.0.0.1"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(tmp_path_factory.mktemp("served") / "town.index", PLACES)


@pytest.fixture
def client(served: Served, tmp_path: Path) -> Iterator[Any]:
    service = Service({"town": served}, cases=tmp_path / "cases", pictures={"town": FakePictures()})
    with testing.TestClient(create_app(service), base_url=BASE) as client:
        yield client


def sent(**fields: Any) -> dict[str, Any]:
    return {"files": {"photo": ("holiday.jpg", photo_bytes(0), "image/jpeg")}, "data": fields}


# --- the engine ----------------------------------------------------------------------------------------------


def test_answers_of_the_engine_are_those_of_the_locator(served: Served) -> None:
    photos = [photo_bytes(n) for n in range(9)]
    alone = list(Locator(served.index, served.model, confidence=served.confidence).locate(photos))
    with Engine({"town": served}, workers=2) as engine:
        answers = [one.result(60) for one in [engine.ask(Question(photo, "town")) for photo in photos]]
        assert max(engine.batches) > 1  # what waited was encoded together
    for ours, theirs in zip(answers, alone, strict=True):
        assert [c.place for c in ours.candidates] == [c.place for c in theirs.candidates]
        assert [c.lat for c in ours.candidates] == pytest.approx([c.lat for c in theirs.candidates], abs=1e-6)
        assert ours.candidates[0].probability == pytest.approx(theirs.candidates[0].probability, abs=1e-4)


def test_one_locator_serves_many_threads(served: Served) -> None:
    """What docs/guide/serve.md promises of threads: the answers are those of one thread."""
    locator = Locator(served.index, served.model, confidence=served.confidence)
    photos = [photo_bytes(n) for n in range(6)]
    expected = [[c.place for c in answer.candidates] for answer in locator.locate(photos)]
    wrong: list[Any] = []

    def work() -> None:
        torch.set_num_threads(1)
        for _ in range(2):
            found = [[c.place for c in answer.candidates] for answer in locator.locate(photos)]
            if found != expected:
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_questions_that_differ_are_not_mixed(served: Served) -> None:
    place = served.index.places([7])[0]
    here = Circle(place.lat, place.lon, 30.0)
    with Engine({"town": served}, workers=1) as engine:
        asked = [
            engine.ask(Question(photo_bytes(n), "town", within=here if n % 2 else None, candidates=1 + n % 3))
            for n in range(8)
        ]
        for n, one in enumerate(asked):
            answer = one.result(60)
            assert len(answer.candidates) <= 1 + n % 3
            if n % 2:
                away = [great_circle_m(place.lat, place.lon, c.lat, c.lon) for c in answer.candidates]
                assert max(away) <= 30


def test_a_full_queue_refuses_and_a_closed_engine_answers_what_waits(served: Served) -> None:
    engine = Engine({"town": served}, workers=1, queue=3)
    taken = [engine.ask(Question(photo_bytes(0), "town"))]

    def many() -> None:
        for n in range(50):
            taken.append(engine.ask(Question(photo_bytes(n), "town", candidates=1 + n % 60)))

    with pytest.raises(BusyError, match="3 photos wait already"):
        many()
    taken[-1].cancel()
    engine.close()
    assert all(one.done() for one in taken)
    with pytest.raises(BusyError, match="stopping"):
        engine.ask(Question(b"", "town"))


@pytest.mark.parametrize("wrong", [{"index": "x"}, {"fov_deg": 5.0}, {"candidates": 10**6}, {"roll_deg": float("nan")}])
def test_the_engine_refuses_nonsense(served: Served, wrong: dict[str, Any]) -> None:
    with Engine({"town": served}, workers=1) as engine, pytest.raises(ValueError, match="expected"):
        engine.ask(Question(**{"photo": b"", "index": "town", **wrong}))


def test_turning_a_photo_upright_undoes_a_tilt(served: Served) -> None:
    upright = Image.open(io.BytesIO(photo_bytes(3)))
    sink = io.BytesIO()
    upright.rotate(8.0, resample=Image.Resampling.BICUBIC).save(sink, "jpeg", quality=95)
    with Engine({"town": served}, workers=1) as engine:
        nearest = [
            engine.ask(question).result(60).neighbours
            for question in (
                Question(photo_bytes(3), "town"),
                Question(sink.getvalue(), "town"),
                Question(sink.getvalue(), "town", roll_deg=8.0),
            )
        ]
    scores = [dict(zip(each.id.tolist(), each.score.tolist(), strict=True)) for each in nearest if each is not None]
    common = set.intersection(*map(set, scores)) - {-1}
    plain, tilted, turned = ({place: of_it[place] for place in common} for of_it in scores)
    assert len(plain) > 10

    def apart(other: dict[int, float]) -> float:
        return sum(abs(other[place] - score) for place, score in plain.items())

    assert apart(turned) < apart(tilted)


def test_new_commits_are_picked_up_without_a_dropped_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoloc_fast.serve.engine.REFRESH_S", 0.05)
    served = make_served(tmp_path / "index", 30)
    service = Service({"town": served})
    with testing.TestClient(create_app(service), base_url=BASE) as client:
        before = client.get("/v1/index").json()["indexes"][0]
        stop = threading.Event()
        said: list[int] = []

        def ask() -> None:
            while not stop.is_set():
                said.append(client.post("/v1/locate", **sent()).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        with PlaceIndex.open(tmp_path / "index", "write") as writer:
            writer.remove(list(range(10)))
            writer.compact()
        until = time.monotonic() + 30
        while client.get("/v1/index").json()["indexes"][0]["places"] != 20 and time.monotonic() < until:
            time.sleep(0.05)
        stop.set()
        thread.join()
        after = client.get("/v1/index").json()["indexes"][0]
    assert after["places"] == 20 and after["commit"] > before["commit"]
    assert said and set(said) == {200}


def test_photos_of_many_pixels_hold_up_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are answered one at a time by a worker of their own; here the first of them takes until it is let go."""
    answers, go, large = Engine._answers, threading.Event(), png_of(5_000, 4_000)

    def slow(engine: Engine, questions: Any) -> Any:
        if questions[0].photo == large:
            assert len(questions) == 1 and go.wait(60)
        return answers(engine, questions)

    monkeypatch.setattr(Engine, "_answers", slow)
    with Engine({"town": served}, workers=1) as engine:
        many = [engine.ask(Question(large, "town")) for _ in range(3)]
        assert engine.ask(Question(photo_bytes(0), "town")).result(60).candidates
        assert not any(one.done() for one in many)
        go.set()
        assert all(one.result(60).candidates for one in many)


def png_of(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    Image.new("1", (width, height)).save(sink, "png")
    return sink.getvalue()


# --- descriptions and cells ----------------------------------------------------------------------------------


def test_descriptions_alone_and_beside_photos(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="descriptions need the extra [text]")
    town = with_words(served, tmp_path, ratio=5.0)
    assert town.takes == ("photo", "columns", "text", "both") and town.beside is not None
    text = "a church by a bridge"
    with testing.TestClient(create_app(Service({"town": town}, cases=tmp_path / "cases")), base_url=BASE) as client:
        (about,) = client.get("/v1/index").json()["indexes"]
        assert about["takes"] == list(town.takes)
        alone = client.post("/v1/locate", data={"text": text, "candidates": 3}).json()["answer"]
        (expected,) = Locator(town.beside.index, town.beside.model).locate([Text(text)], candidates=3)
        assert [one["key"] for one in alone["candidates"]] == [one.key for one in expected.candidates]
        for one in alone["candidates"]:  # ids of the index of photos, whose images the page shows
            assert served.index.places([one["place"]])[0].key == one["key"]
        both = client.post("/v1/locate", **sent(text=text)).json()["answer"]
        locator = Locator(served.index, served.model, confidence=served.confidence, beside=town.beside)
        (expected,) = locator.locate([photo_bytes(0)], text=text)
        assert [one["place"] for one in both["candidates"]] == [one.place for one in expected.candidates]
        photo = client.post("/v1/locate", **sent()).json()["answer"]
        assert [one["place"] for one in photo["candidates"]] != [one["place"] for one in both["candidates"]]
        where = client.post("/v1/cases", json={"name": "x"}).headers["location"]
        assert client.post(f"{where}/photos", **sent(text=text)).status_code == 200
        assert client.get(where).json()["photos"][0]["settings"]["text"] == text


def test_from_cells_to_the_places_of_every_index(served: Served, tmp_path: Path) -> None:
    cells = replace(make_cells(tmp_path, served), sharpness=0.4)
    service = Service({"town": served, "continent": cells}, cases=tmp_path / "cases")
    with testing.TestClient(create_app(service), base_url=BASE) as client:
        assert [one["cells"] for one in client.get("/v1/index").json()["indexes"]] == [False, True]
        found = client.post("/v1/locate", **sent(index="continent", candidates=8, least_probability=0)).json()
        fine = Locator(served.index, served.model, confidence=served.confidence)
        finder = CoarseToFine(Locator(cells.index, cells.model), [fine], sharpness=0.4)
        (expected,) = finder.locate([photo_bytes(0)], candidates=8)
        answer = found["answer"]
        assert answer["status"] == "located" and [one["index"] for one in answer["candidates"]] == ["town"] * 8
        assert [one["place"] for one in answer["candidates"]] == [one.candidate.place for one in expected.candidates]
        assert answer["candidates"][0]["probability"] == pytest.approx(expected.candidates[0].probability)
        assert len(answer["spots"]) == len(expected.spots) and answer["elsewhere"] == round(expected.elsewhere, 4)
        unsure = client.post("/v1/locate", **sent(index="continent", least_probability=1)).json()
        assert unsure["answer"]["status"] == "unknown" and len(unsure["features"]) == 6
        bad = client.post("/v1/locate", files={"photo": b"no"}, data={"index": "continent"}).json()["answer"]
        assert bad["status"] == "unreadable" and bad["problem"]
        region = '{"circle": {"lat": 48, "lon": 11, "metres": 90}}'
        assert "expected none" in client.post("/v1/locate", **sent(index="continent", region=region)).json()["detail"]
        where = client.post("/v1/cases", json={"name": "x"}).headers["location"]
        assert client.post(f"{where}/photos", **sent(index="continent")).status_code == 200
        for form in ("geojson", "kml", "csv", "html"):
            assert client.get(f"{where}/export", params={"format": form}).status_code == 200


# --- answers over HTTP ---------------------------------------------------------------------------------------


def test_locate_answers_with_geojson(client: Any, served: Served) -> None:
    response = client.post("/v1/locate", **sent(candidates=4, least_probability=1.0))
    assert response.status_code == 200 and response.headers["content-type"] == "application/geo+json"
    found = response.json()
    assert [feature["properties"]["kind"] for feature in found["features"]] == ["answer"] + ["candidate"] * 4
    assert found["answer"]["status"] == "unknown" and len(found["answer"]["candidates"]) == 4
    assert found["source"]["index"] == "town" and found["source"]["model"] == served.model.fingerprint
    assert set(found["seconds"]) == {"decode", "encode", "search", "answer"}
    assert "holiday" not in response.text  # what the file is called is nobody's business
    place = served.index.places([5])[0]
    region = json.dumps({"circle": {"lat": place.lat, "lon": place.lon, "metres": 45}})
    for candidate in client.post("/v1/locate", **sent(region=region)).json()["answer"]["candidates"]:
        assert great_circle_m(place.lat, place.lon, candidate["lat"], candidate["lon"]) <= 45


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"candidates": 1_000_000}, 422, "candidates"),
        ({"fov_deg": 400}, 422, "fov_deg"),
        ({"fov_deg": "nan"}, 422, "fov_deg"),
        ({"region": "{"}, 422, "expected JSON"),
        ({"region": '{"box": {"south": 1}}'}, 422, "is missing"),
        ({"region": '{"circle": {"lat": 0, "lon": 0, "metres": 5}}'}, 422, "no places there"),
        ({"region": "[" * 50_000}, 422, "expected JSON"),
        ({"index": "elsewhere"}, 422, "expected one of town"),
        ({"index": "../../etc"}, 422, "expected one of town"),
    ],
)
def test_wrong_fields_are_problems(client: Any, fields: dict[str, Any], status: int, message: str) -> None:
    response = client.post("/v1/locate", **sent(**fields))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert message in found["detail"] and found["type"].startswith("urn:geoloc-fast:") and found["status"] == status


def test_what_is_no_photo_is_an_answer_that_says_so(client: Any) -> None:
    bomb = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(20)
    polyglot = photo_bytes(0)[:300] + b"<script>alert(1)</script>" + photo_bytes(0)[300:700]
    for content in (b"", b"no photo", bomb, polyglot):
        response = client.post("/v1/locate", files={"photo": ("x.jpg", content, "image/jpeg")})
        assert response.status_code == 200
        assert response.json()["answer"]["status"] == "unreadable" and response.json()["answer"]["problem"]
    assert client.post("/v1/locate", files={}).status_code == 422
    both = client.post("/v1/locate", **sent(text="a bridge"))
    assert both.status_code == 422 and "got both" in both.json()["detail"]
    said = client.post("/v1/locate", files={"text": (None, "a bridge over a river")})
    assert said.status_code == 422 and "takes photo" in said.json()["detail"]
    assert client.post("/v1/locate", json={"photo": 1}).status_code == 422


def test_regions_are_boxes_circles_and_polygons() -> None:
    assert region_of(None) is None and region_of("") is None
    ring = [[11, 48], [12, 48], [12, 49], [11, 48]]
    assert type(region_of(json.dumps({"type": "Polygon", "coordinates": [ring]}))).__name__ == "Polygon"
    assert type(region_of('{"box": {"south": 1, "west": 2, "north": 3, "east": 4}}')).__name__ == "Box"


def test_coverage_shows_where_places_are_and_nothing_else(served: Served) -> None:
    lat, lon = served.index.positions()
    boxes = np.array([polygon[0] for polygon in coverage_of(served.index)["coordinates"]])

    def covered(a: float, b: float) -> bool:
        west, south, east, north = *boxes[:, 0].T, *boxes[:, 2].T
        return bool(((west <= b) & (b < east) & (south <= a) & (a < north)).any())

    assert all(covered(float(a), float(b)) for a, b in zip(lat, lon, strict=True))
    assert not covered(float(lat.max()) + 0.01, float(lon[0])) and not covered(float(lat[0]), float(lon.max()) + 0.01)


def test_images_of_places_and_the_index(client: Any) -> None:
    (about,) = client.get("/v1/index").json()["indexes"]
    assert about["places"] == PLACES and about["pictures"] and about["probability"] and about["bounds"]["south"]
    satellite = client.get("/v1/index/town/places/3/satellite")
    assert satellite.headers["content-type"] == "image/webp" and satellite.headers["x-side-metres"] == "50.000"
    street = client.get("/v1/index/town/places/3/street", params={"heading_deg": 90, "fov_deg": 80})
    assert Image.open(io.BytesIO(street.content)).size == (640, 360)
    assert client.get("/v1/index/town/places/999/satellite").status_code == 404
    assert client.get("/v1/index/none/places/3/satellite").status_code == 404
    assert client.get("/v1/index/town/places/3/street", params={"heading_deg": 900}).status_code == 422
    assert client.get("/tiles/3/1/1").status_code == client.get("/tiles/99/1/1").status_code == 204


def test_a_batch_runs_is_looked_after_and_cancelled(client: Any) -> None:
    files = [("photos", (f"../../{n}.jpg", photo_bytes(n) if n != 2 else b"no", "image/jpeg")) for n in range(6)]
    response = client.post("/v1/jobs", files=files, data={"candidates": 2})
    assert response.status_code == 202
    where = response.headers["location"]
    until = time.monotonic() + 60
    while (job := client.get(where).json())["state"] == "running" and time.monotonic() < until:
        time.sleep(0.05)
    assert job["state"] == "done" and job["done"] == 6
    assert [answer["status"] == "unreadable" for answer in job["answers"]] == [n == 2 for n in range(6)]
    assert all(len(answer["candidates"]) <= 2 for answer in job["answers"])
    assert client.delete(where).status_code == 204
    assert client.get(where).status_code == client.delete(where).status_code == 404
    begun = client.post("/v1/jobs", files=[("photos", ("a.jpg", photo_bytes(0), "image/jpeg"))] * 40).headers[
        "location"
    ]
    assert client.delete(begun).status_code == 204
    assert client.post("/v1/jobs", files=files, data={"index": "none"}).status_code == 422


def test_health_and_metrics_tell_nothing_of_photos(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ok"
    client.post("/v1/locate", **sent())
    text = client.get("/metrics").text
    assert 'geoloc_requests_total{route="/v1/locate",status="200"} 1.0' in text
    assert "geoloc_stage_seconds" in text and "holiday" not in text


# --- who may ask ---------------------------------------------------------------------------------------------


def test_other_hosts_and_other_sites_are_refused(client: Any) -> None:
    assert client.get("/v1/index", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/v1/index", headers={"host": "127.0.0.1.evil.example:8000"}).status_code == 421
    assert client.get("/v1/index", headers={"host": "localhost:8000"}).status_code == 200
    assert client.post("/v1/locate", headers={"origin": "http://evil.example"}, **sent()).status_code == 403
    assert client.post("/v1/locate", headers={"origin": "null"}, **sent()).status_code == 403
    assert client.post("/v1/locate", headers={"origin": BASE}, **sent()).status_code == 200


def test_every_answer_has_a_policy_and_a_request_id(client: Any) -> None:
    for path in ("/", "/v1/index", "/nowhere", "/static/app.js"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and len(headers["x-request-id"]) == 32
        assert "set-cookie" not in headers and "server" not in headers
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/healthz", headers={"x-request-id": 'a"b'}).headers["x-request-id"] != 'a"b'


def test_beyond_loopback_a_token_is_needed(served: Served) -> None:
    service = Service({"town": served}, hosts=frozenset({"desk.example"}), token="t" * 20)
    with testing.TestClient(create_app(service), base_url="http://desk.example") as client:
        assert client.get("/v1/index").status_code == 401
        assert client.get("/v1/index", headers={"authorization": "Bearer " + "t" * 19}).status_code == 401
        assert client.get("/v1/index", headers={"authorization": "Bearer " + "t" * 20}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/").status_code == 200  # the page asks for it
        assert client.get("/metrics").status_code == client.get("/v1/openapi.json").status_code == 401


def test_the_log_names_no_file_and_no_position(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "geoloc_fast.serve"):
        client.post("/v1/locate", **sent(region='{"circle": {"lat": 52.1234, "lon": 13.5678, "metres": 9}}'))
        client.get("/v1/cases/0123456789ab?secret=1")
    rows = [json.loads(record.getMessage()) for record in caplog.records if record.name == "geoloc_fast.serve"]
    assert [row["route"] for row in rows] == ["/v1/locate", "/v1/cases/{case_id}"]
    assert all(set(row) == {"request", "method", "route", "status", "ms"} for row in rows)


def test_static_files_do_not_lead_out(client: Any) -> None:
    for path in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "vendor/../../app.py", "/etc/passwd"):
        assert client.get(f"/static/{path}").status_code == 404
    assert client.get("/static/app.js").headers["content-type"].startswith("text/javascript")


# --- too much, too slow --------------------------------------------------------------------------------------


@pytest.fixture
def running(served: Served) -> Iterator[Running]:
    started = Running(Service({"town": served}, limits=Limits(body_bytes=400_000, body_seconds=1.0)))
    yield started
    started.close()


def test_too_much_and_too_slow_are_refused_and_the_others_are_served(running: Running) -> None:
    import httpx

    many = "--b\r\n" + "".join(f'Content-Disposition: form-data; name="f{n}"\r\n\r\n1\r\n--b\r\n' for n in range(4_000))
    form = {"content-type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=running.url, timeout=30) as client:
        assert client.post("/v1/locate", content=bytes(500_000)).status_code == 413
        assert client.post("/v1/locate", content=iter([bytes(300_000)] * 2)).status_code == 413  # of unknown length
        assert client.post("/v1/locate", content=many.encode(), headers=form).status_code in (400, 422)
        assert client.post("/v1/locate", content=b"--b\r\nnonsense", headers=form).status_code in (400, 422)
        with socket.create_connection(("127.0.0.1", running.port)) as slow:
            slow.sendall(b"POST /v1/locate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nabc")
            assert client.post("/v1/locate", **sent()).status_code == 200  # while that one waits
            slow.settimeout(20)
            assert b" 408 " in slow.recv(1000)
        with socket.create_connection(("127.0.0.1", running.port)) as odd:
            odd.sendall(b"POST /v1/locate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1e3\r\n\r\n")
            odd.settimeout(20)
            assert b" 400 " in odd.recv(1000)
        assert client.post("/v1/locate", **sent()).status_code == 200


def test_a_head_that_never_ends_is_not_waited_for(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.setattr("geoloc_fast.serve.connection.HEAD_SECONDS", 0.4)
    get = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for first in (b"", get + b"\r\n"):  # at once, and after a whole request
        with socket.create_connection(("127.0.0.1", running.port)) as slow:
            slow.settimeout(20)
            if first:
                slow.sendall(first)
                while not slow.recv(4000).endswith(b'{"status":"ok"}'):
                    pass
            slow.sendall(get)
            assert slow.recv(4000) == b""
    with httpx.Client(base_url=running.url, timeout=30) as client:  # an answer takes as long as it takes
        assert all(client.post("/v1/locate", **sent()).status_code == 200 for _ in range(3))
        time.sleep(0.5)
        assert client.post("/v1/locate", **sent()).status_code == 200


def test_what_large_requests_hold_together_is_bounded(served: Served) -> None:
    import httpx

    limits = Limits(body_seconds=20.0, small_bytes=50_000, shared_bytes=1_000_000)
    started = Running(Service({"town": served}, limits=limits))
    head = b"POST /v1/locate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", started.port)) as slow:
            slow.sendall(head + bytes(800_000))
            with httpx.Client(base_url=started.url, timeout=30) as client:
                until = time.monotonic() + 30
                while (refused := client.post("/v1/locate", content=bytes(600_000))).status_code != 503:
                    assert time.monotonic() < until
                assert refused.headers["retry-after"] == "1"
                assert client.post("/v1/locate", **sent()).status_code == 200  # small ones are taken
                slow.close()
                while client.post("/v1/locate", content=bytes(600_000)).status_code == 503:  # until it is noticed
                    assert time.monotonic() < until
                form = {"content-type": "multipart/form-data; boundary=b"}
                many = client.post("/v1/locate", content=b"--b\r\n" * 700, headers=form)
                assert many.status_code == 400 and "parts" in many.json()["detail"]
    finally:
        started.close()


@pytest.mark.slow
def test_good_clients_do_not_wait_for_bad_ones(served: Served) -> None:
    """Ten good requests one after another, alone and beside twenty hostile connections: none fails."""
    import httpx

    started = Running(Service({"town": served}, limits=Limits(body_bytes=2_000_000, body_seconds=2.0)))
    stop = threading.Event()

    def harm() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", started.port), timeout=3) as bad:
                    bad.sendall(
                        b"POST /v1/locate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n\r\n" + bytes(9)
                    )
                    bad.recv(100)
            except OSError:
                pass

    try:
        threads = [threading.Thread(target=harm) for _ in range(20)]
        for thread in threads:
            thread.start()
        with httpx.Client(base_url=started.url, timeout=60) as client:
            assert [client.post("/v1/locate", **sent()).status_code for _ in range(10)] == [200] * 10
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        started.close()


def test_the_interface_describes_itself(client: Any) -> None:
    schema = client.get("/v1/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert {
        "/v1/locate",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/index",
        "/v1/cases",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= set(schema["paths"])
    for path, verbs in schema["paths"].items():
        for verb, said in verbs.items():
            assert said["description"], (verb, path)
            assert list(said["responses"]["422"]["content"]) == ["application/problem+json"], (verb, path)
    fields = schema["components"]["schemas"]["Body_locate_v1_locate_post"]["properties"]
    assert set(fields) == {"photo", "text", "fov_deg", "roll_deg", "region", "candidates", "least_probability", "index"}
    assert fields["candidates"]["maximum"] == 64


# --- cases ---------------------------------------------------------------------------------------------------


def case_with_a_photo(client: Any) -> tuple[str, str]:
    case = client.post("/v1/cases", json={"name": "A <b>case</b>"})
    assert case.status_code == 201
    where = case.headers["location"]
    name = '<img src=x onerror="alert(1)">.jpg'
    added = client.post(f"{where}/photos", files={"photo": (name, photo_bytes(1), "image/jpeg")}, data={"fov_deg": 80})
    assert added.status_code == 200, added.text
    return where, added.json()["sha256"]


def test_a_case_keeps_photos_answers_and_decisions_and_reopens_identically(client: Any, tmp_path: Path) -> None:
    where, sha256 = case_with_a_photo(client)
    assert hashlib.sha256(photo_bytes(1)).hexdigest() == sha256
    assert client.get(f"{where}/photos/{sha256}").content == photo_bytes(1)
    region = '{"box": {"south": 47, "west": 10, "north": 49, "east": 12}}'
    again = client.post(f"{where}/photos", data={"sha256": sha256, "fov_deg": 70, "region": region})
    assert again.status_code == 200
    said = {"rank": 1, "verdict": "accept", "note": "the tower <script>"}
    assert client.post(f"{where}/photos/{sha256}/decisions", json=said).status_code == 204
    content = client.get(where).json()
    (photo,) = content["photos"]
    assert photo["settings"]["fov_deg"] == 70 and photo["settings"]["region"] == json.loads(region)
    assert photo["decisions"][0]["note"] == said["note"] and photo["source"]["index"] == "town"
    assert [entry["did"] for entry in content["log"]] == ["create", "add photo", "locate", "locate", "decide"]
    assert client.get(where).json() == content
    assert Cases(tmp_path / "cases").open(content["id"]).content() == content  # by another process, after any restart
    assert client.get("/v1/cases").json()[0]["name"] == "A <b>case</b>"


def test_exports_hold_the_decision_and_no_markup_of_others(client: Any) -> None:
    where, sha256 = case_with_a_photo(client)
    client.post(
        f"{where}/photos/{sha256}/decisions", json={"rank": 1, "verdict": "accept", "note": "<script>a</script>"}
    )
    found = client.get(f"{where}/export", params={"format": "geojson"}).json()
    kinds = {feature["properties"]["kind"] for feature in found["features"]}
    assert "view" in kinds and kinds <= {"answer", "candidate", "view"}
    assert "accept" in {feature["properties"].get("verdict") for feature in found["features"]}
    for feature in found["features"]:
        if feature["properties"]["kind"] == "view":
            (ring,) = feature["geometry"]["coordinates"]
            assert ring[0] == ring[-1] and len(ring) > 4
            area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring))
            assert area > 0  # counter-clockwise
    import xml.etree.ElementTree as ElementTree

    kml = client.get(f"{where}/export", params={"format": "kml"})
    assert "<script" not in kml.text and ElementTree.fromstring(kml.content).tag.endswith("kml")
    assert "candidate 1 accepted" in kml.text
    client.post(f"{where}/photos/{sha256}/decisions", json={"rank": 2, "verdict": "reject", "note": "=1+1"})
    rows = list(csv.DictReader(io.StringIO(client.get(f"{where}/export", params={"format": "csv"}).text)))
    assert [row["verdict"] for row in rows] == ["accept", "reject", "", "", ""] and rows[1]["note"] == "'=1+1"
    assert {row["sha256"] for row in rows} == {sha256} and rows[0]["status"] in ("located", "unknown")
    page = client.get(f"{where}/export", params={"format": "html"})
    assert "<script" not in page.text and "<img src=x" not in page.text and "accepted" in page.text
    assert (
        page.headers["content-type"] == "application/octet-stream"
        and "attachment" in page.headers["content-disposition"]
    )
    assert client.get(f"{where}/export", params={"format": "exe"}).status_code == 422


def test_a_kml_of_small_probabilities_is_xml() -> None:
    import xml.etree.ElementTree as ElementTree

    far = Candidate(48.0, 11.0, 90.0, 0.001, 0.5, 1, 1, 0.1, "<b>")
    kml = as_text([Answer("<i>&.jpg", "unknown", (far,))], "kml")
    assert "&lt;1%" in kml and ElementTree.fromstring(kml.encode()).tag.endswith("kml")


def test_a_sealed_case_cannot_be_changed_and_tells_when_it_was(client: Any, tmp_path: Path) -> None:
    where, sha256 = case_with_a_photo(client)
    sealed = client.post(f"{where}/seal").json()
    assert sealed["sealed"] and len(sealed["sha256"]) == 64
    folder = tmp_path / "cases" / where.rsplit("/", 1)[1]
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    names = {line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert names == {
        "case.sqlite", f"photos/{sha256}.jpg", "export/answers.geojson", "export/answers.kml", "export/answers.csv",
        "export/report.html",
    }  # fmt: skip
    assert client.get(f"{where}/problems").json() == {"problems": []}
    refused = client.post(f"{where}/photos/{sha256}/decisions", json={"rank": 1, "verdict": "reject"})
    assert refused.status_code == 409 and "sealed" in refused.json()["detail"]
    assert client.post(f"{where}/photos", **sent()).status_code == 409
    assert client.post(f"{where}/seal").status_code == 409
    assert client.get(f"{where}/problems").json() == {"problems": []}  # and refusing left no trace in it
    with sqlite3.connect(folder / "case.sqlite") as base:
        base.execute("UPDATE decision SET note = 'x'")
        base.execute("UPDATE photo SET name = 'other.jpg'")
    base.close()
    (folder / "photos" / f"{sha256}.jpg").write_bytes(photo_bytes(2))
    (folder / "more.txt").touch()
    found = client.get(f"{where}/problems").json()["problems"]
    assert found == ["case.sqlite: was altered", "more.txt: was added", f"photos/{sha256}.jpg: was altered"]
    assert client.get(f"{where}/photos/{sha256}").status_code == 409
    assert client.delete(where).status_code == 204 and not folder.exists()


def test_the_case_of_a_stranger_is_data(client: Any, tmp_path: Path) -> None:
    where, _ = case_with_a_photo(client)
    folder = tmp_path / "cases" / where.rsplit("/", 1)[1]
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(photo_bytes(4))
    with sqlite3.connect(folder / "case.sqlite") as base:
        base.execute("INSERT INTO photo VALUES ('../../secret', '../../secret.jpg', 'jpg', 'now')")
        base.execute("INSERT INTO photo VALUES (?, 'x', '/../../../secret.jpg', 'now')", ("a" * 64,))
        base.execute("UPDATE answer SET answer = '{\"candidates\": [{\"lat\": \"x\"}]}', settings = '[[', source = '3'")
        base.execute("INSERT INTO log (at, what) VALUES ('now', '{')")
    base.close()
    (folder / "photos" / f"{'b' * 64}.jpg").symlink_to(secret)
    assert client.get(where).status_code == 200
    for name in ("..%2F..%2Fsecret", "a" * 64, "b" * 64):
        assert client.get(f"{where}/photos/{name}").status_code == 404
    assert client.get(f"{where}/export").status_code in (409, 422)
    (folder / "case.sqlite").write_bytes(b"SQLite format 3\x00" + bytes(500))
    assert client.get(where).status_code == 409
    assert "problem" in client.get("/v1/cases").json()[0]
    (folder / "case.sqlite").unlink()
    (folder / "case.sqlite").symlink_to("/dev/zero")
    assert client.get(where).status_code == 404
    for name in ("..", "%2e%2e", "0123456789AB", "x" * 12):
        assert client.get(f"/v1/cases/{name}").status_code == 404


def test_an_answer_that_no_service_wrote_is_told(client: Any, tmp_path: Path) -> None:
    where, _ = case_with_a_photo(client)
    path = tmp_path / "cases" / where.rsplit("/", 1)[1] / "case.sqlite"
    answer = client.get(where).json()["photos"][0]["answer"]
    markup, first = "<img src=x onerror=alert(1)>", answer["candidates"][0]
    wrong = [{name: markup} for name in ("status", "radius_m", "fov_deg", "exif_agrees", "candidates", "spots")]
    wrong += [{"candidates": [{**first, name: markup}]} for name in ("lat", "heading_deg", "score", "place", "weight")]
    wrong += [{"candidates": [{**first, "lat": 91}]}, {"candidates": [1]}, {"problem": 3}, {"radius_m": 1e300}]
    wrong += [{"spots": [{"lat": 1, "lon": 2, "probability": markup, "covered": 1}], "not_covered": 0, "elsewhere": 0}]
    for change in wrong:
        with sqlite3.connect(path) as base:
            base.execute("UPDATE answer SET answer = ?", (json.dumps({**answer, **change}),))
        base.close()
        (photo,) = client.get(where).json()["photos"]
        assert photo["answer"]["status"] == "unreadable" and markup not in json.dumps(photo["answer"]), change
        assert client.get(f"{where}/export", params={"format": "html"}).status_code == 409, change
    with sqlite3.connect(path) as base:
        base.execute("UPDATE answer SET answer = ?", (json.dumps(answer),))
    base.close()
    assert client.get(f"{where}/export", params={"format": "html"}).status_code == 200


def test_the_log_of_a_failure_repeats_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("holiday.jpg at 48.1, 11.5")

    monkeypatch.setattr(Engine, "ask", fail)
    app = create_app(Service({"town": served}))
    with testing.TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        answer = client.post("/v1/locate", **sent())
    assert answer.status_code == 500 and answer.headers["content-type"] == "application/problem+json"
    (row,) = [json.loads(record.getMessage()) for record in caplog.records if record.levelno == logging.ERROR]
    assert row["error"] == "RuntimeError" and row["request"] == answer.headers["x-request-id"]
    assert "holiday" not in answer.text + json.dumps(row) and row["at"][-1].startswith("test_serve.py:")


def test_a_case_of_endless_rows_is_told(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoloc_fast.serve.cases._SECONDS", 0.3)
    where, _ = case_with_a_photo(client)
    with sqlite3.connect(tmp_path / "cases" / where.rsplit("/", 1)[1] / "case.sqlite") as base:
        base.execute("DROP TABLE photo")
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, 'x', 'jpg', 'now' FROM n"
        base.execute(f"CREATE VIEW photo (sha256, name, suffix, added) AS {endless}")
    base.close()
    assert "interrupted" in client.get("/v1/cases").json()[0]["problem"]
    for answer in (client.get(where), client.get(f"{where}/export"), client.post(f"{where}/seal")):
        assert answer.status_code == 409 and "cannot be used" in answer.json()["detail"]


def test_a_case_that_was_killed_in_the_middle_reopens(tmp_path: Path) -> None:
    case = Cases(tmp_path).create("x")
    (case.path / "photos" / f".{'a' * 64}.jpg.tmp").write_bytes(b"half")
    (tmp_path / ".0123456789ab" / "photos").mkdir(parents=True)  # a case whose making was interrupted
    assert [found["id"] for found in Cases(tmp_path).list()] == [case.id]
    with pytest.raises(CaseError):
        case.decide("a" * 64, 1, "accept", "")
    assert case.content()["photos"] == [] and [entry["did"] for entry in case.content()["log"]] == ["create"]


# --- the command ---------------------------------------------------------------------------------------------


def test_nothing_of_the_service_is_imported_otherwise() -> None:
    code = (
        "import sys, geoloc_fast.cli, geoloc_fast.locate.locator;"
        "print(*[name for name in ('fastapi', 'starlette', 'uvicorn', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_service_needs_no_more_than_its_extra_brings() -> None:
    """What other extras bring is not there: a bare image of the service has to start."""
    others = ("bokeh", "rasterio", "tokenizers", "omegaconf", "tensorboard", "httpx", "pytest")
    code = f"import sys; sys.modules.update(dict.fromkeys({others!r})); import geoloc_fast.serve.app, geoloc_fast.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["--host", "0.0.0.0"], None, "set a token in GEOLOC_FAST_TOKEN"),
        (["--host", "0.0.0.0"], "short", "at least 16 characters"),
        (["--cells", "x"], None, "--cells and --cells-model: give both"),
        (["--sharpness", "1"], None, "--sharpness: expected with --cells"),
        (["--text-model", "x"], None, "--text-index and --text-model: give both"),
        (["--tiles", "x.mbtiles"], None, "expected a name that ends in .pmtiles"),
    ],
)
def test_serving_other_machines_needs_a_token(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    token: str | None, message: str,
) -> None:  # fmt: skip
    from geoloc_fast.cli import main

    monkeypatch.delenv("GEOLOC_FAST_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("GEOLOC_FAST_TOKEN", token)
    monkeypatch.setattr(sys, "argv", ["geoloc-fast", "serve", "--index", str(served.index.path), *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2 and message in capsys.readouterr().err


def test_what_is_vendored_is_what_was_published() -> None:
    from importlib import resources

    vendor = Path(str(resources.files("geoloc_fast.serve") / "static" / "vendor"))
    sums = dict(reversed(line.split("  ")) for line in (vendor / "SHA256SUMS").read_text().splitlines())
    there = {path.relative_to(vendor).as_posix() for path in vendor.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert there == set(sums) and {"leaflet.js", "leaflet.css", "LICENSE"} <= there
    for name, digest in sums.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
