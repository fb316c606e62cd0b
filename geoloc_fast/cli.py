"""The command `geoloc-fast`. Results go to stdout, progress and complaints to stderr.

Exit codes: 0 done, 1 it failed, 2 a wrong argument, 130 interrupted.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

# typer brings its own click in newer releases and the click package in older ones; both derive from this.
_ClickException: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Where was this photo taken, and which way was it looking?",
)


@contextmanager
def _arguments() -> Iterator[None]:
    """What a library finds wrong with values that come straight from the command line is a wrong argument."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def info() -> None:
    """What was built and what can run here, as JSON.

    Example: geoloc-fast info
    """
    from geoloc_fast import build_info

    typer.echo(json.dumps(build_info(), indent=1))


city_app = typer.Typer(help="Synthetic cities, to train, test and demonstrate without any data.")
app.add_typer(city_app, name="city")


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
    from tqdm import tqdm

    from geoloc_fast.data.city.write import write_city

    with tqdm(total=places * cities, desc="places", unit="", leave=False, disable=None) as bar:
        manifest = write_city(
            out, seed=seed, cities=cities, places=places, jobs=jobs, progress=lambda done, _: bar.update(done - bar.n)
        )
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
    assumed_fov_deg: Annotated[float, typer.Option(help="Field of view of photos that do not say theirs.")] = 70.0,
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
    from geoloc_fast.data.prepare import Settings
    from geoloc_fast.data.prepare import prepare as run

    with _arguments():
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
    from geoloc_fast.data.show import SUFFIXES
    from geoloc_fast.data.show import show as run

    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"--out: expected a .png or .jpg file, got {str(out)!r}")
    for problem in run(manifest, out, places=ids or places):
        typer.echo(problem, err=True)
    typer.echo(f"Written to {out}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write predictions.geojson, metrics.json, report.html to.")
    ] = Path("demo"),
    places: Annotated[int, typer.Option(min=2, max=20_000, help="Places in the city.")] = 400,
    photos: Annotated[int, typer.Option(min=1, max=20_000, help="Photos to locate.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which city. The shipped model was trained on others.")] = 20_000,
    model: Annotated[Path | None, typer.Option(help="A model bundle; default the small one that ships.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Make an unseen synthetic city, index it, and locate photos of unknown heading.

    Example: geoloc-fast demo --out demo --places 400 --photos 200
    """
    from geoloc_fast.demo import default_model, run_demo, summary

    metrics = run_demo(out, model_path=model or default_model(), places=places, photos=photos, seed=seed)
    typer.echo(json.dumps(metrics, indent=1) if as_json else summary(metrics))
    if not as_json:
        typer.echo(f"Written to {out}: predictions.geojson, metrics.json, report.html")


def main() -> None:
    """Runs the command; a mistake is one line on stderr, not a traceback."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "geoloc-fast"
        message = " ".join(error.format_message().split())
        print(f"{command}: {message} (see {command} --help)", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        # Problems of a manifest are a list, and stay one.
        text = str(error) if hasattr(error, "problems") else " ".join(str(error).split())
        print(f"geoloc-fast: {text}", file=sys.stderr)
        code = 1
    if code == 130:  # also what typer itself makes of Ctrl-C
        print("geoloc-fast: interrupted; nothing half-written was left", file=sys.stderr)
    sys.exit(code or 0)
