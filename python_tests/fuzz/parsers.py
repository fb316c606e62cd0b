"""Every parser of files that nobody vouches for, as a function of bytes, and the first inputs of each.

    python parsers.py corpus                       writes the corpus anew
    python parsers.py fuzz NAME|all FOLDER OPTION  atheris, with options of libFuzzer; findings lie in FOLDER

A parser passes if it ends, or raises what it says it does, within MAX_SECONDS of the processor.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
MAX_SECONDS, MAX_MEGABYTES = 5, 3072
MODEL = "a" * 64

Parser = Callable[[bytes], None]


def parsers(scratch: Path) -> dict[str, Parser]:
    """Name -> parser. `scratch` is an empty folder for the files that they read."""
    import torch

    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.data.readers.mat import read_panorama_list
    from geoloc_fast.errors import (
        BundleError,
        ConfidenceError,
        DamagedIndexError,
        ImageError,
        IndexVersionError,
        ManifestError,
    )
    from geoloc_fast.images.decode import decode_image, read_header
    from geoloc_fast.images.exif import orientation_of, parse_exif, time_of
    from geoloc_fast.index import commits
    from geoloc_fast.index.folder import Folder
    from geoloc_fast.index.segment import Segment
    from geoloc_fast.locate.confidence import Confidence, _digest
    from geoloc_fast.models.contract import load_model
    from geoloc_fast.retrieval import StripBank

    index = _index(scratch / "index")
    state = commits.read_last(Folder(index))
    entry = state.segments[0]

    def images(data: bytes) -> None:
        try:
            header = read_header(data, "fuzzed", max_pixels=1 << 20)
            pixels = decode_image(data, "fuzzed", max_pixels=1 << 20)
        except ImageError:
            return
        assert pixels.shape == (header.height, header.width, 3), (pixels.shape, header)

    def exif(data: bytes) -> None:
        found = parse_exif(data, (480, 640))
        assert found.lat is None or (-90 <= found.lat <= 90 and -180 <= found.lon <= 180)
        assert found.heading_deg is None or 0 <= found.heading_deg < 360
        assert len(set(found.reasons)) == len(found.reasons), found.reasons
        assert 1 <= orientation_of(data) <= 8
        time_of(data)

    def mat(data: bytes) -> None:
        (scratch / "list.mat").write_bytes(data)
        try:
            read_panorama_list(scratch / "list.mat", {"trainSet": "trainInd"})
        except ManifestError:
            return

    def manifest(ending: str) -> Parser:
        def read(data: bytes) -> None:
            path = scratch / f"places.{ending}"
            path.write_bytes(data)
            try:
                Manifest.load(path)
            except ManifestError:
                return

        return read

    def bundle(data: bytes) -> None:
        (scratch / "model.safetensors").write_bytes(data)
        try:
            load_model(scratch / "model.safetensors")
        except BundleError:
            return

    def confidence(data: bytes) -> None:
        """As it is, and with a checksum that fits."""
        path = scratch / "model.confidence.json"
        for content in (data, _with_checksum(data, _digest)):
            path.write_bytes(content)
            try:
                found = Confidence.load(path, model=MODEL)
            except ConfidenceError:
                continue
            assert 0 <= found.threshold <= 1 and min(found.scale) > 0

    def commit(data: bytes) -> None:
        """As it is, and with a digest that fits."""
        for content in (data, data[:-72] + b"sha256 " + hashlib.sha256(data[:-72]).hexdigest().encode() + b"\n"):
            try:
                found = commits.decoded(scratch / commits.file_name(0), content)
            except (DamagedIndexError, IndexVersionError):
                continue
            assert commits.encoded(found)

    def places(data: bytes) -> None:
        if not data:
            return  # a commit names no empty file
        (index / f"{entry.name}.places").write_bytes(data)
        table = commits.FileEntry(len(data), entry.table.sha256)
        found = commits.replace(entry, table=table)
        try:
            segment = Segment(Folder(index), state, found, torch.device("cpu"))
        except DamagedIndexError:
            return
        if not segment.problems():
            rows = segment.places()
            assert len(segment.texts("key", rows)) == len(segment.ids(rows)) == entry.places

    def bank(data: bytes) -> None:
        buffer = torch.empty(len(data) + 64, dtype=torch.uint8)
        buffer = buffer[-buffer.data_ptr() % 64 :][: len(data)]
        buffer.copy_(torch.frombuffer(bytearray(data or b"x"), dtype=torch.uint8)[: len(data)])
        try:
            opened = StripBank(buffer)
        except ValueError:
            return
        assert opened.layout.nbytes == len(data)

    return {
        "bank": bank, "bundle": bundle, "commit": commit, "confidence": confidence, "csv": manifest("csv"),
        "exif": exif, "images": images, "mat": mat, "parquet": manifest("parquet"), "places": places,
    }  # fmt: skip


def checked(parse: Parser, data: bytes) -> None:
    begin = time.process_time()
    parse(data)
    seconds = time.process_time() - begin
    assert seconds < MAX_SECONDS, f"{seconds:.1f} s of the processor for {len(data)} bytes"


def _with_checksum(data: bytes, digest: Callable[[dict[str, Any]], str]) -> bytes:
    try:
        content = json.loads(data)
        content.pop("sha256", None)
        return json.dumps({**content, "sha256": digest(content)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


# --- first inputs ------------------------------------------------------------------------------------------------


def _index(path: Path) -> Path:
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.layers import Layer, Rows
    from geoloc_fast.testing import random_strips

    layers = (Layer("street", (2, 1, 4), "cosine", 180.0),)
    with PlaceIndex.create(path, model=MODEL, layers=layers) as made:
        rows = {"street": Rows(random_strips(3, 2, 1, 4, seed=0))}
        made.add(rows, model=MODEL, lat=[48.0, 48.1, 48.2], lon=[11.0, 11.1, 11.2], key=["a", "b", "ü"])
    return path


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """(parser, name of the file, bytes)"""
    import runpy

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch
    from PIL import Image

    from geoloc_fast.images import exif as tags
    from geoloc_fast.locate.confidence import FEATURES, Confidence

    picture = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    block = Image.Exif()
    block[tags.ORIENTATION] = 6
    block._ifds[tags.EXIF_IFD] = {tags.DATE_ORIGINAL: "2020:05:17 10:11:12", tags.FOCAL_35MM: 28}
    block._ifds[tags.GPS_IFD] = {
        tags.LAT_REF: "N", tags.LAT: (48.0, 8.0, 13.5), tags.LON_REF: "E", tags.LON: (11.0, 34.0, 30.0),
        tags.DIRECTION_REF: "M", tags.DIRECTION: 123.5,
    }  # fmt: skip
    yield "exif", "photo", block.tobytes()
    for kind, options in (("jpeg", {"exif": block.tobytes()}), ("jpeg", {"progressive": True}), ("png", {}),
                          ("webp", {}), ("tiff", {}), ("tiff", {"compression": "tiff_lzw"})):  # fmt: skip
        sink = io.BytesIO()
        picture.save(sink, kind, **options)
        yield "images", "_".join([kind, *options]), sink.getvalue()
    rows = b"id,lat,lon,satellite,street_date\na,48.1,11.5,a.jpg,2020-05-17\nb,-33.9,151.2,b.png,\n"
    yield "csv", "places", rows
    yield "csv", "quotes", b'\xef\xbb\xbfid;lat\n"a ""b""\n";1,5\n'
    table = pa.table({"id": ["a", "b"], "lat": [48.1, -33.9], "lon": [11.5, 151.2], "satellite": ["a.jpg", "b.png"]})
    for name, options in (("plain", {"use_dictionary": False}), ("dictionary", {})):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="none", store_schema=False, write_statistics=False, **options)
        yield "parquet", name, sink.getvalue()
    metadata = {"format": "geoloc_fast.geolocalizer", "version": "1", "config": "{}", "fingerprint": MODEL}
    yield "bundle", "small", safetensors.torch.save({"weight": torch.zeros(2)}, metadata)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        many = tuple(1.0 for _ in FEATURES)
        distances = tuple(float(n) for n in range(21))
        Confidence(MODEL, ("street",), many, many, many, 0.0, 0.5, 0.5, distances).save(made / "confidence.json")
        yield "confidence", "fitted", (made / "confidence.json").read_bytes()
        savemat = runpy.run_path(str(CORPUS.parents[1] / "data" / "test_readers.py"))["savemat"]
        content = {"panoIds": ["a", "bc"], "utm": np.eye(2), "trainSet": {"trainInd": np.array([[1.0], [2.0]])}}
        for name, options in (("plain", {}), ("big_endian", {"order": ">"}), ("packed", {"compress": True})):
            savemat(made / "list.mat", content, **{"compress": False, **options})
            yield "mat", name, (made / "list.mat").read_bytes()
        index = _index(made / "index")
        for parser, name, pattern in (("commit", "empty", "*0.commit"), ("commit", "places", "*1.commit"),
                                      ("places", "three", "*.places"), ("bank", "three", "*.strips")):  # fmt: skip
            (path,) = index.glob(pattern)
            yield parser, name, path.read_bytes()


def write_corpus() -> None:
    for parser, name, data in seeds():
        (CORPUS / parser).mkdir(parents=True, exist_ok=True)
        (CORPUS / parser / name).write_bytes(data)


def fuzz(name: str, out: Path, options: list[str]) -> None:
    """Of all parsers at once the first byte of an input chooses one."""
    import atheris

    with atheris.instrument_imports(include=["geoloc_fast.data", "geoloc_fast.images", "geoloc_fast.index",
                                             "geoloc_fast.locate.confidence", "geoloc_fast.models.bundle",
                                             "geoloc_fast.models.contract", "geoloc_fast.reference"]):  # fmt: skip
        every = parsers(Path(tempfile.mkdtemp(dir=out)))
    names = sorted(every) if name == "all" else [name]
    corpus = out / "corpus"
    corpus.mkdir()
    for number, parser in enumerate(names):
        for file in (CORPUS / parser).iterdir():
            mark = bytes([number]) if name == "all" else b""
            (corpus / f"{parser}_{file.name}").write_bytes(mark + file.read_bytes())

    def one(data: bytes) -> None:
        if name != "all":
            checked(every[name], data)
        elif data:
            checked(every[names[data[0] % len(names)]], data[1:])

    warnings.simplefilter("ignore")  # Pillow's, of damaged files
    limits = [f"-artifact_prefix={out}/", f"-rss_limit_mb={MAX_MEGABYTES}", "-timeout=300", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "corpus":
        write_corpus()
    else:
        fuzz(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
