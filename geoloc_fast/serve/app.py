"""The addresses of the HTTP service. The other modules of this room do the work and do not use the web framework."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

import geoloc_fast
from geoloc_fast.errors import BusyError, CaseError, GeolocError, ImageError, PlaceIndexError
from geoloc_fast.evaluation.report import Pictures
from geoloc_fast.evaluation.report.views import street_window
from geoloc_fast.geo.regions import Box, Circle, Region, polygon_of
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.answers import as_dict, as_features
from geoloc_fast.locate.coarse_to_fine import CoarseAnswer
from geoloc_fast.locate.locator import Answer
from geoloc_fast.serve.cases import EXPORTS, Case, Cases
from geoloc_fast.serve.engine import Engine, Question, Served
from geoloc_fast.serve.guard import Guard, Limits, problem
from geoloc_fast.serve.jobs import Jobs

__all__ = ["Service", "create_app"]

MOST_PHOTOS = 500  # of one batch
_REGION_LETTERS = 200_000
_COVERAGE_CELLS = 4000
_COVERAGE_M = 50.0
_VIEW = (360, 640)  # rows, columns of a street view that is cut out
_PROBLEM = {"application/problem+json": {"schema": {"type": "object"}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": what, "content": _PROBLEM}
    for code, what in (
        (400, "Malformed"), (401, "A token is needed"), (403, "Another site"), (404, "Not there"), (408, "Too slow"),
        (409, "Conflict"), (413, "Too large"), (415, "Not that kind"), (421, "Not this host"), (422, "Not like that"),
        (429, "Too many"), (503, "Busy"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Service:
    """What is served.

    Attributes:
        served: indexes with their models, by name.
        cases: folder of cases; None: there are none.
        pictures: images of the places of an index, by its name.
        tiles: what gives a map tile of the region, png, jpeg or webp, or None.
        hosts: names that it answers to.
        token: needed by whoever asks; None: nobody is asked for one.
        seconds: that a photo may take, from when it is there.
        workers, queue: as of `Engine`.
    """

    served: Mapping[str, Served]
    cases: Path | None = None
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    tiles: Any = None
    hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "[::1]"})
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    seconds: float = 30.0
    workers: int = 2
    queue: int = 256


class Decision(BaseModel):
    """What a person thinks of a candidate; rank 0 is the photo as a whole."""

    rank: Annotated[int, Field(ge=0, le=64)]
    verdict: Annotated[str | None, Field(pattern="^(accept|reject)$")] = None
    note: Annotated[str, Field(max_length=10_000)] = ""


class Named(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]


def region_of(text: str | None) -> Region | None:
    """A region from JSON: GeoJSON polygons, {"box": {south, west, north, east}}, or {"circle": {lat, lon, metres}}."""
    if not text:
        return None
    if len(text) > _REGION_LETTERS:
        raise ValueError(f"region: expected at most {_REGION_LETTERS} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("region: expected JSON") from None
    if not isinstance(found, dict):
        raise ValueError("region: expected an object")
    try:
        if "box" in found:
            return Box(**{name: float(found["box"][name]) for name in ("south", "west", "north", "east")})
        if "circle" in found:
            return Circle(**{name: float(found["circle"][name]) for name in ("lat", "lon", "metres")})
        return polygon_of(found)
    except (KeyError, TypeError) as error:
        raise ValueError(f"region: {error} is missing or no number") from None
    except ValueError as error:
        raise ValueError(f"region: {error}") from None


Digest = Annotated[str | None, Form(pattern="^[0-9a-f]{64}$")]
Photo = Annotated[UploadFile | None, File(description="JPEG, PNG, WebP or TIFF.")]
Words = Annotated[str | None, Form(min_length=1, max_length=2000, description="What the place looks like.")]
Fov = Annotated[float | None, Form(ge=10, le=150, description="Horizontal field of view in degrees.")]
Roll = Annotated[float, Form(ge=-180, le=180, description="Turn the photo clockwise first, in degrees.")]
Where = Annotated[str | None, Form(max_length=_REGION_LETTERS, description=str(region_of.__doc__))]
Most = Annotated[int, Form(ge=1, le=64)]
Least = Annotated[float | None, Form(ge=0, le=1, description='Below it the answer is "unknown".')]
Index = Annotated[str | None, Form(max_length=200, description="Name of an index; default the first.")]


def coverage_of(index: PlaceIndex) -> dict[str, Any]:
    """Where the index has places, as rectangles: a GeoJSON MultiPolygon, coarser the more there is."""
    lat, lon = index.positions()
    known = np.isfinite(lat)
    lat, lon = lat[known], lon[known]
    if not len(lat):
        return {"type": "MultiPolygon", "coordinates": []}
    metres = _COVERAGE_M
    stretch = 1 / max(0.01, math.cos(math.radians(float(np.median(lat)))))
    while True:
        step = metres / 111_195.0
        cells = np.unique(np.stack([np.floor(lat / step), np.floor(lon / step / stretch)], 1).astype(np.int64), axis=0)
        breaks = np.flatnonzero((np.diff(cells[:, 0]) != 0) | (np.diff(cells[:, 1]) != 1)) + 1
        runs = np.split(cells, breaks)
        if len(runs) <= _COVERAGE_CELLS:
            break
        metres *= 2
    polygons = []
    for run in runs:
        south, north = run[0, 0] * step, (run[0, 0] + 1) * step
        west, east = run[0, 1] * step * stretch, (run[-1, 1] + 1) * step * stretch
        west, south = (math.floor(float(value) * 1e6) / 1e6 for value in (west, south))
        east, north = (math.ceil(float(value) * 1e6) / 1e6 for value in (east, north))
        polygons.append([[[west, south], [east, south], [east, north], [west, north], [west, south]]])
    return {"type": "MultiPolygon", "coordinates": polygons}


class Metrics:
    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        at: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("geoloc_requests", "Requests by route and status", ["route", "status"], **at)
        self.seconds = Histogram("geoloc_request_seconds", "Seconds of a request", ["route"], **at)
        self.stages = Histogram("geoloc_stage_seconds", "Seconds of a photo in each stage", ["stage"], **at)
        self.answers = Counter("geoloc_answers", "Answers by status", ["status"], **at)
        Gauge("geoloc_waiting", "Photos that wait", **at).set_function(lambda: len(engine))

    def counted(self, status: int, seconds: float, route: str) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def answered(self, answer: Answer) -> None:
        self.answers.labels(answer.status).inc()
        for stage, seconds in answer.seconds.items():
            self.stages.labels(stage).observe(seconds)


def create_app(service: Service) -> Guard:
    """The service as an ASGI application, guard and all."""
    engine = Engine(service.served, workers=service.workers, queue=service.queue)
    jobs, metrics = Jobs(engine, lambda *found: said_of(*found)[1]), Metrics(engine)
    cases = None if service.cases is None else Cases(service.cases)
    default = next(iter(service.served))
    coverage: dict[tuple[str, int], dict[str, Any]] = {}
    drawing = threading.Lock()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="geoloc_fast", version=geoloc_fast.__version__, lifespan=life, docs_url=None, redoc_url=None,
        openapi_url="/v1/openapi.json", responses=_ERRORS,
        description="Where was this photo taken, and which way was it looking? An answer is a lead for a person to "
        "check, not proof.",
    )  # fmt: skip
    app.state.engine = engine

    def source_of(name: str) -> dict[str, Any]:
        served = engine.served[name]
        return {
            "index": name, "commit": served.index.commit, "model": str(served.model.fingerprint),
            "trained_on": served.model.trained_on,
            "version": geoloc_fast.__version__,
        }  # fmt: skip

    async def question_of(
        content: bytes | None, index: str | None, fov_deg: float | None, roll_deg: float, region: str | None,
        candidates: int, least_probability: float | None, text: str | None = None,
    ) -> Question:  # fmt: skip
        # A polygon may have thousands of corners: others are served while it is read.
        within = None if region is None else await asyncio.to_thread(region_of, region)
        return Question(
            content, index or default, text=text, fov_deg=fov_deg, roll_deg=roll_deg, within=within,
            candidates=candidates, least_probability=least_probability,
        )  # fmt: skip

    async def answered(question: Question) -> tuple[Answer, dict[str, Any]]:
        """The answer and what is said of it."""
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(engine.ask(question)), service.seconds)
        except asyncio.TimeoutError:
            raise HTTPException(503, f"the answer took longer than {service.seconds:g} seconds") from None
        answer, said = said_of(found, question, "text" if question.photo is None else "photo")
        metrics.answered(answer)
        return answer, said

    def said_of(found: Answer | CoarseAnswer, question: Question, image: str) -> tuple[Answer, dict[str, Any]]:
        if isinstance(found, Answer):
            answer = replace(found, image=image)
            return answer, as_dict(answer)
        least = 0.5 if question.least_probability is None else question.least_probability
        answer = replace(found.answer(least, question.fov_deg), image=image)
        said, coarse = as_dict(answer), found.as_dict()
        names = {served.index.path.name: name for name, served in engine.served.items()}
        for candidate, place in zip(said["candidates"], coarse["candidates"], strict=True):
            candidate |= {"index": names.get(place["index"]), "spot": place["spot"]}
        return answer, said | {name: coarse[name] for name in ("spots", "not_covered", "elsewhere")}

    # --- errors ------------------------------------------------------------------------------------------

    def told(status: int, title: str, detail: str, kind: str, **headers: str) -> Response:
        code, body = problem(status, title, detail, kind)
        return Response(body, code, headers, media_type="application/problem+json")

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: Request, error: StarletteHTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 503:
            headers["retry-after"] = "1"
        return told(error.status_code, "Not possible", str(error.detail), f"http-{error.status_code}", **headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return told(422, "Not like that", f"{where}: {first['msg']}", "invalid")

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> Response:
        return told(503, "Busy", str(error), "busy", **{"retry-after": "1"})

    @app.exception_handler(CaseError)
    async def case_error(_: Request, error: CaseError) -> Response:
        return told(error.status, "Not with this case", str(error), "case")

    @app.exception_handler(ImageError)
    async def image_error(_: Request, error: ImageError) -> Response:
        return told(422, "No photo", error.reason, "photo")

    @app.exception_handler(PlaceIndexError)
    async def index_error(_: Request, error: PlaceIndexError) -> Response:
        # The text names a folder of the server; what a client can do something about is the region.
        return told(422, "Nothing to search", "The index has no places there.", "nothing-there")

    @app.exception_handler(ValueError)
    async def value_error(_: Request, error: ValueError) -> Response:
        return told(422, "Not like that", str(error), "invalid")

    @app.exception_handler(GeolocError)
    async def own_error(_: Request, error: GeolocError) -> Response:
        return told(500, "Something went wrong", type(error).__name__, "internal")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        # It is raised again after this answer, and the guard logs where it came from.
        return told(500, "Something went wrong", "The log has it under this request id.", "internal")

    # --- locating ----------------------------------------------------------------------------------------

    @app.post("/v1/locate", responses={200: {"content": {"application/geo+json": {}}}})
    async def locate(
        photo: Photo = None, text: Words = None, fov_deg: Fov = None, roll_deg: Roll = 0.0, region: Where = None,
        candidates: Most = 5, least_probability: Least = None, index: Index = None,
    ) -> Response:  # fmt: skip
        """Where a photo may have been taken, or what a text describes may be, or both of one place: GeoJSON, with the
        whole answer in the member `answer`. Nothing is kept."""
        if photo is None and text is None:
            raise ValueError("photo, text: expected one of them, or both")
        content = None if photo is None else await photo.read()
        question = await question_of(content, index, fov_deg, roll_deg, region, candidates, least_probability, text)
        answer, said = await answered(question)
        collection = {
            "type": "FeatureCollection", "features": as_features(answer), "answer": said,
            "source": source_of(question.index), "seconds": dict(answer.seconds),
        }  # fmt: skip
        return Response(json.dumps(collection), media_type="application/geo+json")

    @app.post("/v1/jobs", status_code=202)
    async def begin(
        photos: Annotated[list[UploadFile], File(max_length=MOST_PHOTOS)], response: Response, fov_deg: Fov = None,
        region: Where = None, candidates: Most = 5, least_probability: Least = None, index: Index = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Begin a batch; look after it at the address in Location. Photos are forgotten as they are answered."""
        first = await question_of(None, index, fov_deg, 0.0, region, candidates, least_probability)
        if first.index not in service.served:
            raise ValueError(f"index: expected one of {', '.join(service.served)}")
        questions = [replace(first, photo=await photo.read()) for photo in photos]
        job = jobs.begin([(photo.filename or f"photo {n}")[:200] for n, photo in enumerate(photos)], questions)
        response.headers["location"] = f"/v1/jobs/{job.id}"
        return job.said()

    @app.get("/v1/jobs/{job_id}")
    def look(job_id: str) -> dict[str, Any]:
        """How far a batch is, and its answers so far."""
        job = jobs.get(job_id)
        if job is None:
            raise HTTPException(404, "there is no such batch")
        return job.said()

    @app.delete("/v1/jobs/{job_id}", status_code=204)
    def cancel(job_id: str) -> None:
        """Cancel a batch and forget its answers."""
        if not jobs.remove(job_id):
            raise HTTPException(404, "there is no such batch")

    # --- what is searched --------------------------------------------------------------------------------

    @app.get("/v1/index")
    def indexes() -> dict[str, Any]:
        """What is served: coverage, commit and model of every index, and whether there are images of its places."""
        found = []
        for name, served in list(engine.served.items()):
            key = name, served.index.commit
            if key not in coverage:
                coverage[key] = coverage_of(served.index)
            bounds = served.index.info()["bounds"]
            found.append(
                {
                    **source_of(name), "places": len(served.index), "bounds": bounds, "coverage": coverage[key],
                    "probability": served.confidence is not None, "pictures": name in service.pictures,
                    "takes": list(served.takes), "cells": served.cells,
                }
            )  # fmt: skip
        zooms = [] if service.tiles is None else service.tiles.zooms()
        tiles = {"min_zoom": min(zooms), "max_zoom": max(zooms)} if zooms else None
        return {"indexes": found, "tiles": tiles, "cases": cases is not None}

    def picture(draw: Callable[[], np.ndarray | None]) -> Response:
        with drawing:
            image = draw()
        if image is None:
            raise HTTPException(404, "there is no such image")
        _, content = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 85])
        return Response(content.tobytes(), media_type="image/webp", headers={"cache-control": "private, max-age=3600"})

    def pictures_of(index: str) -> Pictures:
        if index not in service.pictures:
            raise HTTPException(404, "there are no images of this index's places")
        return service.pictures[index]

    @app.get("/v1/index/{index}/places/{place}/satellite", response_class=Response)
    def satellite(index: str, place: int) -> Response:
        """The satellite image of a place, north up; its side in metres in the header `x-side-metres`."""
        pictures = pictures_of(index)
        sides: list[float | None] = []

        def draw() -> np.ndarray | None:
            tile = pictures.tile(place)
            sides.append(None if tile is None else tile.side_m)
            return None if tile is None else tile.image

        response = picture(draw)
        if sides[0] is not None:
            response.headers["x-side-metres"] = f"{sides[0]:.3f}"
        return response

    @app.get("/v1/index/{index}/places/{place}/street", response_class=Response)
    def street(
        index: str, place: int, heading_deg: Annotated[float, Query(ge=0, le=360)],
        fov_deg: Annotated[float, Query(ge=10, le=150)] = 90.0,
    ) -> Response:  # fmt: skip
        """The street view of a place, cut to what a photo of this heading and field of view would show."""
        pictures = pictures_of(index)

        def draw() -> np.ndarray | None:
            panorama = pictures.street(place)
            return None if panorama is None else street_window(panorama, heading_deg, fov_deg, _VIEW)

        return picture(draw)

    @app.get(
        "/tiles/{z}/{x}/{y}",
        response_class=Response,
        responses={204: {"description": "Nothing is shown there"}},
    )
    def tile(z: int, x: int, y: int) -> Response:
        """A map tile of the region's own imagery; 204 where there is none, which is most of the world."""
        content = None
        if service.tiles is not None and 0 <= z <= 24 and 0 <= x < 2**z and 0 <= y < 2**z:
            content = service.tiles.read(z, x, y)
        if content is None:
            return Response(status_code=204)
        kind = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
        media = next((name for start, name in kind.items() if content.startswith(start)), None)
        if media is None:
            return Response(status_code=204)
        return Response(content, media_type=f"image/{media}", headers={"cache-control": "private, max-age=3600"})

    # --- cases -------------------------------------------------------------------------------------------

    def case_of(case_id: str) -> Case:
        if cases is None:
            raise HTTPException(404, "this service keeps no cases")
        return cases.open(case_id)

    @app.get("/v1/cases")
    def list_cases() -> list[dict[str, Any]]:
        """All cases; none where the service keeps none."""
        return [] if cases is None else cases.list()

    @app.post("/v1/cases", status_code=201)
    def create_case(named: Named, response: Response) -> dict[str, Any]:
        """A new case."""
        if cases is None:
            raise HTTPException(404, "this service keeps no cases")
        case = cases.create(named.name)
        response.headers["location"] = f"/v1/cases/{case.id}"
        return case.content()

    @app.get("/v1/cases/{case_id}")
    def read_case(case_id: str) -> dict[str, Any]:
        """Everything in a case but the photos themselves."""
        return case_of(case_id).content()

    @app.delete("/v1/cases/{case_id}", status_code=204)
    def delete_case(case_id: str) -> None:
        """Delete a case and its photos for good."""
        case_of(case_id)
        assert cases is not None
        cases.delete(case_id)

    @app.post("/v1/cases/{case_id}/photos")
    async def add_photo(
        case_id: str, photo: Annotated[UploadFile | None, File()] = None, sha256: Digest = None,
        text: Words = None, fov_deg: Fov = None, roll_deg: Roll = 0.0, region: Where = None, candidates: Most = 5,
        least_probability: Least = None, index: Index = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Keep a photo in a case and locate it; or, by its `sha256`, locate one again that is there."""
        case = case_of(case_id)
        if (photo is None) == (sha256 is None):
            raise ValueError("photo, sha256: expected one of them")
        if photo is not None:
            content = await photo.read()
            sha256 = await asyncio.to_thread(case.add_photo, photo.filename or "photo", content)
        else:
            content = await asyncio.to_thread(case.photo, str(sha256))
        question = await question_of(content, index, fov_deg, roll_deg, region, candidates, least_probability, text)
        _, said = await answered(question)
        settings = {
            "fov_deg": fov_deg, "roll_deg": roll_deg, "region": json.loads(region) if region else None,
            "candidates": candidates, "least_probability": least_probability, "text": text,
        }  # fmt: skip
        source = source_of(question.index)
        await asyncio.to_thread(case.add_answer, str(sha256), said, source=source, settings=settings)
        return {"sha256": sha256, "answer": said, "source": source}

    @app.get("/v1/cases/{case_id}/photos/{sha256}", response_class=Response)
    def read_photo(case_id: str, sha256: str) -> Response:
        """A photo of a case, as it came."""
        content = case_of(case_id).photo(sha256)
        kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
        kind = next((name for start, name in kinds.items() if content.startswith(start)), "tiff")
        return Response(content, media_type=f"image/{kind}")

    @app.post("/v1/cases/{case_id}/photos/{sha256}/decisions", status_code=204)
    def decide(case_id: str, sha256: str, decision: Decision) -> None:
        """Accept or reject a candidate, or say something of it or of the photo."""
        case_of(case_id).decide(sha256, decision.rank, decision.verdict, decision.note)

    def case_pictures(case: Case) -> Pictures | None:
        names = {photo["source"].get("index") for photo in case.content()["photos"] if photo["answer"]}
        return service.pictures.get(next(iter(names))) if len(names) == 1 else None

    @app.get("/v1/cases/{case_id}/export", response_class=Response)
    def export(case_id: str, format: Annotated[str, Query(pattern=f"^({'|'.join(EXPORTS)})$")] = "geojson") -> Response:
        """A case as one file."""
        case = case_of(case_id)
        with drawing:
            content = case.export(format, case_pictures(case))
        kinds = {
            "geojson": "application/geo+json", "kml": "application/vnd.google-earth.kml+xml", "csv": "text/csv",
            "html": "application/octet-stream",  # nothing of a case runs as a page of this service
        }  # fmt: skip
        attached = {"content-disposition": f'attachment; filename="case-{case_id}.{format}"'}
        return Response(content, media_type=kinds[format], headers=attached)

    @app.post("/v1/cases/{case_id}/seal")
    def seal(case_id: str) -> dict[str, Any]:
        """Write the exports and checksums; the case cannot be changed after."""
        case = case_of(case_id)
        with drawing:
            digest = case.seal(case_pictures(case))
        return {"sha256": digest, **case.summary()}

    @app.get("/v1/cases/{case_id}/problems")
    def problems(case_id: str) -> dict[str, Any]:
        """What of a sealed case is not as it was sealed."""
        return {"problems": case_of(case_id).problems()}

    # --- whether it lives --------------------------------------------------------------------------------

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        """Whether it can answer."""
        if len(engine) >= service.queue:
            raise HTTPException(503, "the queue is full")
        return {"status": "ok", "indexes": {name: served.index.commit for name, served in list(engine.served.items())}}

    @app.get("/metrics", response_class=Response)
    def metrics_text() -> Response:
        """For Prometheus: never a file name or a position."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    # --- the page ----------------------------------------------------------------------------------------

    static = Path(str(resources.files("geoloc_fast.serve") / "static"))
    files = {path.relative_to(static).as_posix(): path for path in static.rglob("*") if path.is_file()}
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html; charset=utf-8", ".png": "image/png"}

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(static / "index.html", media_type=kinds[".html"])

    @app.get("/static/{name:path}", include_in_schema=False)
    def static_file(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return FileResponse(files[name], media_type=kinds.get(files[name].suffix, "text/plain; charset=utf-8"))

    guard = Guard(app, hosts=service.hosts, token=service.token, limits=service.limits, counted=metrics.counted)
    return guard
