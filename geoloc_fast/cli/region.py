"""Commands on a region before it is indexed: city, read, prepare, show, synthesize."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from geoloc_fast.cli.app import app, city_app
from geoloc_fast.cli.options import DeviceOption, WithinOption, arguments, device_named, region_of
from geoloc_fast.cli.output import progress, say


@city_app.command("make")
def city_make(
    out: Annotated[Path, typer.Argument(help="Folder to write to; run again to continue an interrupted run.")],
    places: Annotated[int, typer.Option(min=1, help="Places in each city.")] = 100,
    cities: Annotated[int, typer.Option(min=1, max=1000, help="Number of cities; their styles alternate.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same bytes.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
) -> None:
    """Make synthetic cities and write them as a manifest folder, like any other region.

    Example: geoloc-fast city make cities/ --places 100 --cities 12 --seed 7
    """
    from geoloc_fast.city.write import write_city

    with progress("places") as shown:
        manifest = write_city(out, seed=seed, cities=cities, places=places, jobs=jobs, progress=shown)
    typer.echo(f"{manifest.places.num_rows} places and {manifest.photos.num_rows} photos of {cities} cities in {out}")


@city_app.command("describe")
def city_describe(
    folder: Annotated[Path, typer.Argument(help="Folder of synthetic cities.")],
    out: Annotated[Path, typer.Argument(help="CSV to write, with the columns place and text.")],
    draws: Annotated[
        int, typer.Option(min=1, max=100, help="Number of pairs of a long and a short description per place.")
    ] = 1,
) -> None:
    """Describe the places of synthetic cities in words, as witnesses would.

    Example: geoloc-fast city describe cities/ captions.csv --draws 2
    """
    from geoloc_fast.city.captions import describe_cities

    typer.echo(f"{describe_cities(folder, out, draws=draws)} descriptions in {out}")


@app.command()
def read(
    kind: Annotated[
        str,
        typer.Argument(
            help="Imagery: tiles, raster, pmtiles, mbtiles. Street photos: video, mapillary, kartaview, photos. Data "
            "sets: cvusa, cvact, vigor, msgd, utm-names; with words: cvg-text, rsicd, geotext. Or manifest."
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The folder or file; for a manifest, also one of its tables.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder for the tables: PATH (default) or one above it. For imagery, a new folder."),
    ] = None,
    places: Annotated[
        str | None,
        typer.Option(
            help="Positions of the places (imagery): grid:10 (metres), points.csv (lat, lon), roads.geojson:5 (metres)."
        ),
    ] = None,
    side: Annotated[float, typer.Option(help="Side of the squares, in metres (imagery).")] = 60.0,
    within: WithinOption = None,
    zoom: Annotated[int | None, typer.Option(help="Zoom of the tiles; default: the deepest.")] = None,
    tms: Annotated[bool, typer.Option("--tms", help="Tile rows are numbered from the south (tiles).")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print how many places and images there would be (imagery).")
    ] = False,
    gpx: Annotated[Path | None, typer.Option(help="GPX track of the camera (video).")] = None,
    offset: Annotated[float | None, typer.Option(help="Seconds added to the frames' times (video).")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second; default: times from EXIF (video).")] = None,
    facing: Annotated[
        float | None,
        typer.Option(help="Direction of the camera relative to the track: 0 forwards, 90 to the right (video)."),
    ] = None,
    format: Annotated[str, typer.Option(help="Format of the tables: parquet or csv.")] = "parquet",
    assign: Annotated[
        float | None, typer.Option(min=0, help="Assign photos to the nearest place within this many metres.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace existing tables; they are kept as .old.")] = False,
    zone: Annotated[int | None, typer.Option(help="UTM zone (msgd, utm-names).")] = None,
    south: Annotated[
        bool | None, typer.Option("--south", help="The UTM zone is in the southern hemisphere (msgd, utm-names).")
    ] = None,
    city: Annotated[str | None, typer.Option(help="City of all entries (msgd).")] = None,
    mat: Annotated[str | None, typer.Option(help="Name of the MATLAB file, if there are several (msgd).")] = None,
    street_column0_deg: Annotated[
        float | None, typer.Option(help="Heading of the panoramas' left edge, if known (msgd).")
    ] = None,
    panoramas: Annotated[
        bool | None,
        typer.Option("--panoramas", help="Images in folders `database` (utm-names), or frames (video), become places."),
    ] = None,
) -> None:
    """Make a manifest from imagery, street photos or a published data set; or convert one to CSV or Parquet.

    For imagery, a square around each place is cropped into OUT; all other images stay where they are.
    docs/guide/imagery.md explains sources and licences, docs/guide/data.md shows the layouts.

    Example: geoloc-fast read raster ortho.tif region/ --places grid:10
    """
    import warnings

    from geoloc_fast.data import readers
    from geoloc_fast.data.readers.write import write_tables
    from geoloc_fast.region import imagery

    if kind in imagery.KINDS:
        if out is None or places is None:
            raise typer.BadParameter(f"{kind} needs OUT, a new folder, and --places, where places are to be")
        _cut(kind, path, out, places, side, region_of(None, None, within), zoom, tms, dry_run)
        return
    if places is not None or zoom is not None or within is not None or tms or dry_run:
        raise typer.BadParameter(f"--places, --within, --zoom, --tms and --dry-run mean nothing to {kind}")
    given = {
        "gpx": gpx,
        "offset": offset,
        "fps": fps,
        "facing": facing,
        "zone": zone,
        "south": south,
        "city": city,
        "mat": mat,
        "street_column0_deg": street_column0_deg,
        "panoramas": panoramas,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if kind != "manifest" and kind not in readers.READERS:
        known = ", ".join(("manifest", *imagery.KINDS, *readers.READERS))
        raise typer.BadParameter(f"KIND: expected {known}, got {kind!r}")
    if format not in ("parquet", "csv"):
        raise typer.BadParameter(f"--format: expected parquet or csv, got {format!r}")
    reader = None if kind == "manifest" else inspect.signature(readers.READERS[kind]).parameters
    for name in options:
        if reader is None or name not in reader:
            raise typer.BadParameter(f"--{name.replace('_', '-')} means nothing to {kind}")
    needed = [n for n, p in (reader or {}).items() if p.default is p.empty and n not in options and n != "path"]
    if needed:
        raise typer.BadParameter(f"{kind} needs --{needed[0]}, {_NEEDED[needed[0]]}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = readers.read(kind, path, **options)
    for warning in caught:
        typer.echo(f"geoloc-fast read: {warning.message}", err=True)
    folder = found.root if out is None else out
    made = write_tables(found, folder, format=format, assign_m=assign, replace=replace)
    without = made.photos["place"].null_count
    about = f", {without} of them without a place" if len(made.places) and without else ""
    typer.echo(f"{len(made.places)} places and {len(made.photos)} photos{about} in {folder}")


_NEEDED = {"zone": "the UTM zone of its coordinates", "gpx": "the GPX track of the camera"}


def _cut(
    kind: str, path: Path, out: Path, places: str, side: float, within: Any, zoom: int | None, tms: bool, dry_run: bool
) -> None:
    from geoloc_fast.region.cut import cut_places, price_of
    from geoloc_fast.region.imagery import open_imagery
    from geoloc_fast.region.spots import spots_of

    with arguments():
        ground = open_imagery(kind, path, zoom=zoom, tms=tms)
        spots = spots_of(places, ground, within)
    typer.echo(str(price_of(ground, spots, side)))
    if dry_run:
        return
    with progress("places") as shown:
        done = cut_places(ground, spots, out, source=path.name, side_m=side, progress=shown)
    typer.echo(f"{done.summary()}; written to {out}")


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Argument(help="Folder with places and photos tables, or one of the tables.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to; an interrupted run continues where it stopped.")],
    rows: Annotated[int, typer.Option(help="Rows of panoramas.")] = 128,
    columns: Annotated[int, typer.Option(help="Columns of panoramas.")] = 512,
    method: Annotated[
        str, typer.Option(help="How to measure unknown headings of street views: azimuth, orb, sift or orb-mean.")
    ] = "azimuth",
    assumed_fov_deg: Annotated[float, typer.Option(help="Field of view of photos that have none.")] = 90.0,
    zoom: Annotated[
        float | None, typer.Option(help="Web-Mercator zoom of satellite images whose resolution is not in the table.")
    ] = None,
    image_format: Annotated[str, typer.Option(help="Format of the images: jpeg or png.")] = "jpeg",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Prepare a region: crop satellite images, measure headings of street views, reproject photos.

    Example: geoloc-fast prepare region/ ready/ --zoom 20
    """
    from geoloc_fast.region.prepare import Settings
    from geoloc_fast.region.prepare import prepare as run

    with arguments():
        settings = Settings(
            size=(rows, columns),
            method=method,
            assumed_fov_deg=assumed_fov_deg,
            zoom=zoom,
            image_format=image_format,
        )
    with progress("images") as shown:
        done = run(manifest, out, settings=settings, workers=workers, progress=shown)
    typer.echo(done.summary())


@app.command()
def show(
    manifest: Annotated[Path, typer.Argument(help="Folder with places and photos tables, or one of the tables.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png or .jpg.")] = Path("sheet.png"),
    places: Annotated[int, typer.Option(min=1, max=100, help="Number of places, spread over the manifest.")] = 6,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Show this place instead; may be repeated.")] = None,
) -> None:
    """Draw a contact sheet: photo, street view, satellite and polar image of places, with headings.

    Example: geoloc-fast show ready/ --out sheet.png
    """
    from geoloc_fast.region.show import SUFFIXES
    from geoloc_fast.region.show import show as run

    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"--out: expected a .png or .jpg file, got {str(out)!r}")
    for problem in run(manifest, out, places=ids or places):
        typer.echo(problem, err=True)
    typer.echo(f"Written to {out}")


@app.command()
def synthesize(
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table, which is changed in place.")],
    model: Annotated[Path, typer.Option(help="A model trained by train/panogan.py.")],
    date: Annotated[
        str | None,
        typer.Option(help="A date such as 2024-05-31: street views more than a year from it are also replaced."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core.")] = None,
    device: DeviceOption = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Generate street views from satellite images where real ones are missing or outdated, and label them.

    Example: geoloc-fast synthesize region/ --model panogan.safetensors --date 2024-05-31
    """
    import dataclasses
    import datetime

    from geoloc_fast.models import PanoGAN
    from geoloc_fast.region.synthesize import synthesize as run

    with arguments():
        when = None if date is None else datetime.date.fromisoformat(date)
    network = PanoGAN.load(model, device=device_named(device))
    with progress("street views") as shown:
        found = run(manifest, network, date=when, workers=workers, progress=shown)
    for problem in found.problems:
        typer.echo(problem, err=True)
    say(dataclasses.asdict(found), found.summary(), as_json)
    if found.problems:
        raise typer.Exit(1)
