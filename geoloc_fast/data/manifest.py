"""The manifest: which places and photos there are, where their images lie, and what is known of them.

A manifest is a folder with `places.parquet` and `photos.parquet` (GeoParquet 1.1; `.csv` in and out), and the images
beside it in relative paths. docs/guide/data.md lists the columns. Manifests come from other people and from
spreadsheets: everything in them is checked, and every problem is reported with its file, row and column.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geoloc_fast.errors import ImageError, ManifestError
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.geoparquet import geoparquet_bytes
from geoloc_fast.images.cylindrical import WIDEST_PHOTO_DEG
from geoloc_fast.images.decode import read_header, require_panorama
from geoloc_fast.images.storage import UNSAFE_PATHS, Storage

__all__ = ["CALIBRATION_STATUS", "SPLITS", "Manifest", "Problem"]

CALIBRATION_STATUS = ("known", "measured", "low quality", "none")
SPLITS = ("train", "val", "test")
MAX_ROWS = 100_000_000
MAX_TEXT_BYTES = 1 << 16  # of a cell
_LIST_SEPARATOR = ";"  # of street_views in a CSV cell

TEXT, NUMBER, DATE, TEXTS = pa.string(), pa.float64(), pa.date32(), pa.list_(pa.string())
PLACES = pa.schema(
    [
        ("id", TEXT),
        ("lat", NUMBER),
        ("lon", NUMBER),
        ("city", TEXT),
        ("satellite", TEXT),
        ("metres_per_pixel", NUMBER),
        ("street", TEXT),
        ("street_views", TEXTS),
        ("street_lat", NUMBER),
        ("street_lon", NUMBER),
        ("street_date", DATE),
        ("satellite_date", DATE),
        ("street_column0_deg", NUMBER),
        ("calibration_column0_deg", NUMBER),
        ("calibration_quality", NUMBER),
        ("calibration_status", TEXT),
        ("street_synthetic", TEXT),
        ("street_superseded", TEXT),
    ]
)
PHOTOS = pa.schema(
    [
        ("id", TEXT),
        ("image", TEXT),
        ("lat", NUMBER),
        ("lon", NUMBER),
        ("heading_deg", NUMBER),
        ("fov_deg", NUMBER),
        ("date", DATE),
        ("city", TEXT),
        ("place", TEXT),
        ("split", TEXT),
    ]
)
REQUIRED = {"places": ("id",), "photos": ("id", "image")}
SCHEMAS = {"places": PLACES, "photos": PHOTOS}
# What an empty cell stands for, where that is not "unknown".
DEFAULTS = {"city": "", "calibration_status": "none"}
# What belongs to a street view, and goes with it when another stands in for it.
STREET_COLUMNS = (
    "street", "street_views", "street_lat", "street_lon", "street_date", "street_column0_deg",
    "calibration_column0_deg", "calibration_quality", "calibration_status",
)  # fmt: skip
_HEADINGS = ("street_column0_deg", "calibration_column0_deg", "heading_deg")


@dataclass(frozen=True)
class Problem:
    """Something wrong in a manifest. `row` counts from 1, the first row below the header; None concerns the whole
    file or column."""

    file: str
    row: int | None
    column: str | None
    text: str

    def __str__(self) -> str:
        where = [self.file]
        if self.row is not None:
            where.append(f"row {self.row}")
        if self.column is not None:
            where.append(f"column {self.column}")
        return f"{', '.join(where)}: {self.text}"


class Manifest:
    """Places and photos below one folder.

    Attributes:
        root: the folder; image paths are relative to it.
        places, photos: Arrow tables with all columns of docs/guide/data.md, in that order, and then any others.
        format: "parquet" or "csv", how it is saved unless told otherwise.
    """

    def __init__(
        self, root: str | os.PathLike[str], places: pa.Table, photos: pa.Table, *, format: str = "parquet"
    ) -> None:
        """Takes tables that may lack optional columns; raises ManifestError with all that is wrong in them."""
        self._set(root, {"places": places, "photos": photos}, {"places": "places", "photos": "photos"}, format, [])

    def _set(
        self,
        root: str | os.PathLike[str],
        tables: dict[str, pa.Table],
        files: dict[str, str],
        format: str,
        problems: list[Problem],
    ) -> None:
        typed = {name: _typed(name, table, files[name], problems) for name, table in tables.items()}
        # A value that could not be read is unknown now: it is not reported a second time as missing.
        reported = {(problem.file, problem.row, problem.column) for problem in problems}
        problems += [
            problem
            for problem in _check_all(typed["places"], typed["photos"], files)
            if not reported & {(problem.file, problem.row, problem.column), (problem.file, None, problem.column)}
        ]
        if problems:
            raise ManifestError(problems)
        if format not in ("parquet", "csv"):
            raise ValueError(f"format: expected 'parquet' or 'csv', got {format!r}")
        self.root = Path(root)
        self.places = typed["places"]
        self.photos = typed["photos"]
        self.format = format
        self._storage = Storage(self.root)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Reads a folder, or a .parquet or .csv of places with that of photos beside it.

        Either table may be absent, and is empty then. Raises ManifestError with every problem found.
        """
        files = _find_tables(Path(path))
        problems: list[Problem] = []
        tables = {}
        for name in SCHEMAS:
            file = files.get(name)
            read = _read_csv if file is not None and file.suffix.lower() == ".csv" else _read_parquet
            tables[name] = SCHEMAS[name].empty_table() if file is None else read(file, problems)
        first = next(iter(files.values()))
        names = {name: files[name].name if name in files else name for name in SCHEMAS}
        manifest = cls.__new__(cls)
        manifest._set(first.parent, tables, names, first.suffix.lower().removeprefix("."), problems)
        return manifest

    @classmethod
    def from_rows(
        cls,
        root: str | os.PathLike[str],
        places: Iterable[dict[str, Any]],
        photos: Iterable[dict[str, Any]],
    ) -> Manifest:
        """A manifest from dictionaries. A missing key or None means unknown; an unknown key makes a new column."""
        problems: list[Problem] = []
        tables = {
            name: _table_of_rows(name, list(rows), problems) for name, rows in (("places", places), ("photos", photos))
        }
        manifest = cls.__new__(cls)
        manifest._set(root, tables, {name: name for name in SCHEMAS}, "parquet", problems)
        return manifest

    def replace(self, *, places: pa.Table | None = None, photos: pa.Table | None = None) -> Manifest:
        """The same folder with other tables, which are checked again."""
        return Manifest(
            self.root,
            self.places if places is None else places,
            self.photos if photos is None else photos,
            format=self.format,
        )

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        format: str | None = None,
        tables: Sequence[str] = tuple(SCHEMAS),
    ) -> None:
        """Writes the tables into the folder `path` (default: `root`), each completely or not at all.

        Image paths are written as they are: in another folder they mean images that lie there.

        Args:
            format: "parquet" or "csv"; default as it was loaded.
            tables: which of "places" and "photos"; default both.
        """
        folder = self.root if path is None else Path(path)
        format = self.format if format is None else format
        if format not in ("parquet", "csv"):
            raise ValueError(f"format: expected 'parquet' or 'csv', got {format!r}")
        contents = {}
        for name in tables:
            table = getattr(self, name)
            contents[name] = geoparquet_bytes(table) if format == "parquet" else _csv_bytes(name, table)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(folder / f"{name}.{format}", content)

    def validate(self, *, images: bool = False) -> list[Problem]:
        """Every problem there is; of the tables none, since they were checked when they came in, unless changed since.

        Args:
            images: look at every image file too: that it is there, inside the folder, and begins as an image
                within the size limits, of a panorama's shape where it is to be one. Decodes none of them.
        """
        tables = {"places": self.places, "photos": self.photos}
        files = {name: f"{name}.{self.format}" for name in tables}
        problems = _check_all(self.places, self.photos, files)
        if images:
            for name, columns in (("places", ("satellite", "street", "street_views")), ("photos", ("image",))):
                fov = [None] * len(self.places) if name == "places" else self.photos["fov_deg"].to_pylist()
                for column in columns:
                    for row, value in enumerate(tables[name][column].to_pylist(), start=1):
                        for image in value if isinstance(value, list) else [value]:
                            if image is None:
                                continue
                            try:
                                header = read_header(self.open_image(image), image)
                                fov_deg = 360.0 if column == "street" else fov[row - 1]
                                if fov_deg is not None and fov_deg > WIDEST_PHOTO_DEG:
                                    require_panorama(header, image, fov_deg)
                            except ImageError as error:
                                problems.append(Problem(files[name], row, column, str(error)))
        return problems

    def open_image(self, relative_path: str) -> bytes:
        """The bytes of an image file or shard member; ImageError if it is not there or not inside the folder."""
        return self._storage.read(relative_path)

    @property
    def has_positions(self) -> bool:
        """Whether the places have positions: all have one, or none has (in some published benchmarks)."""
        return bool(self.places["lat"].null_count == 0)

    def place(self, row: int) -> dict[str, Any]:
        """One row of `places`; row 0 is the first."""
        return self.places.slice(row, 1).to_pylist()[0]

    def photo(self, row: int) -> dict[str, Any]:
        """One row of `photos`; row 0 is the first."""
        return self.photos.slice(row, 1).to_pylist()[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.places.equals(other.places) and self.photos.equals(other.photos)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Manifest({str(self.root)!r}, {self.places.num_rows} places, {self.photos.num_rows} photos)"


# --- finding and reading ---------------------------------------------------------------------------------


def _find_tables(path: Path) -> dict[str, Path]:
    if path.is_dir():
        found = {}
        for name in SCHEMAS:
            there = [path / f"{name}.{kind}" for kind in ("parquet", "csv") if (path / f"{name}.{kind}").exists()]
            if len(there) > 1:
                both = " and ".join(file.name for file in there)
                raise ManifestError([Problem(str(path), None, None, f"both {both}: give the path of the one to read")])
            if there:
                found[name] = there[0]
        if not found:
            raise ManifestError(
                [Problem(str(path), None, None, "no places.parquet, places.csv or photos of that kind")]
            )
        return found
    if not path.exists():
        raise ManifestError([Problem(str(path), None, None, "there is no such file or folder")])
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise ManifestError([Problem(str(path), None, None, "expected a folder, a .parquet or a .csv file")])
    if path.stem == "photos":
        return {"photos": path}
    photos = path.with_name(path.name.replace("places", "photos") if "places" in path.stem else f"photos{path.suffix}")
    return {"places": path, "photos": photos} if photos.exists() and photos != path else {"places": path}


def _read_parquet(path: Path, problems: list[Problem]) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MAX_ROWS:
            problems.append(
                Problem(path.name, None, None, f"{file.metadata.num_rows} rows; at most {MAX_ROWS} are read")
            )
            return pa.table({})
        # A text that is stored once can stand in every row: it is measured before it is written out.
        paths = [column.path for column in map(file.schema.column, range(len(file.schema.names)))
                 if column.physical_type == "BYTE_ARRAY"]  # fmt: skip
        table = pq.ParquetFile(path, read_dictionary=paths).read()
        for name in dict.fromkeys(path.split(".")[0] for path in paths):
            at = table.column_names.index(name)
            longest = max((_longest_text(chunk) for chunk in table[name].chunks), default=0)
            if longest > MAX_TEXT_BYTES:
                found = f"a text of {longest} bytes; at most {MAX_TEXT_BYTES} are read"
                problems.append(Problem(path.name, None, name, found))
                return pa.table({})
            table = table.set_column(at, name, table[name].cast(_plain(table[name].type)))
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        problems.append(Problem(path.name, None, None, f"is not a readable Parquet file: {error}"))
        return pa.table({})
    return _positions_from_geometry(path.name, table, problems)


def _longest_text(values: pa.Array) -> int:
    """Bytes of the longest text in an array of texts, or of lists of them, each different one looked at once."""
    if pa.types.is_list(values.type):
        return _longest_text(values.flatten())
    if pa.types.is_dictionary(values.type):
        return _longest_text(values.dictionary)
    return int(pc.max(pc.binary_length(values)).as_py() or 0)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries."""
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _positions_from_geometry(name: str, table: pa.Table, problems: list[Problem]) -> pa.Table:
    """Drops the geometry column of GeoParquet, which repeats lat and lon; without those, they are read from it."""
    geo, column = {}, "geometry"
    text = (table.schema.metadata or {}).get(b"geo")
    if text is not None:
        try:
            geo = json.loads(text)
            column = str(geo.get("primary_column", column))
        except (ValueError, AttributeError) as error:
            problems.append(Problem(name, None, None, f"its GeoParquet metadata cannot be read: {error}"))
    if column not in table.column_names:
        return table
    geometry = table[column]
    table = table.drop_columns([column])
    if "lat" in table.column_names and "lon" in table.column_names:
        return table
    about = geo.get("columns", {}).get(column, {}) if isinstance(geo.get("columns"), dict) else {}
    if not _is_wgs84(about):
        problems.append(Problem(name, None, column, "expected longitude and latitude in WGS84, got another crs"))
        return table
    lat: list[float | None] = []
    lon: list[float | None] = []
    for row, value in enumerate(geometry.to_pylist(), start=1):
        position = None if value is None else _point_of_wkb(value)
        if value is not None and position is None:
            problems.append(Problem(name, row, column, "expected a point as WKB"))
        lon.append(position[0] if position else None)
        lat.append(position[1] if position else None)
    return table.append_column("lat", pa.array(lat, NUMBER)).append_column("lon", pa.array(lon, NUMBER))


def _is_wgs84(about: Any) -> bool:
    if not isinstance(about, dict) or about.get("encoding", "WKB") != "WKB":
        return False
    if "crs" not in about:
        return True  # the format's default
    crs = about["crs"]
    identity = crs.get("id") if isinstance(crs, dict) else None
    if not isinstance(identity, dict):
        return False
    return (identity.get("authority"), str(identity.get("code"))) in {("OGC", "CRS84"), ("EPSG", "4326")}


def _point_of_wkb(value: Any) -> tuple[float, float] | None:
    """(lon, lat): GeoParquet puts longitude first."""
    if not isinstance(value, bytes) or len(value) < 21 or value[0] > 1:
        return None
    order = "<" if value[0] == 1 else ">"
    kind = int(np.frombuffer(value, f"{order}u4", 1, 1)[0])
    if kind % 1000 != 1 or kind > 3001:
        return None
    lon, lat = np.frombuffer(value, f"{order}f8", 2, 5)
    return float(lon), float(lat)


def _read_csv(path: Path, problems: list[Problem]) -> pa.Table:
    try:
        content = path.read_bytes()
    except OSError as error:
        problems.append(Problem(path.name, None, None, f"cannot be read: {error.strerror}"))
        return pa.table({})
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problems.append(Problem(path.name, None, None, f"expected UTF-8 text, got other bytes in line {line}"))
        return pa.table({})
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not row:
                continue  # an empty line
            rows.append(row)
            if len(row) != len(header):
                reason = f"expected {len(header)} cells as in the header, got {len(row)}"
                problems.append(Problem(path.name, len(rows), None, reason))
    except csv.Error as error:
        problems.append(Problem(path.name, len(rows) + 1, None, f"line {reader.line_num}: {error}"))
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.append(Problem(path.name, None, name, "more than one column of this name"))
    columns = {
        name: pa.array([row[i] or None if i < len(row) else None for row in rows], TEXT)
        for i, name in enumerate(header)
    }
    return pa.table(columns)


def _table_of_rows(name: str, rows: list[dict[str, Any]], problems: list[Problem]) -> pa.Table:
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {}
    for column in names:
        values = [row.get(column) for row in rows]
        schema = SCHEMAS[name]
        if column in schema.names:
            columns[column] = _converted(values, schema.field(column).type, name, column, problems)
            continue
        try:
            columns[column] = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            problems.append(Problem(name, None, column, f"expected values of one kind: {error}"))
    return pa.table(columns) if columns else SCHEMAS[name].empty_table()


# --- types -----------------------------------------------------------------------------------------------


def _typed(name: str, table: pa.Table, file: str, problems: list[Problem]) -> pa.Table:
    """The table with all columns of the schema in their types, then the others."""
    unreadable = any(problem.file == file and problem.column is None and problem.row is None for problem in problems)
    schema = SCHEMAS[name]
    required = set(REQUIRED[name])
    if not {"lat", "lon"} & set(table.column_names):  # a benchmark without positions has neither
        required -= {"lat", "lon"}
    columns = {}
    for field in schema:
        if table.column_names.count(field.name) > 1:
            problems.append(Problem(file, None, field.name, "more than one column of this name"))
        if table.column_names.count(field.name) != 1:
            if field.name in required and not unreadable and field.name not in table.column_names:
                problems.append(Problem(file, None, field.name, "is missing"))
            columns[field.name] = pa.nulls(table.num_rows, field.type)
        else:
            column = table[field.name]
            if column.type != field.type or field.type == TEXTS:
                column = _cast(column, field.type, file, field.name, problems)
            columns[field.name] = column
        if field.name in DEFAULTS:
            columns[field.name] = pc.fill_null(columns[field.name], DEFAULTS[field.name])
        if field.name in _HEADINGS:
            # A heading just below 0 comes out of `% 360` as 360.0, which is north as well.
            values = columns[field.name]
            columns[field.name] = pc.if_else(pc.fill_null(pc.equal(values, 360.0), False), 0.0, values)
    for extra in table.column_names:
        if extra not in columns and extra != "geometry":
            if table.column_names.count(extra) > 1:
                if not any(problem.file == file and problem.column == extra for problem in problems):
                    problems.append(Problem(file, None, extra, "more than one column of this name"))
                continue
            columns[extra] = table[extra]
    fields = [pa.field(column, values.type) for column, values in columns.items()]
    # Parquet leaves its own marks in the fields' metadata; without them equal tables are equal files.
    return pa.table(columns, schema=pa.schema(fields)).combine_chunks()


def _cast(column: pa.ChunkedArray, to: pa.DataType, file: str, name: str, problems: list[Problem]) -> Any:
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (text and to != TEXT):  # our own reading of text says what was wrong, and where
        try:
            return column.cast(to)
        except (pa.ArrowException, TypeError):
            pass
    return _converted(column.to_pylist(), to, file, name, problems)


def _converted(values: list[Any], to: pa.DataType, file: str, column: str, problems: list[Problem]) -> pa.Array:
    convert = {TEXT: _text, NUMBER: _number, DATE: _date, TEXTS: _texts}[to]
    result = []
    for row, value in enumerate(values, start=1):
        try:
            result.append(None if value is None else convert(value))
        except (TypeError, ValueError, OverflowError) as error:
            problems.append(Problem(file, row, column, str(error)))
            result.append(None)
    return pa.array(result, to)


def _text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"expected text, got {value!r}")
    text = os.fspath(value)
    text.encode()  # half of a surrogate pair cannot be stored
    return text


def _number(value: Any) -> float:
    if isinstance(value, str):
        # Python would take 1_000 and digits of other scripts too.
        if "_" in value or not value.isascii():
            raise ValueError(f"expected a number, got {value!r}")
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"expected a number, got {value!r}") from None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _date(value: Any) -> datetime.date:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a date as YYYY-MM-DD, got {value!r}") from None


def _texts(value: Any) -> list[str | None]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(_LIST_SEPARATOR)]
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list of paths, got {value!r}")
    return [None if part is None else _text(part) for part in value]


def superseded_street(text: str) -> dict[str, Any]:
    """The columns of the real street view in `street_superseded`, in their types. ValueError if it is not one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected the columns of a street view as JSON, got {text[:60]!r}") from error
    if not isinstance(found, dict) or not set(found) <= set(STREET_COLUMNS):
        raise ValueError(f"expected only columns of a street view, {', '.join(STREET_COLUMNS)}, got {text[:60]!r}")
    convert = {TEXT: _text, NUMBER: _number, DATE: _date, TEXTS: _texts}
    try:
        return {n: None if v is None else convert[PLACES.field(n).type](v) for n, v in found.items()}
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


# --- checks ----------------------------------------------------------------------------------------------


class _Checks:
    """Collects the problems of one table, a column at a time."""

    def __init__(self, table: pa.Table, file: str) -> None:
        self.table = table
        self.file = file
        self.problems: list[Problem] = []

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table[name]

    def add(self, column: str, bad: Any, text: str | Callable[[Any], str]) -> None:
        """A problem for every row where `bad` (Arrow booleans or NumPy) holds."""
        if not isinstance(bad, np.ndarray):
            bad = pc.fill_null(bad, False).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(bad):
            reason = text if isinstance(text, str) else text(self.column(column)[int(row)].as_py())
            self.problems.append(Problem(self.file, int(row) + 1, column, reason))

    def number(self, name: str, within: Callable[[np.ndarray], np.ndarray], expected: str) -> None:
        column = self.column(name)
        values = column.to_numpy()
        with np.errstate(invalid="ignore"):
            good = within(values) & np.isfinite(values)
        self.add(name, ~good & column.is_valid().to_numpy(), lambda value: f"expected {expected}, got {value:g}")

    def ids(self) -> None:
        column = self.column("id")
        self.add("id", pc.or_kleene(column.is_null(), pc.equal(column, "")), "is empty")
        self.add("id", pc.match_substring_regex(column, r"[\x00-\x1f\x7f]"), "has a control character in it")
        counts = pc.value_counts(column.combine_chunks())
        values, number = counts.field("values"), counts.field("counts")
        twice = values.filter(pc.and_(pc.greater(number, 1), values.is_valid()))
        if len(twice):
            first: dict[str, int] = {}
            for row, value in enumerate(column.to_pylist(), start=1):
                if value and first.setdefault(value, row) != row:
                    self.problems.append(
                        Problem(self.file, row, "id", f"{value!r} is the id of row {first[value]} too")
                    )

    def position(self, lat: str, lon: str, *, needed: bool) -> None:
        self.number(lat, lambda x: (x >= -90) & (x <= 90), "a latitude from -90 to 90")
        self.number(lon, lambda x: (x >= -180) & (x <= 180), "a longitude from -180 to 180")
        for name, other in ((lat, lon), (lon, lat)):
            missing = self.column(name).is_null()
            if not needed:
                missing = pc.and_(missing, self.column(other).is_valid())
            self.add(name, missing, "is empty" if needed else f"is empty, but {other} is given")

    def heading(self, name: str) -> None:
        self.number(name, lambda x: (x >= 0) & (x < 360), "degrees from 0 up to 360")

    def choice(self, name: str, allowed: tuple[str, ...]) -> None:
        column = self.column(name)
        wrong = pc.and_(column.is_valid(), pc.invert(pc.is_in(column, pa.array(allowed))))
        self.add(name, wrong, lambda value: f"expected one of {', '.join(map(repr, allowed))}, got {value!r}")

    def path(self, name: str) -> None:
        column = self.column(name)
        seen = np.zeros(len(column), bool)
        for pattern, reason in UNSAFE_PATHS.items():
            bad = pc.fill_null(pc.match_substring_regex(column, pattern), False).to_numpy(zero_copy_only=False)
            self.add(name, bad & ~seen, lambda value, reason=reason: f"{value!r} {reason}")  # type: ignore[misc]
            seen |= bad


def _check(name: str, table: pa.Table, file: str) -> list[Problem]:
    checks = _Checks(table, file)
    checks.ids()
    if name == "places":
        # Benchmarks without positions exist; one position missing among others is a slip.
        none = checks.column("lat").null_count == checks.column("lon").null_count == table.num_rows
        checks.position("lat", "lon", needed=not none)
        checks.position("street_lat", "street_lon", needed=False)
        checks.path("satellite")
        checks.path("street")
        _check_street_views(checks)
        checks.number("metres_per_pixel", lambda x: x > 0, "metres above 0")
        checks.heading("street_column0_deg")
        checks.heading("calibration_column0_deg")
        checks.number("calibration_quality", lambda x: x == x, "a finite number")
        checks.choice("calibration_status", CALIBRATION_STATUS)
        known = pc.or_(
            checks.column("street_column0_deg").is_valid(), checks.column("calibration_column0_deg").is_valid()
        )
        unfounded = pc.and_(pc.not_equal(checks.column("calibration_status"), "none"), pc.invert(known))
        checks.add("calibration_status", unfounded, lambda value: f"{value!r}, but no heading of column 0 is given")
        _check_superseded(checks)
        images = [checks.column(column).is_null() for column in ("satellite", "street", "street_views")]
        nothing = pc.and_(pc.and_(images[0], images[1]), images[2])
        checks.add("satellite", nothing, "there is no image: expected satellite, street or street_views")
    else:
        checks.position("lat", "lon", needed=False)
        checks.add("image", checks.column("image").is_null(), "is empty")
        checks.path("image")
        checks.heading("heading_deg")
        checks.number("fov_deg", lambda x: (x > 0) & (x <= 360), "degrees above 0, at most 360")
        checks.choice("split", SPLITS)
    return checks.problems


def _check_superseded(checks: _Checks) -> None:
    column = checks.column("street_superseded")
    if column.null_count == len(column):
        return
    unmarked = pc.and_(column.is_valid(), checks.column("street_synthetic").is_null())
    checks.add("street_superseded", unmarked, "is given, but no street_synthetic that stands in for it")
    for row, value in enumerate(column.to_pylist(), start=1):
        if value is not None:
            try:
                superseded_street(value)
            except ValueError as error:
                checks.problems.append(Problem(checks.file, row, "street_superseded", str(error)))


def _check_street_views(checks: _Checks) -> None:
    column = checks.column("street_views").combine_chunks()
    count = pc.list_value_length(column)
    expected = "expected four paths, of the views at headings 0, 90, 180, 270"
    checks.add("street_views", pc.not_equal(count, 4), lambda value: f"{expected}, got {len(value)}")
    rows = pc.list_parent_indices(column).to_numpy()
    paths = _Checks(pa.table({"street_views": pc.list_flatten(column)}), checks.file)
    paths.add("street_views", paths.column("street_views").is_null(), "one of the four paths is empty")
    paths.path("street_views")
    for problem in paths.problems:
        assert problem.row is not None
        checks.problems.append(Problem(problem.file, int(rows[problem.row - 1]) + 1, problem.column, problem.text))


def _check_all(places: pa.Table, photos: pa.Table, files: dict[str, str]) -> list[Problem]:
    problems = _check("places", places, files["places"]) + _check("photos", photos, files["photos"])
    return problems + _check_references(places, photos, files["photos"])


def _check_references(places: pa.Table, photos: pa.Table, file: str) -> list[Problem]:
    checks = _Checks(photos, file)
    column = photos["place"]
    unknown = pc.and_(column.is_valid(), pc.invert(pc.is_in(column, places["id"].combine_chunks())))
    checks.add("place", unknown, lambda value: f"there is no place {value!r}")
    return checks.problems


# --- writing ---------------------------------------------------------------------------------------------


def _csv_bytes(name: str, table: pa.Table) -> bytes:
    problems = []
    columns = []
    for column in table.column_names:
        cells = []
        for row, value in enumerate(table[column].to_pylist(), start=1):
            if column == "street_views" and value is not None:
                if any(_LIST_SEPARATOR in path for path in value):
                    reason = f"a path with {_LIST_SEPARATOR!r} in it cannot be written as CSV"
                    problems.append(Problem(f"{name}.csv", row, column, reason))
                value = _LIST_SEPARATOR.join(value)
            elif isinstance(value, (list, dict)):
                value = json.dumps(value, default=str)
            elif isinstance(value, float):
                value = repr(value)
            cells.append("" if value is None else value)
        columns.append(cells)
    if problems:
        raise ManifestError(problems)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()
