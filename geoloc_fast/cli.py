"""The command `geoloc-fast`. Results go to stdout, progress and complaints to stderr.

Exit codes: 0 done, 1 it failed, 2 a wrong argument, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
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
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
    places: Annotated[int, typer.Option(min=1, max=200, help="How many places, spread over the manifest.")] = 6,
) -> None:
    """Draw a contact sheet: photo, street view, satellite and polar image of places, with headings.

    Example: geoloc-fast show ready/ --out sheet.png
    """
    from geoloc_fast.data.show import show as run

    for problem in run(manifest, out, places=places):
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
        print(f"geoloc-fast: {' '.join(str(error).split())}", file=sys.stderr)
        code = 1
    if code == 130:  # also what typer itself makes of Ctrl-C
        print("geoloc-fast: interrupted; nothing half-written was left", file=sys.stderr)
    sys.exit(code or 0)
