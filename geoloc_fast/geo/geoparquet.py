"""GeoParquet 1.1: tables with positions that other programs can read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["geoparquet_bytes"]


def geoparquet_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Columns `lat` and `lon` repeated as points in WKB, longitude first. No crs means WGS84 (OGC:CRS84)."""
    lat, lon = table["lat"].to_numpy(), table["lon"].to_numpy()
    known = table["lat"].is_valid().to_numpy()
    points = np.zeros(len(lat), np.dtype([("order", "u1"), ("kind", "<u4"), ("lon", "<f8"), ("lat", "<f8")]))
    points["order"], points["kind"], points["lon"], points["lat"] = 1, 1, lon, lat
    content = points.tobytes()
    size = points.dtype.itemsize
    geometry = pa.array(
        [content[i * size : (i + 1) * size] if there else None for i, there in enumerate(known)], pa.binary()
    )
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
    if known.any():
        column["bbox"] = [float(f(v[known])) for f, v in ((np.min, lon), (np.min, lat), (np.max, lon), (np.max, lat))]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = table.append_column("geometry", geometry)
    table = table.replace_schema_metadata({**(metadata or {}), "geo": json.dumps(geo)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
