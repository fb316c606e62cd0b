"""Commands on a region before it is indexed: city, read, prepare, show, synthesize."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from geoloc_fast.cli.app import app, city_app
from geoloc_fast.cli.options import (
    arguments,
)
from geoloc_fast.cli.output import progress, say


@city_app.command("make")
def city_make(
    out: Annotated[Path, typer.Argument(help="Folder to write to; an interrupted run goes on where it stopped.")],
    places: Annotated[int, typer.Option(min=1, help="Places in each city.")] = 100,
    cities: Annotated[int, typer.Option(min=1, max=1000, help="How many; styles take turns.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make synthetic cities and write them as a manifest folder like that of any other region.

    Example: geoloc-fast city make cities/ --places 100 --cities 12 --seed 7
    """
    from geoloc_fast.city.write import write_city

    with progress("places") as shown:
        manifest = write_city(out, seed=seed, cities=cities, places=places, jobs=jobs, progress=shown)
    typer.echo(f"{manifest.places.num_rows} places and {manifest.photos.num_rows} photos of {cities} cities in {out}")


@app.command()
def read(
    kind: Annotated[str, typer.Argument(help="cvusa, cvact, vigor, msgd, utm-names, photos, or manifest.")],
    path: Annotated[Path, typer.Argument(help="Folder of the data set; of a manifest also one of its tables.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for the tables: PATH (the default) or one above it.")
    ] = None,
    format: Annotated[str, typer.Option(help="parquet or csv.")] = "parquet",
    assign: Annotated[
        float | None, typer.Option(min=0, help="Give photos of unknown place the nearest within so many metres.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace tables that are there; they are kept as .old.")] = False,
    zone: Annotated[int | None, typer.Option(help="UTM zone (msgd, utm-names).")] = None,
    south: Annotated[bool | None, typer.Option("--south", help="The zone is a southern one (msgd, utm-names).")] = None,
    city: Annotated[str | None, typer.Option(help="Of all entries (msgd).")] = None,
    mat: Annotated[str | None, typer.Option(help="Name of the MATLAB file, if there are several (msgd).")] = None,
    street_column0_deg: Annotated[
        float | None, typer.Option(help="Heading of the panoramas' left edge, if known (msgd).")
    ] = None,
    panoramas: Annotated[
        bool | None, typer.Option("--panoramas", help="Images in folders `database` are places (utm-names).")
    ] = None,
) -> None:
    """Make a manifest of a published data set or a folder of photos, or convert one between CSV and Parquet.

    Images stay where they are; docs/data.md shows the layouts.

    Example: geoloc-fast read photos region/photos region --assign 25
    """
    import warnings

    from geoloc_fast.data import readers
    from geoloc_fast.data.readers.write import write_tables

    given = {
        "zone": zone,
        "south": south,
        "city": city,
        "mat": mat,
        "street_column0_deg": street_column0_deg,
        "panoramas": panoramas,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if kind != "manifest" and kind not in readers.READERS:
        raise typer.BadParameter(f"KIND: expected manifest, {', '.join(readers.READERS)}, got {kind!r}")
    if format not in ("parquet", "csv"):
        raise typer.BadParameter(f"--format: expected parquet or csv, got {format!r}")
    reader = None if kind == "manifest" else inspect.signature(readers.READERS[kind]).parameters
    for name in options:
        if reader is None or name not in reader:
            raise typer.BadParameter(f"--{name.replace('_', '-')} means nothing to {kind}")
    if reader is not None and any(p.default is p.empty and n not in options for n, p in reader.items() if n != "path"):
        raise typer.BadParameter(f"{kind} needs --zone, the UTM zone of its coordinates")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = readers.read(kind, path, **options)
    for warning in caught:
        typer.echo(f"geoloc-fast read: {warning.message}", err=True)
    folder = found.root if out is None else out
    made = write_tables(found, folder, format=format, assign_m=assign, replace=replace)
    without = made.photos["place"].null_count
    about = f", {without} of them of no place" if len(made.places) and without else ""
    typer.echo(f"{len(made.places)} places and {len(made.photos)} photos{about} in {folder}")


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Argument(help="Folder with places and photos tables, or one of the tables.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to; an interrupted run goes on where it stopped.")],
    rows: Annotated[int, typer.Option(help="Rows of polar images and panoramas.")] = 128,
    columns: Annotated[int, typer.Option(help="Columns of polar images and panoramas.")] = 512,
    method: Annotated[str, typer.Option(help="Calibration of street views of unknown heading.")] = "azimuth",
    assumed_fov_deg: Annotated[float, typer.Option(help="Field of view of photos that do not say theirs.")] = 90.0,
    zoom: Annotated[
        float | None, typer.Option(help="Web-Mercator zoom of satellite tiles without a resolution.")
    ] = None,
    image_format: Annotated[str, typer.Option(help="jpeg or png.")] = "jpeg",
    cache: Annotated[bool, typer.Option(help="Write the packed, memory-mapped cache too.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a core.")] = None,
) -> None:
    """Make polar images, calibrate street views, reproject photos: everything encoding needs.

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
            cache=cache,
        )
    typer.echo(run(manifest, out, settings=settings, workers=workers).summary())


@app.command()
def show(
    manifest: Annotated[Path, typer.Argument(help="Folder with places and photos tables, or one of the tables.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png or .jpg.")] = Path("sheet.png"),
    places: Annotated[int, typer.Option(min=1, max=100, help="How many places, spread over the manifest.")] = 6,
    ids: Annotated[list[str] | None, typer.Option("--id", help="These places instead; may be repeated.")] = None,
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
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table; it is completed in place.")],
    model: Annotated[Path, typer.Option(help="A bundle of train/panogan.py.")],
    date: Annotated[
        str | None, typer.Option(help="2024-05-31: street views a year away from it are replaced too.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default one a core.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make street views of satellite images where there is no real one that counts, and mark them as synthetic.

    Example: geoloc-fast synthesize region/ --model panogan.safetensors --date 2024-05-31
    """
    import dataclasses
    import datetime

    from geoloc_fast.models import PanoGAN
    from geoloc_fast.region.synthesize import synthesize as run

    with arguments():
        when = None if date is None else datetime.date.fromisoformat(date)
    network = PanoGAN.load(model, device=device)
    with progress("street views") as shown:
        found = run(manifest, network, date=when, workers=workers, progress=shown)
    for problem in found.problems:
        typer.echo(problem, err=True)
    say(dataclasses.asdict(found), found.summary(), as_json)
    if found.problems:
        raise typer.Exit(1)
