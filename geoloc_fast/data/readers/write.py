"""Write what a reader found as tables in a folder: the second half of `geoloc-fast read`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from geoloc_fast.data.datasets import assign_places
from geoloc_fast.data.manifest import SCHEMAS, Manifest

__all__ = ["write_tables"]

_FORMATS = ("parquet", "csv")
_IMAGES = {"places": ("satellite", "street", "street_views"), "photos": ("image",)}


def write_tables(
    found: Manifest,
    out: str | os.PathLike[str],
    *,
    format: str = "parquet",
    assign_m: float | None = None,
    replace: bool = False,
) -> Manifest:
    """Writes the tables of `found` that have rows into `out`, beside the others that are there already.

    Images are not copied: `out` is the folder of `found` or one above it, and paths become relative to it. So photos
    read from REGION/photos land beside the places of REGION.

    Args:
        format: "parquet" or "csv".
        assign_m: give photos of unknown place the nearest within this many metres.
        replace: a table of the same name in `out` is kept as NAME.old; otherwise it is an error.

    Returns:
        the manifest of `out`, as it is now.
    """
    if format not in _FORMATS:
        raise ValueError(f"format: expected 'parquet' or 'csv', got {format!r}")
    if assign_m is not None and not 0 < assign_m <= 10_000:
        raise ValueError(f"assign_m: expected metres above 0, at most 10000, got {assign_m}")
    tables = {name: table for name, table in (("places", found.places), ("photos", found.photos)) if len(table)}
    if not tables:
        raise ValueError(f"{found.root}: there are no places and no photos in it")
    if assign_m is not None and "photos" not in tables:
        raise ValueError("assign_m: expected photos to give places to, got none")
    folder = Path(out)
    root, target = found.root.resolve(), folder.resolve()
    if target != root and target not in root.parents:
        raise ValueError(
            f"out: expected {found.root} or a folder above it, since images are not copied and paths do not leave "
            f"the manifest's folder; got {folder}"
        )
    prefix = "" if target == root else f"{root.relative_to(target).as_posix()}/"
    old = [file for name in tables for kind in _FORMATS if (file := folder / f"{name}.{kind}").exists()]
    if old and not replace:
        raise FileExistsError(
            f"{old[0]}: exists already; move it away, or replace it (--replace), which keeps it as .old"
        )
    # What stays in the folder is part of what is written: ids, places of photos, formats.
    whole = {name: SCHEMAS[name].empty_table() for name in SCHEMAS}
    kept = [
        name
        for name in SCHEMAS
        if name not in tables and any((folder / f"{name}.{kind}").exists() for kind in _FORMATS)
    ]
    if kept:
        there = Manifest.load(folder)
        whole |= {name: getattr(there, name) for name in kept}
    for name, table in tables.items():
        for column in _IMAGES[name]:
            values = [_moved(value, prefix) for value in table[column].to_pylist()]
            at = table.schema.get_field_index(column)
            table = table.set_column(at, column, pa.array(values, table.schema.field(column).type))
        whole[name] = table
    manifest = Manifest(folder, whole["places"], whole["photos"], format=format)
    if assign_m is not None:
        manifest = assign_places(manifest, assign_m)
    for file in old:
        os.replace(file, file.with_name(f"{file.name}.old"))
    manifest.save(tables=tuple(tables))
    return manifest


def _moved(value: Any, prefix: str) -> Any:
    if isinstance(value, list):
        return [_moved(part, prefix) for part in value]
    return None if value is None else prefix + value
